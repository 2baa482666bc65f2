"""From the policy's units to the environment's: the part of a policy that knows the bounds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.specs import ActionSpec, BoxAction


class ActionMap(nn.Module):
    """Clip to [-1, 1] and scale to the bounds of a `BoxAction`; a discrete action passes as it is.

    A value without bounds passes too, and one with a single bound is clipped to it.
    """

    scale: Tensor
    offset: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        self.is_box = isinstance(spec, BoxAction)
        if isinstance(spec, BoxAction):
            low, high = spec.low.astype(np.float64), spec.high.astype(np.float64)
            bounded = np.isfinite(low) & np.isfinite(high)
            # infinities are left out before the arithmetic, not after it, so that none is subtracted from another
            finite_low, finite_high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
            self.register_buffer("scale", torch.from_numpy((finite_high - finite_low) / 2).float())
            self.register_buffer("offset", torch.from_numpy((finite_high + finite_low) / 2).float())
            self.register_buffer("lower", torch.from_numpy(np.where(bounded, -1.0, low)).float())
            self.register_buffer("upper", torch.from_numpy(np.where(bounded, 1.0, high)).float())

    def forward(self, action: Tensor) -> Tensor:
        """Map `[..., dim]` in the policy's units to the environment's."""
        if not self.is_box:
            return action
        return torch.minimum(torch.maximum(action, self.lower), self.upper) * self.scale + self.offset
