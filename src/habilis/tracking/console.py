"""How progress looks: one plain line for a log file, a small live display for a terminal; functions of a `Status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES = {
    "return": ("rollout/ep_rew_mean", "{:.1f}"),
    "length": ("rollout/ep_len_mean", "{:.0f}"),
    "success": ("rollout/success_rate", "{:.0%}"),
    "eval": ("eval/mean_reward", "{:.1f}"),
    "eval success": ("eval/success_rate", "{:.0%}"),
}
"""What is shown of the run besides speed and time: label, scalar and format, where the run has the scalar."""

MAX_LOSSES = 12
"""Scalars of `train/` in the panel, so that it fits on a screen."""


@dataclass(frozen=True)
class Status:
    """Where a run is."""

    step: int
    """Env steps so far."""
    total: int
    """Env steps in all."""
    speed: float | None
    """Env steps a second of late; None before it is known."""
    metrics: Mapping[str, float]
    """The latest value of every scalar."""

    @property
    def fraction(self) -> float:
        """The part that is done, from 0 to 1."""
        return min(1.0, self.step / max(1, self.total))

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the present speed; None while that is not known or 0."""
        return max(0, self.total - self.step) / self.speed if self.speed else None


def format_duration(seconds: float) -> str:
    """Return a duration to two units: `45s`, `1m31s`, `2h05m`, `3d04h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_figures(status: Status) -> dict[str, str]:
    """Return the figures to show by label, those that the run has, ending with the time left."""
    figures = {
        label: form.format(status.metrics[name]) for label, (name, form) in FIGURES.items() if name in status.metrics
    }
    if status.seconds_left is not None:
        figures["left"] = format_duration(status.seconds_left)
    return figures


def format_line(status: Status) -> str:
    """Return one line of plain text, its numbers aligned with those of the lines before and after."""
    total = f"{status.total:,}"
    parts = [f"{status.step:>{len(total)},} / {total}", f"{status.fraction:6.1%}"]
    if status.speed is not None:
        parts.append(f"{status.speed:,.0f} steps/s")
    parts += [f"{label} {value}" for label, value in format_figures(status).items()]
    return "  " + "  ".join(parts)


def render(status: Status) -> RenderableType:
    """Return the live display: a bar with steps, share and speed, a row of figures, a panel of losses."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(ratio=1)
    speed = "" if status.speed is None else f"{status.speed:,.0f} steps/s"
    head.add_row(
        ProgressBar(total=1.0, completed=status.fraction),
        Text(f"{status.step:,} / {status.total:,}", no_wrap=True),
        Text(f"{status.fraction:.1%}", style="bold", no_wrap=True),
        Text(speed, no_wrap=True),
    )
    figures = Text("   ").join(
        Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in format_figures(status).items()
    )
    losses = {k.removeprefix("train/"): v for k, v in status.metrics.items() if k.startswith("train/")}
    if not losses:
        return Group(head, figures)
    cells = Table.grid(padding=(0, 3))
    shown = [Text.assemble((f"{k} ", "dim"), f"{v:.4g}") for k, v in list(losses.items())[:MAX_LOSSES]]
    for first in range(0, len(shown), 3):
        cells.add_row(*shown[first : first + 3])
    return Group(head, figures, Panel(cells, title="train", title_align="left", border_style="dim", expand=False))
