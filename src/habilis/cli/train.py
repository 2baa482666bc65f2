"""`habilis train`: the options are the fields of `TrainConfig`, with the values of the preset as defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tyro

from habilis.api import Run, default_config, require_changeable, resume, tell_version, train_config
from habilis.build import ALGORITHMS
from habilis.cli.parse import KeyValues, parse, read_values
from habilis.core.config import override, to_dict
from habilis.core.errors import ConfigError
from habilis.envs.make import newest_version
from habilis.saved import load_config
from habilis.training.config import TrainConfig

USAGE = """usage: habilis train ALGORITHM --env ID [OPTIONS]
       habilis train --resume RUN [OPTIONS]

`habilis train ALGORITHM --env ID --help` shows every option and what the preset sets it to, `habilis train --resume RUN
--help` those that a run can go on with, and what they are (its environment's arguments stand in its config.json).
Algorithms: {algorithms}. `habilis list envs` lists environments."""


@dataclass(frozen=True, kw_only=True)
class Options(TrainConfig):
    """Train a policy. Defaults are those of the preset of this algorithm on this environment.

    Plugins are named by `--plugins NAME ...` (`habilis list plugins`), and have options of their own from there on.
    """

    algorithm: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    env_kwargs: KeyValues = field(default_factory=dict)
    """Arguments of the environment, in pairs, besides those of the preset or the run."""
    plugins: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check nothing before all flags are read: until then `env` may be missing."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(Options):
    """Go on with a run from its last whole checkpoint, exactly where it stopped; from the beginning, if it saved none.

    Defaults are what the run has been trained with; what is changed here holds from here on.
    """

    resume: Path
    """Directory of the run."""
    env: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    num_envs: tyro.conf.Suppress[tyro.conf.Fixed[int]]
    frame_stack: tyro.conf.Suppress[tyro.conf.Fixed[int]]
    seed: tyro.conf.Suppress[tyro.conf.Fixed[int]]
    run_dir: tyro.conf.Suppress[tyro.conf.Fixed[str | None]]
    name: tyro.conf.Suppress[tyro.conf.Fixed[str]]


def run(argv: Sequence[str]) -> int:
    """Train, or go on training."""
    command = shlex.join(["habilis", "train", *argv])
    run_dir = _find(argv, "--resume")
    if run_dir is not None:
        return _conclude(resume(run_dir, command=command, **read_changes(run_dir, argv)))
    resuming = any(word.partition("=")[0] == "--resume" for word in argv)
    if resuming and not {"-h", "--help"} & set(argv):
        raise ConfigError("--resume takes the directory of the run that is to go on: habilis train --resume RUN")
    if resuming or not argv or argv[0] in ("-h", "--help"):
        print(USAGE.format(algorithms=", ".join(ALGORITHMS)))
        return 0
    if argv[0].startswith("-"):
        raise ConfigError(f"`habilis train` starts with the algorithm, got {argv[0]!r}: habilis train ppo --env ID ...")
    config = read_config(argv[0], argv[1:])
    tell_version(_find(argv, "--env") or config.env, config)
    return _conclude(train_config(config, command=command))


def read_config(algorithm: str, argv: Sequence[str]) -> TrainConfig:
    """Return the preset of an algorithm and the environment named in `argv`, with the flags in `argv` applied."""
    env, backend = _find(argv, "--env"), _find(argv, "--env-backend")
    base = default_config(algorithm, env or "", **({"env_backend": backend} if backend else {}))
    return _read_options(Options, base, argv, f"train {algorithm}", env=env or tyro.MISSING)


def read_changes(run_dir: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return what the flags in `argv` change of the configuration of a run."""
    base = load_config(run_dir)
    require_changeable(word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv if word[:2] == "--")
    changed = _read_options(ResumeOptions, base, argv, "train", resume=Path(run_dir))
    before, after = to_dict(base), to_dict(changed)
    return {key: value for key, value in after.items() if value != before[key]}


def _read_options(
    kind: type[Options], base: TrainConfig, argv: Sequence[str], command: str, **given: Any
) -> TrainConfig:
    """Return `base` with the flags in `argv` applied; `given` are defaults that it does not have."""
    names, argv = _take_plugins(argv)
    if names is not None:
        base = override(base, {"plugins": {name: base.plugins.get(name, {}) for name in names}})
    values = {f.name: getattr(base, f.name) for f in fields(base)} | {"env_kwargs": {}} | given
    options = parse(kind, argv, command, default=kind(**values))
    found = {f.name: getattr(options, f.name) for f in fields(base)}
    found["env_kwargs"] = {**base.env_kwargs, **read_values(options.env_kwargs)}
    found["env"] = newest_version(options.env, "gymnasium" if options.env_async else options.env_backend)
    return TrainConfig(**found)


def _find(argv: Sequence[str], flag: str) -> str | None:
    """Return what a flag says that decides the defaults of all else; None where it is not there, or says nothing."""
    said = None
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:  # the last one counts, as everywhere
            value = value if equals else (argv[index + 1] if index + 1 < len(argv) else "")
            said = value if value and not value.startswith("-") else None
    return said


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
