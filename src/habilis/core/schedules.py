"""What changes as training goes on: a value's course over `progress`, which runs from 0 to 1."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["constant", "linear"]


def scheduled(initial: float, schedule: Schedule, progress: float) -> float:
    """Return the value at `progress`: `initial` throughout, or falling linearly to zero."""
    return initial if schedule == "constant" else initial * max(0.0, 1.0 - progress)
