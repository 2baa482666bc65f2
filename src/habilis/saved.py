"""What a run has saved: its configuration, and the checkpoint that a path means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from habilis.build import ALGORITHMS
from habilis.checkpoint import CheckpointStore
from habilis.checkpoint.checkpoint import resolve as resolve_pointer
from habilis.core.config import override, require, to_dict
from habilis.core.errors import CheckpointError, ConfigError
from habilis.core.files import replace_text
from habilis.core.provenance import versions
from habilis.deploy.contract import POLICY_FILE
from habilis.training.config import TrainConfig

Which = Literal["last", "best"]
"""Which checkpoint of a run's directory: the last, or the one that evaluated best."""


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Write what a run is trained with, and by which versions, in one step."""
    record = {"config": to_dict(config), "versions": versions()}
    replace_text(run_dir / "config.json", json.dumps(record, indent=2) + "\n")


def load_config(run_dir: str | Path) -> TrainConfig:
    """Read the configuration of a run.

    Raises:
        ConfigError: the directory is no run, or its configuration is damaged.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{run_dir} is not a run: it has no config.json; give the directory that `habilis train` named"
        )
    try:
        tree = json.loads(path.read_text())["config"]
        return config_from_dict(tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is truncated or altered ({type(error).__name__}: {error}): put back a copy of it, or that of a "
            f"run with the same settings; {path.with_name('command.txt')} says which they were"
        ) from error


def config_from_dict(tree: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that `habilis.core.config.to_dict` was given."""
    base = TrainConfig(algorithm=tree["algorithm"], env=tree["env"], algo=ALGORITHMS[tree["algorithm"]].config())
    return override(base, tree)


def locate(path: Path, which: Which) -> tuple[Path, Path]:
    """Return the run and the checkpoint that a path means: a run's directory, or a checkpoint in one or its pointer.

    Raises:
        CheckpointError: the run has no such checkpoint that is whole.
        ConfigError: the path does not exist, or is one checkpoint and the best of a run is asked for; or `which` is
            neither.
    """
    require(which in get_args(Which), f"which must be {' or '.join(map(repr, get_args(Which)))}, got {which!r}")
    given, path = path, resolve_pointer(path) if path.name in ("last", "best") else path
    require(not (path / POLICY_FILE).is_file(), f"{path} is an exported policy: give the run, or `habilis verify` it")
    if (path / "manifest.json").is_file():
        chosen = which == "last" or given.name == "best"
        require(chosen, f"{given} is one checkpoint, and the best of a run is asked for: give the run's directory")
        return (path if len(path.parts) > 2 else path.resolve()).parent.parent, path
    what = "is a file" if path.is_file() else "does not exist"
    require(path.is_dir(), f"{path} {what}: give a run's directory or a checkpoint in one")
    store = CheckpointStore(path / "checkpoints")
    checkpoint = store.best(["policy"]) if which == "best" else store.latest(["policy"])
    if checkpoint is None:
        raise CheckpointError(f"{path} holds no {which} checkpoint: give the directory of a run that has saved one")
    return path, checkpoint
