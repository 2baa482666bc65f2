"""`habilis demo`: from nothing to a quadruped that walks, with the numbers, the pictures and the file to prove it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from habilis.api import Run, default_config, evaluate, export, record_video, train_config
from habilis.cli.parse import parse
from habilis.core.config import require
from habilis.evaluation.report import write_report
from habilis.saved import locate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train, evaluate, film, export and report, in one go."""

    env: str = "habilis/QuadrupedWalk-v0"
    """The environment."""
    total_timesteps: int | None = None
    """Environment steps; None: the preset's."""
    seed: int = 0
    """Seed of the training."""
    episodes: int = 50
    """Episodes of the evaluation at the end."""
    seconds: float = 20.0
    """Length of the video."""
    run_dir: str | None = None
    """Directory of everything; None: a new one in `runs/`."""


def run(argv: Sequence[str]) -> int:
    """Do it all and say where everything lies."""
    options = parse(Options, argv, "demo")
    require(options.episodes > 0 and options.seconds > 0, "--episodes and --seconds must be positive")
    changes = {"total_timesteps": options.total_timesteps} if options.total_timesteps is not None else {}
    config = default_config("ppo", options.env, seed=options.seed, run_dir=options.run_dir, name="demo", **changes)
    print(f"PPO learns {config.env} in {config.total_timesteps:,} steps.")
    finished = train_config(config, command=shlex.join(["habilis", "demo", *argv]))
    if finished.interrupted:
        print(f"Stopped and saved. Go on with: habilis train --resume {shlex.quote(str(finished.path))}")
        return 130
    show(finished, options)
    return 0


def show(finished: Run, options: Options) -> None:
    """Evaluate, film, export and report."""
    path = finished.path
    print(f"\nEvaluating {options.episodes} episodes that training never saw ...")
    result = evaluate(path, episodes=options.episodes, seed=options.seed)
    print(result)
    name = locate(path, "last")[1].name
    tree = {"step": int(name.removeprefix("step_")), "deterministic": result.to_dict(), "stochastic": None}
    (path / "eval" / f"{name}_demo.json").write_text(json.dumps(tree) + "\n")
    print("\nRecording a video ...")
    video = record_video(path, path / "videos" / "demo.mp4", seed=options.seed, seconds=options.seconds)
    folder = export(path, path / "export")
    report = write_report([path], path / "report.html")
    print(
        f"""
report  {report}
video   {video}
policy  {folder / "policy.onnx"}
run     {path}

Go on:  habilis play {shlex.quote(str(path))}
        habilis train ppo --env {options.env} --help"""
    )
