"""`habilis train`: the options are the fields of `TrainConfig`, with the values of the preset as defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tyro

from habilis.api import Run, default_config, resume, train_config
from habilis.build import ALGORITHMS
from habilis.cli.parse import KeyValues, parse, read_values, write_values
from habilis.core.config import override
from habilis.core.errors import ConfigError
from habilis.training.config import TrainConfig

USAGE = """usage: habilis train ALGORITHM --env ID [OPTIONS]
       habilis train --resume RUN [--total-timesteps N]

`habilis train ALGORITHM --env ID --help` shows every option and what the preset sets it to.
Algorithms: {algorithms}. `habilis list envs` lists environments."""


@dataclass(frozen=True, kw_only=True)
class Options(TrainConfig):
    """Train a policy. Defaults are those of the preset of this algorithm on this environment.

    Plugins are named by `--plugins NAME ...` (`habilis list plugins`), and have options of their own from there on.
    """

    algorithm: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    env_kwargs: KeyValues = field(default_factory=dict)
    """Arguments of the environment, in pairs."""
    plugins: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Go on with a run from its last whole checkpoint, exactly where it stopped."""

    resume: Path
    """Directory of the run."""
    total_timesteps: int | None = None
    """Environment steps after which training ends, in all; None: as the run was meant to."""


def run(argv: Sequence[str]) -> int:
    """Train, or go on training."""
    command = shlex.join(["habilis", "train", *argv])
    words = [word.replace("_", "-").partition("=")[0] if word.startswith("--") else word for word in argv]
    if "--resume" in words:
        options = parse(ResumeOptions, argv, "train")
        changes = {} if options.total_timesteps is None else {"total_timesteps": options.total_timesteps}
        return _conclude(resume(options.resume, command=command, **changes))
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE.format(algorithms=", ".join(ALGORITHMS)))
        return 0
    if argv[0].startswith("-"):
        raise ConfigError(f"`habilis train` starts with the algorithm, got {argv[0]!r}: habilis train ppo --env ID ...")
    config = read_config(argv[0], argv[1:])
    return _conclude(train_config(config, command=command))


def read_config(algorithm: str, argv: Sequence[str]) -> TrainConfig:
    """Return the preset of an algorithm and the environment named in `argv`, with the flags in `argv` applied."""
    env = _find_env(argv)
    base = default_config(algorithm, env or "")
    names, argv = _take_plugins(argv)
    if names is not None:
        base = override(base, {"plugins": {name: base.plugins.get(name, {}) for name in names}})
    values = {f.name: getattr(base, f.name) for f in fields(base)}
    values |= {"env": env or tyro.MISSING, "env_kwargs": write_values(base.env_kwargs)}
    options = parse(Options, argv, f"train {algorithm}", default=Options(**values))
    return TrainConfig(**{**vars(options), "env_kwargs": read_values(options.env_kwargs)})


def _find_env(argv: Sequence[str]) -> str | None:
    """Return what `--env` says, which decides the defaults of all else."""
    for index, word in enumerate(argv):
        if word == "--env":
            return argv[index + 1] if index + 1 < len(argv) else None
        if word.startswith("--env="):
            return word.partition("=")[2]
    return None


def _take_plugins(argv: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Return the words after `--plugins`, None where it is not given, and `argv` without them and it."""
    words = list(argv)
    if "--plugins" not in words:
        return None, words
    start = words.index("--plugins")
    end = next((i for i in range(start + 1, len(words)) if words[i].startswith("-")), len(words))
    return [name.replace("-", "_") for name in words[start + 1 : end]], words[:start] + words[end:]


def _conclude(run: Run) -> int:
    """Say what came of it and what to do next."""
    path = shlex.quote(str(run.path))
    if run.interrupted:
        print(f"Stopped and saved. Go on with: habilis train --resume {path}")
        return 130
    if run.evaluation is not None:
        print(f"\n{run.evaluation}")
    print(f"\nThe run is in {run.path}. What next:")
    for command, purpose in (
        (f"habilis report {path}", "curves, losses and evaluation on one page"),
        (f"habilis evaluate {path} --episodes 100", "how good is it?"),
        (f"habilis play {path}", "watch it"),
        (f"habilis export {path} --output policy/", "take it elsewhere"),
    ):
        print(f"  {command}  # {purpose}")
    return 0
