"""Habilis: deep reinforcement learning for robotics, from a robot model and a reward to a verified policy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from habilis.core.version import __version__

if TYPE_CHECKING:
    from habilis.api import Run, evaluate, export, load, make_env, play, record_video, resume, train


__all__ = ["Run", "__version__", "evaluate", "export", "load", "make_env", "play", "record_video", "resume", "train"]


def __getattr__(name: str) -> Any:
    # importing PyTorch takes most of a second, which `habilis --help` need not
    if name in __all__:
        return getattr(importlib.import_module("habilis.api"), name)
    raise AttributeError(f"module 'habilis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
