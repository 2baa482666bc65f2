"""`habilis bench`: a suite of algorithms x environments x seeds, into JSON and a Markdown table."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from habilis.bench import run_suite
from habilis.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run what a suite still lacks, and write its table. Stop it at will: it goes on where it stopped."""

    suite: tyro.conf.Positional[str]
    """Name of the suite (`habilis list suites`)."""
    seeds: int = 5
    """Runs of each case, of seeds 0, 1, ..."""
    jobs: int = 1
    """Runs side by side, each learning on one thread."""
    only: str | None = None
    """A case's name, or a part of several, say `ppo-` or `Hopper`: leave the other cases as they are."""
    output: Path = Path("benchmarks/results")
    """Gets `<suite>/<case>.json` and `<suite>.md`."""
    runs: Path = Path("runs/bench")
    """Gets the runs."""


def run(argv: Sequence[str]) -> int:
    """Run the suite and print its table."""
    options = parse(Options, argv, "bench")
    # whoever ends this process wants its runs to save and end too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    table = run_suite(
        options.suite,
        seeds=options.seeds,
        jobs=options.jobs,
        only=options.only,
        output=options.output,
        runs=options.runs,
        say=lambda text: print(text, flush=True),
    )
    print(f"\n{table.read_text()}\n{table}")
    return 0
