"""Reading a run directory: its configuration, its curves and its evaluations, also where the run was killed.

What cannot be read for being half written (the last line of `metrics.jsonl`) is left out; where a run was resumed from
an earlier step, the lines that it wrote again count and not those before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from habilis.core.errors import ConfigError
from habilis.evaluation.evaluator import EvaluationResult
from habilis.evaluation.grid_policy import GridPolicy

NOT_METHOD = {
    "seed",
    "name",
    "run_dir",
    "device",
    "threads",
    "env_threads",
    "env_async",
    "eval_freq",
    "eval_episodes",
    "eval_stochastic",
    "checkpoint_freq",
    "keep_checkpoints",
    "log_freq",
    "tensorboard",
    "wandb_project",
}
"""Configuration keys that do not make two runs two methods: where and under whose eyes they ran."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One scalar over a run: `steps` `[n]` (env steps, rising) and its finite `values` `[n]`."""

    steps: np.ndarray
    values: np.ndarray
    not_finite: int = 0
    """How many values were logged that were not finite."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of the policy of one env step."""

    step: int
    deterministic: EvaluationResult
    stochastic: EvaluationResult | None
    on_grid: GridPolicy | None = None
    """The policy in every cell, where the environment is a grid world."""


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its directory tells it."""

    path: Path
    env: str
    algorithm: str
    seed: int | None
    config: Mapping[str, Any]
    """The resolved configuration, flat: dotted names to values."""
    versions: Mapping[str, str]
    command: str
    curves: Mapping[str, Curve]
    evaluations: tuple[Evaluation, ...]
    """In the order of their steps."""
    videos: tuple[Path, ...]
    """Oldest first."""

    @property
    def method(self) -> dict[str, Any]:
        """The part of the configuration that makes the method: what two seeds of one group share."""
        return {key: value for key, value in self.config.items() if key not in NOT_METHOD}

    @property
    def steps(self) -> int:
        """Env steps it has come to, as far as it logged."""
        ends = [int(curve.steps[-1]) for curve in self.curves.values() if len(curve.steps)]
        return max([*ends, *(evaluation.step for evaluation in self.evaluations)], default=0)

    @property
    def asked(self) -> int | None:
        """Env steps it was to come to, where the configuration says."""
        return self.config.get("total_timesteps")

    @property
    def seconds(self) -> float | None:
        """Wall time it took, over all resumes; None where nothing was logged."""
        wall = self.curves.get("time/wall")
        return float(wall.values[-1]) if wall is not None and len(wall.values) else None


def read_run(path: Path) -> RunRecord:
    """Read the run directory `path`.

    Raises:
        ConfigError: if it is not one.
    """
    path = Path(path)
    if not (path / "config.json").is_file() and not (path / "metrics.jsonl").is_file():
        raise ConfigError(f"{path} has neither config.json nor metrics.jsonl: give the directory of a run")
    saved = _read_json(path / "config.json") or {}
    config = dict(_flatten(saved.get("config", {})))
    return RunRecord(
        path=path,
        env=config.get("env", path.absolute().parent.parent.name),
        algorithm=config.get("algorithm", path.absolute().parent.name),
        seed=config.get("seed"),
        config=config,
        versions=saved.get("versions", {}),
        command=(path / "command.txt").read_text().strip() if (path / "command.txt").is_file() else "",
        curves=_read_curves(path / "metrics.jsonl"),
        evaluations=tuple(read_evaluations(path / "eval")),
        videos=tuple(sorted(path.glob("videos/*.mp4"), key=lambda video: video.stat().st_mtime)),
    )


def _read_json(path: Path) -> Any:
    """Return the JSON of a file, or None where there is none or it is not whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _read_curves(path: Path) -> dict[str, Curve]:
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    kept: list[dict[str, Any]] = []
    earliest = math.inf
    for line in reversed(lines):  # a resumed run counts from where it was resumed
        if line["step"] <= earliest:
            earliest = line["step"]
            kept.append(line)
    points: dict[str, list[tuple[int, float | None]]] = {}
    for line in reversed(kept):
        for name, value in line.items():
            if name != "step" and (value is None or isinstance(value, (int, float))):
                rows = points.setdefault(name, [])
                if rows and rows[-1][0] == line["step"]:
                    rows.pop()
                rows.append((line["step"], value))
    return {name: _curve(rows) for name, rows in points.items()}


def _curve(rows: list[tuple[int, float | None]]) -> Curve:
    finite = [(step, value) for step, value in rows if value is not None and math.isfinite(value)]
    steps = np.array([step for step, _ in finite], dtype=np.int64)
    values = np.array([value for _, value in finite], dtype=np.float64)
    return Curve(steps, values, len(rows) - len(finite))


def read_evaluations(folder: Path) -> Iterator[Evaluation]:
    """Yield what the files of a run's folder `eval` hold, in the order of their steps."""
    for path in sorted(folder.glob("step_*.json")):
        tree = _read_json(path)
        if tree is not None:
            stochastic, on_grid = tree.get("stochastic"), tree.get("grid")
            yield Evaluation(
                step=int(tree["step"]),
                deterministic=EvaluationResult.from_dict(tree["deterministic"]),
                stochastic=None if stochastic is None else EvaluationResult.from_dict(stochastic),
                on_grid=None if on_grid is None else GridPolicy.from_dict(on_grid),
            )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
