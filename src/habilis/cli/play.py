"""`habilis play`: a policy before one's eyes, in MuJoCo's viewer or, where there is no screen, in a video."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from habilis.api import locate, play, record_video
from habilis.cli.parse import KeyValues, Switch, parse, read_values
from habilis.envs.viewer import has_screen


@dataclass(frozen=True, kw_only=True)
class Options:
    """Watch a policy in a window, or record a video where there is no screen."""

    run: tyro.conf.Positional[Path]
    """Directory of a run, or of a checkpoint in one."""
    which: Literal["last", "best"] = "last"
    """The last checkpoint of a run, or the one that evaluated best."""
    seed: int = 0
    """Which episodes: the same as `habilis evaluate` with this seed and one environment."""
    episodes: int | None = None
    """How many; None: in a window until it is closed, in a video one."""
    stochastic: Switch = False
    """Let the policy draw its actions, as it did in training, instead of taking their mode."""
    env: str | None = None
    """Another environment than the policy was trained in."""
    env_kwargs: KeyValues = field(default_factory=dict)
    """Arguments of the environment, in pairs, besides those it was trained with."""
    video: Path | None = None
    """Record a video into this mp4 file, even where there is a screen; None: `videos/` in the run, without a screen."""


def run(argv: Sequence[str]) -> int:
    """Open the viewer, or record and say where the video is."""
    o = parse(Options, argv, "play")
    run_dir, checkpoint = locate(o.run, o.which)
    settings = {"which": o.which, "seed": o.seed, "deterministic": not o.stochastic, **read_values(o.env_kwargs)}
    if o.video is None and has_screen():
        print("Close the window, or press Ctrl-C here, to stop.")
        with contextlib.suppress(KeyboardInterrupt):
            play(o.run, o.env, episodes=o.episodes, **settings)
        return 0
    if o.video is None:
        print("There is no screen here: recording a video.")
    video = o.video or run_dir / "videos" / f"{checkpoint.name}_seed{o.seed}.mp4"
    print(record_video(o.run, video, o.env, episodes=o.episodes or 1, **settings))
    return 0
