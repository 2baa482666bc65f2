"""The directory of a run: claimed by one process at a time, under a name of its own, gone if the run cannot start."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from habilis.checkpoint import CheckpointStore
from habilis.core.config import require
from habilis.core.errors import ConfigError
from habilis.core.files import numbered
from habilis.training.config import TrainConfig

try:
    import fcntl
except ImportError:  # Windows has none, and is trained on without a lock
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""An empty file, locked while a process trains. The lock is the system's, which takes it from a process that is killed;
the file itself means nothing."""
_held: set[Path] = set()
"""Directories in which this process trains: the system's lock keeps only other processes out."""
_holding = threading.Lock()
"""Guards `_held`."""
REMAINS = ("config.json", "command.txt", "metrics.jsonl", "tensorboard", "eval")
"""What a run that ended before its first checkpoint has written, of steps that will be made again."""


@contextmanager
def begin(config: TrainConfig) -> Iterator[Path]:
    """Claim a directory for a new run while the block runs; where nothing was written to it, none is left behind.

    Raises:
        ConfigError: it holds a run that has saved something, another process trains in it, or it cannot be written to.
    """
    path, made = _make(config)
    try:
        require(
            not (path / "config.json").exists() or _is_run(path),
            f"{path} holds a config.json that is no run's, or a damaged one's: choose another --run-dir",
        )
        with hold(path):
            require(
                not CheckpointStore(path / "checkpoints").steps(),
                f"{path} already holds a run: choose another --run-dir, or go on by --resume {quote(str(path))}",
            )
            try:
                yield path
            finally:  # by who holds it alone: another's lock is not to be removed
                if os.listdir(path) == [LOCK]:
                    (path / LOCK).unlink()
    finally:
        with suppress(OSError):  # a folder that holds something stays
            for folder in made:
                folder.rmdir()


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep every other run, of this process or another, from training in a directory while the block runs.

    Raises:
        ConfigError: another does, or the directory cannot be written to.
    """
    place = path.resolve()
    # before the file is opened: whoever closes it loses the lock that this process has on it
    with _holding:
        require(place not in _held, f"this process trains in {path} already: choose another run_dir")
        _held.add(place)
    try:
        with _locked(path):
            yield
    finally:
        with _holding:
            _held.remove(place)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep every other process from training in a directory while the block runs."""
    try:
        file = (path / LOCK).open("a")
    except OSError as error:
        raise _unusable(path, error) from error
    with file:
        try:
            # of this process alone: a worker that outlives it (as `flock` would be inherited) does not hold the run
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # a file system that knows no locks is trained on without one
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"another process trains in {path}: wait until it has ended, or choose another --run-dir"
                ) from error
        yield


def clear(path: Path) -> None:
    """Put aside what a run without a checkpoint has written, so that it can be started again in its directory."""
    if not _is_run(path):
        return  # whatever lies here is no run's
    aside = next(name for name in numbered(path / "earlier") if not name.exists())
    aside.mkdir()
    for name in REMAINS:
        if (path / name).exists():
            (path / name).rename(aside / name)


def _is_run(path: Path) -> bool:
    """Whether a directory holds the configuration of a run."""
    try:
        return "algorithm" in json.loads((path / "config.json").read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(config: TrainConfig) -> tuple[Path, list[Path]]:
    """Make the run's directory at once, before another run chooses its name; return it and all that was made."""
    if config.run_dir is not None:
        path = Path(config.run_dir)
        return path, _make_folders(path, exist_ok=True)
    name = f"{config.name}_s{config.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    paths = numbered(Path("runs") / config.env.replace("/", "-") / config.algorithm / name)
    while True:
        path = next(paths)
        with suppress(FileExistsError):
            return path, _make_folders(path, exist_ok=False)


def _make_folders(path: Path, *, exist_ok: bool) -> list[Path]:
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if not exist_ok and isinstance(error, FileExistsError):
            raise
        raise _unusable(path, error) from error
    return made


def _unusable(path: Path, error: OSError) -> ConfigError:
    what = "is a file" if path.is_file() else f"cannot be written to ({error.strerror})"
    return ConfigError(f"the run directory {path} {what}: choose another --run-dir")
