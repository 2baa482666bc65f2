"""F6: what a suite consists of: cases, each an algorithm on an environment with the scores it is to reach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from habilis.api import default_config
from habilis.core.options import in_effect
from habilis.training.config import TrainConfig

IDENTITY = ("seed", "run_dir", "name")
"""Keys of a configuration that do not change what is measured."""


def as_file_name(text: str) -> str:
    """Return a text, `dqn longer` on `habilis/Catch-v0` say, as it is written in the names of files."""
    return text.replace("/", "-").replace(" ", "-")


@dataclass(frozen=True)
class Goal:
    """What the mean over the seeds is to reach."""

    value: float
    measure: str = "return"
    """`return`, `success_rate`, or a term of the evaluation, `tracking_error` say."""
    at_most: bool = False
    at: int | None = None
    """Env steps of the evaluation during the run that is judged, by its return; None: the one at the end."""

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.value:g}"

    def is_reached(self, mean: float) -> bool:
        """Whether a mean is good enough."""
        return mean <= self.value if self.at_most else mean >= self.value


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One algorithm on one environment."""

    algorithm: str
    env: str
    total_timesteps: int | None = None
    """Env steps of a run; None for the preset's."""
    episodes: int = 20
    """Of the evaluation at the end."""
    goals: tuple[Goal, ...] = ()
    """What is to be reached; a case without goals is judged by nothing, and its return is shown."""
    reference: str = ""
    """What others reached, and where that is written."""
    overrides: Mapping[str, int | float | str | None] = field(default_factory=dict)
    """Dotted configuration keys besides the preset's."""
    label: str | None = None
    """What the algorithm is called where the overrides make another of it; None: by its name."""

    @property
    def title(self) -> str:
        """What the algorithm is called in tables."""
        return self.label or self.algorithm

    @property
    def name(self) -> str:
        """Name in files, say `ppo-Hopper-v5`."""
        return as_file_name(f"{self.title}-{self.env}")

    @property
    def folder(self) -> str:
        """Name of the folder of its runs, which cases of one configuration share."""
        return f"{self.algorithm}-{self.env}-{self.fingerprint()}".replace("/", "-")

    @property
    def settings(self) -> dict[str, int | float | str | None]:
        """Everything the command line is told besides algorithm, environment and seed."""
        steps = {} if self.total_timesteps is None else {"total_timesteps": self.total_timesteps}
        return {**steps, "threads": 1, "env_threads": 1, **self.overrides}

    def flags(self) -> list[str]:
        """Return the arguments of `habilis train`, but for seed and directory."""
        words = [word for key, value in self.settings.items() for word in _flag(key.replace("_", "-"), value)]
        return [self.algorithm, "--env", self.env, *words]

    def config(self) -> dict[str, Any]:
        """Return the configuration that is measured, presets and defaults included, as JSON holds it."""
        return as_measured(default_config(self.algorithm, self.env, **self.settings))

    def fingerprint(self) -> str:
        """Return eight letters that change with the configuration."""
        return fingerprint(self.config())


def as_measured(config: TrainConfig) -> dict[str, Any]:
    """Return what of a configuration changes what is measured, as JSON holds it."""
    tree = {key: value for key, value in in_effect(config).items() if key not in IDENTITY}
    return dict(json.loads(json.dumps(tree)))


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return eight letters that change with a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def _flag(key: str, value: float | str | None) -> list[str]:
    """Return what the command line calls a key and its value; a switch is turned off by `no-` before its name."""
    if isinstance(value, bool):
        group, dot, name = key.rpartition(".")
        return [f"--{group}{dot}{'' if value else 'no-'}{name}"]
    return [f"--{key}", str(value)]
