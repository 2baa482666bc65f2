"""MuJoCo's C library itself, for what its Python package has no word for."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import mujoco

PACKAGE = Path(mujoco.__file__).parent


@cache
def mujoco_library() -> ctypes.CDLL | None:
    """Return the library that is loaded already; None where MuJoCo's package does not have it."""
    names = ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll")
    libraries = [path for name in names for path in PACKAGE.glob(name)]
    return ctypes.CDLL(str(libraries[0])) if libraries else None
