"""What decides the numbers that a run computes, besides its configuration."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from habilis.core.acceleration import cpu_capabilities
from habilis.core.version import __version__


def versions() -> dict[str, str]:
    """Return what decides the numbers that a run computes: packages, the commit of this one, processor, by name."""
    ours = {"python": sys.version.split()[0], "platform": platform.platform(), "habilis": __version__}
    # which PyTorch before 2.13 may not tell
    ours["processor"] = str(cpu_capabilities().get("cpu_name", platform.processor()))
    found = {"commit": commit_of(Path(__file__).parents[2])}
    found |= {name: _version(name) for name in ("torch", "numpy", "mujoco", "gymnasium", "envpool")}
    return ours | {name: version for name, version in found.items() if version}


@cache
def commit_of(source: Path) -> str | None:
    """Return the commit of a repository's folder `src`, `+changed` where that differs; None of what is no such folder.

    What is installed among a user's packages is no such folder, even where these lie in a repository of theirs.
    """

    def git(*words: str) -> list[str]:
        call = ["git", "-C", str(source), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()

    try:
        prefix, commit = git("rev-parse", "--show-prefix", "HEAD")
        return (commit + "+changed" * bool(git("status", "--porcelain", "."))) if prefix == "src/" else None
    except (OSError, ValueError, subprocess.CalledProcessError):  # no git, no repository, or nothing committed yet
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
