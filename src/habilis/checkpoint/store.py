"""The checkpoints of one run: a folder of `step_*` folders, with the pointers `last` and `best` and with rotation.

A pointer is a text file that holds the name of a folder beside it, so that a run that was copied, zipped or moved to
another system keeps it (a symbolic link would be followed, copied twice or lost). One process writes; any may read.
A process killed at any moment leaves: the checkpoints published before, untouched, and hidden folders that the next
`save` clears away.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from habilis.checkpoint.checkpoint import publish, resolve, stage_checkpoint, verify_checkpoint
from habilis.core.errors import CheckpointError, ConfigError
from habilis.core.files import replace_text
from habilis.core.types import State

logger = logging.getLogger(__name__)

STEP_NAME = re.compile(r"step_(\d{12,})")


def step_name(step: int) -> str:
    """Return what the files of a step are called, so that their names are in the order of the steps."""
    return f"step_{step:012d}"


class CheckpointStore:
    """The checkpoints in `directory`, of which rotation keeps the newest `keep` and the best.

    Making a store touches nothing on the disk.

    Raises:
        ConfigError: If `keep` is below 1.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ConfigError(f"keep is the number of checkpoints to keep and must be at least 1, got {keep}")
        self.directory = Path(directory)
        self.keep = keep

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint at `step`, whether it exists or not."""
        return self.directory / step_name(step)

    def steps(self) -> list[int]:
        """Return the steps of the published checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        matches = (STEP_NAME.fullmatch(entry.name) for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, components: Mapping[str, State], meta: Mapping[str, Any], *, best: bool = False) -> Path:
        """Publish a checkpoint, point `last` to it and remove those that rotation no longer keeps.

        A checkpoint of the same step (of a run that was resumed from an earlier one) is replaced by the whole new one.
        Checkpoints of later steps belong to a future that this run has left: they go too, unless one is the best.

        Args:
            step: Env steps so far; `meta` gets it as `step`.
            components: State by component name.
            meta: See `save_checkpoint`.
            best: Whether `best` points to it from now on. It does so before `last` does: whoever goes on from what was
                last before knows of no better one yet.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: If it cannot be written; what was there before is whole.
        """
        path = self.path(step)
        self._tidy()
        staging = stage_checkpoint(path, components, meta={"step": step, **meta})
        try:
            if path.exists():
                os.rename(path, self._set_aside(path))
            publish(staging, path)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise CheckpointError(f"the checkpoint {path} could not be published ({error}): check the disk") from error
        shutil.rmtree(self._set_aside(path), ignore_errors=True)
        if best:
            self.mark_best(step)
        replace_text(self.directory / "last", path.name + "\n")
        self._rotate(step)
        return path

    def latest(self, components: Sequence[str] | None = None) -> Path | None:
        """Return the last whole checkpoint, None where there is none at all.

        The one that `last` points to is verified; if it or the pointer is damaged, a warning is logged and the newest
        whole one is taken.

        Args:
            components: What must be whole; None for everything. Who wants the policy alone need not wait for the sum
                of a large replay buffer.

        Raises:
            CheckpointError: If there are checkpoints but every one is damaged.
        """
        problems: list[str] = []
        for candidate in self._candidates(problems):
            try:
                verify_checkpoint(candidate, components)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if problems:
                logger.warning("%s; going back to %s", "; ".join(problems), candidate)
            return candidate
        if problems:
            raise CheckpointError(f"no checkpoint in {self.directory} is whole: {'; '.join(problems)}")
        return None

    def best(self, components: Sequence[str] | None = None) -> Path | None:
        """Return the checkpoint that `best` points to, None where none was marked.

        Args:
            components: What must be whole, as in `latest`.

        Raises:
            CheckpointError: If the pointer or its checkpoint is damaged.
        """
        path = self._pointed("best")
        if path is not None:
            verify_checkpoint(path, components)
        return path

    def mark_best(self, step: int) -> None:
        """Point `best` to the checkpoint at `step`, which rotation then keeps.

        Raises:
            CheckpointError: If there is no such checkpoint.
        """
        path = self.path(step)
        if not path.is_dir():
            raise CheckpointError(f"there is no checkpoint {path} to mark as the best: save it first")
        replace_text(self.directory / "best", path.name + "\n")

    def _pointed(self, name: str) -> Path | None:
        """Return the checkpoint folder that a pointer names, None where there is no pointer."""
        pointer = self.directory / name
        return resolve(pointer) if pointer.is_file() else None

    def _candidates(self, problems: list[str]) -> list[Path]:
        """Return the folders to try for `latest`, in order; what is wrong with the pointer is added to `problems`."""
        # a kill while a checkpoint was being replaced may have left the old one set aside and nothing in its place
        paths = [*map(self.path, self.steps()), *self.directory.glob(".replaced-step_*")]
        paths.sort(key=lambda path: path.name.removeprefix(".replaced-"), reverse=True)
        try:
            pointed = self._pointed("last")
        except CheckpointError as error:
            problems.append(str(error))
            return paths
        if pointed is None:
            return paths
        first = [pointed, *(path for path in paths if path == self._set_aside(pointed))]
        return first + [path for path in paths if path not in first]

    def _set_aside(self, path: Path) -> Path:
        return path.with_name(f".replaced-{path.name}")

    def _tidy(self) -> None:
        """Clear away what a killed process left half done."""
        for old in self.directory.glob(".replaced-step_*"):
            path = old.with_name(old.name.removeprefix(".replaced-"))
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, path)
        for leftover in (*self.directory.glob(".staging-*"), *self.directory.glob(".removed-*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def _rotate(self, step: int) -> None:
        """Remove all but the newest `keep` up to `step` and the best."""
        try:
            best = self._pointed("best")
        except CheckpointError as error:
            logger.warning("%s; no checkpoint is removed, so that the best one is not lost", error)
            return
        kept = [s for s in self.steps() if s <= step][-self.keep :]
        for old in self.steps():
            path = self.path(old)
            if old not in kept and path != best:
                removed = path.with_name(f".removed-{path.name}")
                os.rename(path, removed)  # so that a kill while it is deleted does not leave a damaged checkpoint
                shutil.rmtree(removed, ignore_errors=True)
