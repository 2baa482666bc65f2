"""From the policy's units to the environment's: the part of a policy that knows the bounds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from habilis.core.specs import ActionSpec, action_parts, choices_of
from habilis.core.tree import Tree
from habilis.policies.action_filter import PLAIN, ActionConfig, make_filter


class ActionMap(nn.Module):
    """Bound real values to [-1, 1], filter them, and scale them to the bounds of the environment.

    A value without bounds passes, and one with a single bound is clipped to it. A choice is counted from what the
    environment calls the first; mostly that is 0, and it passes.

    Args:
        spec: what the environment takes.
        config: what smooths actions or limits their rate.
        squash: bound by the hyperbolic tangent instead of clipping; all values have bounds.
    """

    scale: Tensor
    offset: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(self, spec: ActionSpec, config: ActionConfig = PLAIN, *, squash: bool = False) -> None:
        super().__init__()
        box, choosing = action_parts(spec)
        starts = choices_of(choosing)[1]
        self.values = 0 if box is None else box.dim
        self.squash = squash
        self.shifts = any(starts)
        choices = 0 if box is None else len(starts)
        self.filter = make_filter(config, box, choices)
        if box is None:
            if self.shifts:
                self.register_buffer("offset", torch.tensor(starts))
            return
        middle, half = box.middle_and_half
        # choices that stand beside real values are like values without bounds
        columns = {
            "scale": np.append(half, np.ones(choices)),
            "offset": np.append(middle, starts),
            "lower": np.append(np.where(box.bounded, -1.0, box.low), np.full(choices, -np.inf)),
            "upper": np.append(np.where(box.bounded, 1.0, box.high), np.full(choices, np.inf)),
        }
        for name, column in columns.items():
            self.register_buffer(name, torch.from_numpy(column).float())

    def bound(self, action: Tensor) -> Tensor:
        """Return real values `[..., dim]` of the policy within [-1, 1], or as near to their bounds as they have any."""
        if self.squash:
            action = torch.cat([action[..., : self.values].tanh(), action[..., self.values :]], -1)
        return action.clamp(self.lower, self.upper)

    def forward(self, action: Tensor) -> Tensor:
        """Map `[..., dim]` in the policy's units to the environment's, unfiltered."""
        if self.values:
            return self.bound(action) * self.scale + self.offset
        return action + self.offset if self.shifts else action

    def step(self, action: Tensor, data: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the actions `[N, dim]` of one step; what the filter remembers is in `data`, and in the second result."""
        if self.filter is None:
            return self(action), {}
        last = self.filter.recall(data).clamp(self.lower, self.upper)  # at rest it may lie beyond a single bound
        done = self.filter(self.bound(action), last)
        return done * self.scale + self.offset, self.filter.remember(done)

    def inverse(self, env_action: Tensor) -> Tensor:
        """Return the policy's action of which `forward` makes `env_action`, or the nearest; 0 if bounds are equal."""
        if not self.values:
            return env_action - self.offset if self.shifts else env_action
        action = ((env_action - self.offset) / self.scale.where(self.scale != 0, 1)).clamp(self.lower, self.upper)
        if self.squash:  # the tangent only tends to the bounds
            most = 1 - torch.finfo(action.dtype).eps
            action = torch.cat([action[..., : self.values].clamp(-most, most).atanh(), action[..., self.values :]], -1)
        return action
