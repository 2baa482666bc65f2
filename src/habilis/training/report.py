"""Where a run stands: what a trainer counts, and what it yields after each iteration."""

from __future__ import annotations

from dataclasses import dataclass, field

from habilis.core.types import Metrics


@dataclass(slots=True)
class Counters:
    """What a trainer counts."""

    iteration: int = 0
    env_steps: int = 0
    """Environment steps so far, over all environments."""


@dataclass(frozen=True, slots=True)
class Report:
    """Where a run stands after one iteration."""

    iteration: int
    env_steps: int
    """Environment steps so far, over all environments."""
    gradient_steps: int
    """Gradient steps so far."""
    metrics: Metrics = field(default_factory=dict)
    """Scalars of the last update; empty before the first."""
