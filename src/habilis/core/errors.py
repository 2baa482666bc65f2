"""The errors of Habilis: each names what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
import errno
import importlib
from collections.abc import Iterable
from types import ModuleType


class HabilisError(Exception):
    """Base of every error that a user can mend; the command line prints its message without a traceback."""


class ConfigError(HabilisError):
    """A configuration, flag or identifier that cannot be used."""


class EnvError(HabilisError):
    """An environment that raised, or that breaks the contract of `VecEnv`."""


class EndlessEpisodeError(EnvError):
    """Episodes that take more steps than they are given."""


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


def import_extra(package: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error


def explain_os_error(error: OSError, *, named: bool = False) -> str:
    """Say why a file could not be written or read, and what to do.

    Args:
        error: what the system raised.
        named: whether the reader knows already which file it is.
    """
    file = "" if named or error.filename is None else f": {error.filename}"
    advice = {
        errno.ENOSPC: "make room on the disk, then go on",
        errno.EDQUOT: "make room within your quota, then go on",
        errno.EACCES: "choose another place, or ask for the right to write there",
        errno.EPERM: "choose another place, or ask for the right to write there",
        errno.EROFS: "choose another place: nothing can be written there",
        errno.ENOTDIR: "a part of the path is a file: choose another place",
        errno.EEXIST: "something of that name is in the way: choose another place",
        errno.EISDIR: "a directory of that name is in the way: choose another place",
        errno.ENOENT: "check the path",
    }.get(error.errno or 0, "see --debug for where it happened")
    what = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    return f"{what}{file}; {advice}"


def did_you_mean(name: str, known: Iterable[str], count: int = 3, prefix: str = "") -> str:
    """Return `" (did you mean 'a' or 'b'?)"` for the names nearest to `name`, after `prefix`, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)]
    return f" (did you mean {' or '.join(repr(prefix + k) for k in near)}?)" if near else ""
