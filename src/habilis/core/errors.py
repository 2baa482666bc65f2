"""The errors of Habilis: each names what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HabilisError(Exception):
    """Base of every error that a user can mend; the command line prints its message without a traceback."""


class ConfigError(HabilisError):
    """A configuration, flag or identifier that cannot be used."""


class EnvError(HabilisError):
    """An environment that raised, or that breaks the contract of `VecEnv`."""


class NonFiniteError(HabilisError):
    """A quantity that is not finite (NaN or infinity), with where it first appeared."""


class CheckpointError(HabilisError):
    """A checkpoint that is missing, incomplete, altered, or of another version."""


class ExportError(HabilisError):
    """An exported policy that disagrees with the original, or that cannot be exported."""


class MissingExtraError(HabilisError, ImportError):
    """An optional package that is not installed, with the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: run `pip install 'habilis[{extra}]'`")


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return `" (did you mean 'a' or 'b'?)"` for the names nearest to `name`, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)]
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
