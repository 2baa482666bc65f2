"""`habilis report`: one self-contained page on one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from habilis.cli.parse import parse
from habilis.evaluation.report import write_report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write one HTML page on runs, finished or not; seeds of one configuration become one curve with its spread."""

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="(required)"),
    ]
    """Directories of runs."""
    output: Path | None = None
    """The file to write; None: `report.html` in the run, or here where there are several."""


def run(argv: Sequence[str]) -> int:
    """Write the page and say where it is."""
    options = parse(Options, argv, "report")
    folder = options.runs[0] if len(options.runs) == 1 else Path()
    print(write_report(options.runs, options.output or folder / "report.html"))
    return 0
