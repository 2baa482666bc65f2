"""The files of a checkpoint: written to the disk for certain, named by their checksum, read back with it checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from habilis.core.errors import CheckpointError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and wait until the disk has it."""
    save_file(dict(tensors), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory of its own, so that the file may go afterwards."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)


def fingerprint(path: Path) -> dict[str, Any]:
    """Return `{"sha256": ..., "size": ...}` of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def check_fingerprint(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare a file with its fingerprint.

    Raises:
        CheckpointError: If it is missing, truncated or altered; the message names it.
    """
    advice = "the checkpoint is damaged, load another one of the run"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {advice}")
    size = path.stat().st_size
    if size != expected["size"]:
        raise CheckpointError(f"{path} has {size:,} bytes instead of {expected['size']:,}: {advice}")
    if fingerprint(path)["sha256"] != expected["sha256"]:
        raise CheckpointError(f"{path} does not match its checksum: {advice}")
