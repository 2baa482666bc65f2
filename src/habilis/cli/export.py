"""`habilis export`: a policy as ONNX, written only after ONNX Runtime has agreed with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import tyro

from habilis.api import export
from habilis.cli.parse import parse
from habilis.deploy.export import TOLERANCE
from habilis.saved import Which, locate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a policy as ONNX, normaliser and action map inside, checked against the original."""

    run: tyro.conf.Positional[Path]
    """Directory of a run, or of a checkpoint in one."""
    output: Path | None = None
    """The folder to make; None: `export/` in the run."""
    which: Which = "last"
    """The last checkpoint of a run, or the one that evaluated best."""
    risk_level: float | None = None
    """Act by the mean of this share of the worst returns, where their distribution was learnt."""
    tolerance: float = TOLERANCE
    """Largest difference from the original's actions, in units of half their range. The folder records it."""


def run(argv: Sequence[str]) -> int:
    """Export and say where the file is."""
    options = parse(Options, argv, "export")
    run_dir, checkpoint = locate(options.run, options.which)
    folder = export(
        checkpoint, options.output or run_dir / "export", risk_level=options.risk_level, tolerance=options.tolerance
    )
    print(f"{folder / 'policy.onnx'}: the policy of {checkpoint}; ONNX Runtime agrees with it")
    print(f"Wherever it is taken, `habilis verify {quote(str(folder))}` checks it again.")
    return 0
