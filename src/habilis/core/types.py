"""The data that flows through the house: observations, steps and metrics, all of them tensors.

Shapes use N for the number of environments and T for time; time-major data is `[T, N, ...]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from habilis.core.tree import tree_to

Obs = Mapping[str, Tensor]
"""Observation groups. `"policy"` is what acts; `"critic"` may be privileged; images are uint8, all else float32."""

Metrics = dict[str, Tensor]
"""Named scalars of an update: detached 0-d tensors, so that nothing waits for a device until they are logged."""

State = dict[str, Any]
"""What `state_dict` returns: nested dicts and lists of tensors, arrays, numbers, strings, booleans and None."""


class NamedRows(Mapping[str, Tensor]):
    """Named tensors `[N]` that are the rows of one, `[k, N]`: each is made when it is asked for.

    An environment that tells many numbers tells them so for what one costs.
    """

    __slots__ = ("names", "rows")

    def __init__(self, names: tuple[str, ...], rows: Tensor) -> None:
        self.names = names
        self.rows = rows

    def __getitem__(self, name: str) -> Tensor:
        """Return the row of that name."""
        try:
            return self.rows[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the rows."""
        return iter(self.names)

    def __len__(self) -> int:
        """Return k."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return what the names stand for."""
        return repr(dict(self))


@dataclass(frozen=True, slots=True)
class Step:
    """What N environments answer to one action each; the tensors are fresh: no environment writes to them again."""

    obs: Obs
    """What to act on next: already reset where an episode ended."""
    next_obs: Obs
    """The true successor of the action; the same object as `obs` where no episode ended in this step."""
    reward: Tensor
    """[N] float32."""
    terminated: Tensor
    """[N] bool: the task ended; no bootstrap."""
    truncated: Tensor
    """[N] bool: cut off (a time limit, say); bootstrap from `next_obs`. Never true together with `terminated`."""
    valid: Tensor
    """[N] bool: false where this is no transition to learn from: the dummy step of an environment that resets itself
    on the step after an episode's end, or a simulation that diverged."""
    info: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors `[N]` or `[N, k]`, the same keys every step: `"success"`, `"cost"`, `"reward/<term>"`, ..."""

    @property
    def done(self) -> Tensor:
        """[N] bool: the episode ended, for either reason."""
        return self.terminated | self.truncated

    def to(self, device: torch.device) -> Step:
        """Return the step on another device, `info` left where it is; itself where it is there already."""
        if self.reward.device == device:
            return self
        obs = tree_to(self.obs, device)
        next_obs = obs if self.next_obs is self.obs else tree_to(self.next_obs, device)
        reward, terminated, truncated = self.reward.to(device), self.terminated.to(device), self.truncated.to(device)
        return Step(obs, next_obs, reward, terminated, truncated, self.valid.to(device), self.info)


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """What a policy answers to a batch of observations."""

    action: Tensor
    """[N, action_dim] or [N]: the action in the policy's own units, which is what a learner stores."""
    env_action: Tensor
    """The same action after the action map, in the units of the environment."""
    log_prob: Tensor | None = None
    """[N]: log-probability (density) of `action`; None where the policy is asked to act deterministically."""
    memory: Mapping[str, Tensor] | None = None
    """What to hand back at the next call: tensors `[N, ...]`, zero for a fresh episode; None for a policy without
    memory, and for the memory of fresh episodes throughout."""
