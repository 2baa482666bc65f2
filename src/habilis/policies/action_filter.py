"""How fast a policy may act: smoothing and a limit of the rate, inside the action map and so inside every export.

Both depend on the last action, which is memory of the policy. They start with each episode from where the robot rests,
and not from whatever the policy wants first: one that has just been switched on does not jump either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from habilis.core.config import coerce_fields, require
from habilis.core.specs import BoxAction
from habilis.core.tree import Tree

LAST = "/last_action"
"""Name, among observation groups, of how far the last action `[N, dim]` is from rest, in units of half the range."""


def make_filter(config: ActionConfig, box: BoxAction | None, choices: int) -> ActionFilter | None:
    """Return what filters actions of these real values and `choices`; None where nothing is to be filtered.

    Raises:
        ConfigError: as of `ActionFilter`, or there are choices alone.
    """
    told = "action.smoothing and action.rate_limit are for real values, not for choices: leave them out"
    require(box is not None or not config.remembers, told)
    return ActionFilter(config, box, choices) if box is not None and config.remembers else None


def _each(numbers: float | tuple[float, ...]) -> tuple[float, ...]:
    """Return one number as a tuple, several as they are."""
    return numbers if isinstance(numbers, tuple) else (numbers,)


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """What becomes of an action between the policy and the environment, besides its bounds."""

    smoothing: float = 0.0
    """Share of the last action that is kept: a low-pass of first order, with 1 / (1 - smoothing) steps to settle."""
    rate_limit: float | tuple[float, ...] | None = None
    """Largest change in a step: one number, or one for each value; None for no limit. In units of half the range, or in
    the environment's own where a value has not two bounds."""
    rest: float | tuple[float, ...] = 0.0
    """What is taken for the last action when an episode begins, likewise: from -1 to 1 where a value has two bounds,
    and 0 is the middle; anything where it has not."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        limits = () if self.rate_limit is None else _each(self.rate_limit)
        require(0 <= self.smoothing < 1, f"action.smoothing must be in [0, 1), got {self.smoothing}")
        require(all(limit > 0 for limit in limits), f"action.rate_limit must be positive, got {self.rate_limit}")
        require(all(map(math.isfinite, _each(self.rest))), f"action.rest must be finite, got {self.rest}")
        used = self.remembers or not any(_each(self.rest))
        require(used, "action.rest has no effect without action.smoothing or action.rate_limit: leave it out")

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
        box: the real values, which stand first in an action.
        choices: how many choices follow.

    Raises:
        ConfigError: there are not as many real values as numbers in the configuration, or one rests beyond its bounds.
    """

    keep: Tensor
    limit: Tensor
    rest: Tensor

    def __init__(self, config: ActionConfig, box: BoxAction, choices: int) -> None:
        super().__init__()
        limit = torch.inf if config.rate_limit is None else config.rate_limit
        columns = {
            "keep": ("smoothing", config.smoothing, 0.0),
            "limit": ("rate_limit", limit, torch.inf),
            "rest": ("rest", config.rest, 0.0),
        }
        for name, (option, of_values, of_choices) in columns.items():
            numbers = _each(of_values)
            numbers = numbers * box.dim if len(numbers) == 1 else numbers
            told = f"one number for each of the {box.dim} real values, or one for all, got {len(numbers)}"
            require(len(numbers) == box.dim, f"action.{option} must be {told}")
            self.register_buffer(name, torch.tensor([*numbers, *[of_choices] * choices]), persistent=False)
        self.rests = any(_each(config.rest))
        beyond = (self.rest[: box.dim].abs() > 1) & torch.from_numpy(box.bounded)
        told = f"action.rest must be from -1 to 1 where a value has two bounds, got {config.rest}"
        require(not bool(beyond.any()), told)

    def forward(self, action: Tensor, last: Tensor) -> Tensor:
        """Return what is done instead of `action` `[N, dim]`, after `last`."""
        smooth = action + self.keep * (last - action)
        return torch.maximum(torch.minimum(smooth, last + self.limit), last - self.limit)

    def recall(self, data: Tree) -> Tensor:
        """Return the last action `[N, dim]` by what is remembered of it: zeros where an episode begins."""
        return data[LAST] + self.rest if self.rests else data[LAST]

    def remember(self, done: Tensor) -> dict[str, Tensor]:
        """Return what `recall` takes in the next step."""
        return {LAST: done - self.rest if self.rests else done}

    def fresh(self, rows: int) -> Tensor:
        """Return what is remembered `[rows, dim]` when episodes begin."""
        return torch.zeros(rows, len(self.keep), dtype=self.keep.dtype, device=self.keep.device)
