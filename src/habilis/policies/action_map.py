"""From the policy's units to the environment's: the part of a policy that knows the bounds, and how fast it may act."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.config import require
from habilis.core.specs import ActionSpec, action_parts
from habilis.core.tree import Tree

LAST = "/last_action"
"""Name, among observation groups, of the last action `[N, dim]` in units of half the range; 0 is the middle of it."""


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """What becomes of an action between the policy and the environment, besides its bounds."""

    smoothing: float = 0.0
    """Share of the last action that is kept: a low-pass of first order, of cut-off -log(smoothing) / (2 pi dt) Hz."""
    rate_limit: float | None = None
    """Largest change from one step to the next, in units of half the range; None for no limit."""

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, f"action.smoothing must be in [0, 1), got {self.smoothing}")
        limit = self.rate_limit
        require(limit is None or limit > 0, f"action.rate_limit must be positive, got {limit}")

    @property
    def remembers(self) -> bool:
        """Whether an action depends on the last one."""
        return self.smoothing > 0 or self.rate_limit is not None


PLAIN = ActionConfig()
"""Bounds and nothing else."""


class ActionMap(nn.Module):
    """Bound real values to [-1, 1], smooth them, limit their rate and scale them to the bounds; choices pass.

    A value without bounds passes too, and one with a single bound is clipped to it. Smoothing and limit start with each
    episode from zero: the middle of the range, and not whatever the policy wants first, so that a robot that has just
    been switched on does not jump either.

    Args:
        spec: what the environment takes.
        config: smoothing and limit.
        squash: bound by the hyperbolic tangent instead of clipping; all values have bounds.

    Raises:
        ConfigError: choices cannot be smoothed or limited.
    """

    scale: Tensor
    offset: Tensor
    lower: Tensor
    upper: Tensor
    is_real: Tensor
    keep: Tensor
    limit: Tensor

    def __init__(self, spec: ActionSpec, config: ActionConfig = PLAIN, *, squash: bool = False) -> None:
        super().__init__()
        box, choices = action_parts(spec)
        self.is_box = box is not None
        self.values = 0 if box is None else box.dim
        self.squash = squash
        self.remembers = config.remembers
        if box is None:
            require(
                not config.remembers, "action.smoothing and action.rate_limit are for real-valued actions: leave out"
            )
            return
        # choices that stand beside real values are like values without bounds
        beside = np.full(0 if choices is None else len(choices.nvec), np.inf)
        low, high = (np.concatenate([b.astype(np.float64), s * beside]) for b, s in ((box.low, -1), (box.high, 1)))
        bounded = np.isfinite(low) & np.isfinite(high)
        # infinities are left out before the arithmetic, not after it, so that none is subtracted from another
        finite_low, finite_high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.register_buffer("scale", torch.from_numpy((finite_high - finite_low) / 2).float())
        self.register_buffer("offset", torch.from_numpy((finite_high + finite_low) / 2).float())
        self.register_buffer("lower", torch.from_numpy(np.where(bounded, -1.0, low)).float())
        self.register_buffer("upper", torch.from_numpy(np.where(bounded, 1.0, high)).float())
        is_real = torch.arange(len(low)) < box.dim
        limit = np.inf if config.rate_limit is None else config.rate_limit
        self.register_buffer("is_real", is_real, persistent=False)
        self.register_buffer("keep", torch.where(is_real, config.smoothing, 0.0), persistent=False)
        self.register_buffer("limit", torch.where(is_real, limit, np.inf), persistent=False)

    def bound(self, action: Tensor) -> Tensor:
        """Return real values `[..., dim]` of the policy within [-1, 1], or as near to their bounds as they have any."""
        if self.squash:
            action = torch.where(self.is_real, action.tanh(), action)
        return torch.minimum(torch.maximum(action, self.lower), self.upper)

    def forward(self, action: Tensor) -> Tensor:
        """Map `[..., dim]` in the policy's units to the environment's, neither smoothed nor limited."""
        return self.bound(action) * self.scale + self.offset if self.is_box else action

    def step(self, action: Tensor, data: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the actions `[N, dim]` of a step.

        Args:
            action: in the policy's units.
            data: holds under `LAST` what was done last, where that is remembered.

        Returns:
            The actions in the environment's units, and under `LAST` what is to be remembered, if anything is.
        """
        if not self.remembers:
            return self(action), {}
        last, new = data[LAST], self.bound(action)
        new = new + self.keep * (last - new)
        new = torch.maximum(torch.minimum(new, last + self.limit), last - self.limit)
        return new * self.scale + self.offset, {LAST: new}

    def fresh(self, rows: int) -> Tensor:
        """Return the last action `[rows, dim]` when episodes begin."""
        return torch.zeros(rows, len(self.scale), dtype=self.scale.dtype, device=self.scale.device)
