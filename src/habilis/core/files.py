"""Files that are written whole or not at all, and names under which there is nothing yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from habilis.core.errors import HabilisError, explain_os_error


def numbered(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a path, then the same with -2, -3 and so on before its suffix, for who looks for a name that is free."""
    stem = path.name.removesuffix(suffix)
    yield path
    yield from (path.with_name(f"{stem}-{number}{suffix}") for number in count(2))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names of the files in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file in one step: whoever reads it sees the old text or the new one.

    Raises:
        HabilisError: it cannot be written; the old text is still there.
    """
    temporary = path.with_name(f".staging-{path.name}")
    try:
        write_bytes(temporary, text.encode())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HabilisError(f"{path} could not be written ({explain_os_error(error, named=True)})") from error
