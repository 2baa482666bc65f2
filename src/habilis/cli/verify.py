"""`habilis verify`: an exported policy on this computer, against what the original answered when it was exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from habilis.cli.parse import parse
from habilis.deploy.verify import verify_policy


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check an exported policy: its files are whole, and it answers here as the original did."""

    folder: tyro.conf.Positional[Path]
    """What `habilis export` wrote."""


def run(argv: Sequence[str]) -> int:
    """Verify; a folder that fails ends with an error."""
    options = parse(Options, argv, "verify")
    policy = verify_policy(options.folder)
    print(f"{options.folder}: whole, and answers as the original did ({policy.spec.id})")
    return 0
