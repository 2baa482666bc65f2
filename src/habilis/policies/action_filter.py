"""How fast a policy may act: smoothing and a limit of the rate, inside the action map and so inside every export.

Both depend on the last action, which is memory of the policy. They start with each episode from zero, the middle of
the range, and not from whatever the policy wants first: a robot that has just been switched on does not jump either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from habilis.core.config import require
from habilis.core.tree import Tree

LAST = "/last_action"
"""Name, among observation groups, of the last action `[N, dim]` in units of half the range; 0 is the middle of it."""


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """What becomes of an action between the policy and the environment, besides its bounds."""

    smoothing: float = 0.0
    """Share of the last action that is kept: a low-pass of first order, with 1 / (1 - smoothing) steps to settle."""
    rate_limit: float | None = None
    """Largest change from one step to the next, in units of half the range; None for no limit."""

    def __post_init__(self) -> None:
        limit = self.rate_limit
        require(0 <= self.smoothing < 1, f"action.smoothing must be in [0, 1), got {self.smoothing}")
        require(limit is None or limit > 0, f"action.rate_limit must be positive, got {limit}")

    @property
    def remembers(self) -> bool:
        """Whether an action depends on the last one."""
        return self.smoothing > 0 or self.rate_limit is not None


PLAIN = ActionConfig()
"""Bounds and nothing else."""


class ActionFilter(nn.Module):
    """Smooth real values, then limit their rate; the choices beside them pass.

    Args:
        config: smoothing and limit.
        values: how many real values stand first in an action.
        choices: how many choices follow.

    Raises:
        ConfigError: there are no real values.
    """

    keep: Tensor
    limit: Tensor

    def __init__(self, config: ActionConfig, values: int, choices: int) -> None:
        super().__init__()
        require(
            values > 0, "action.smoothing and action.rate_limit are for real values, not for choices: leave them out"
        )
        limit = torch.inf if config.rate_limit is None else config.rate_limit
        keeps, limits = [config.smoothing] * values + [0.0] * choices, [limit] * values + [torch.inf] * choices
        self.register_buffer("keep", torch.tensor(keeps), persistent=False)
        self.register_buffer("limit", torch.tensor(limits), persistent=False)

    def forward(self, action: Tensor, data: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is done instead of `action` `[N, dim]`, and the same under `LAST`, where `data` has the last."""
        last = data[LAST]
        smooth = action + self.keep * (last - action)
        new = torch.maximum(torch.minimum(smooth, last + self.limit), last - self.limit)
        return new, {LAST: new}

    def fresh(self, rows: int) -> Tensor:
        """Return the last action `[rows, dim]` when episodes begin."""
        return torch.zeros(rows, len(self.keep), dtype=self.keep.dtype, device=self.keep.device)
