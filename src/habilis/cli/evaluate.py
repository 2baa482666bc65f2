"""`habilis evaluate`: whole episodes of a policy, in words or as the JSON of what Python returns, and on video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from habilis.api import evaluate, record_video
from habilis.cli.parse import KeyValues, Switch, parse, read_env_kwargs
from habilis.evaluation.video import require_film
from habilis.saved import Which, locate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a policy on episodes that training never saw."""

    run: tyro.conf.Positional[Path]
    """Directory of a run, or of a checkpoint in one."""
    episodes: int = 20
    """Whole episodes."""
    seed: int = 0
    """Which episodes: the same seed gives the same ones."""
    stochastic: Switch = False
    """Let the policy draw its actions, as it did in training, instead of taking their mode."""
    which: Which = "last"
    """The last checkpoint of a run, or the one that evaluated best."""
    risk_level: float | None = None
    """Act by the mean of this share of the worst returns, where their distribution was learnt."""
    env: str | None = None
    """Another environment than the policy was trained in, on the same engine where that has it."""
    env_kwargs: KeyValues = field(default_factory=dict)
    """Arguments of the environment, in pairs, besides those it was trained with; another `--env` has these alone."""
    num_envs: int = 10
    """Environments stepped together."""
    video: Path | None = None
    """Also film an episode, the first of an evaluation with `--num-envs 1`, into this mp4 file."""
    json: Switch = False
    """Print what `habilis.evaluate` returns in Python, and which checkpoint it is of, as JSON."""


def run(argv: Sequence[str]) -> int:
    """Evaluate and print."""
    o = parse(Options, argv, "evaluate")
    kwargs = read_env_kwargs(o.env_kwargs, evaluate, *([record_video] if o.video else []))
    if o.video is not None:
        require_film(o.video)
    checkpoint = locate(o.run, o.which)[1]
    result = evaluate(
        checkpoint,
        o.env,
        risk_level=o.risk_level,
        episodes=o.episodes,
        seed=o.seed,
        deterministic=not o.stochastic,
        num_envs=o.num_envs,
        **kwargs,
    )
    told = {"checkpoint": str(checkpoint), **result.to_dict()}
    print(json.dumps(told) if o.json else f"{checkpoint}\n{result}")
    if o.video is not None:
        settings = {"risk_level": o.risk_level, "seed": o.seed, "deterministic": not o.stochastic, **kwargs}
        record_video(checkpoint, o.video, o.env, **settings)
        if not o.json:
            print(f"video: {o.video}")
    return 0
