"""What buffers hand to algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from habilis.core.tree import Tree, tree_join, tree_split
from habilis.core.types import Obs

VALID, MEMORY = "/valid", "/memory"
"""What windows of history have among their observation groups, none of which can have such a name: which steps belong
to the episode of the newest one, `[B, W]` bool, and what the policy remembered before the first, `[B, memory_dim]`."""


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """T steps of N environments, time-major, as the policy being learnt has just made them."""

    obs: Obs
    """`[T + 1, N, ...]`: what was acted on, and last what comes next."""
    actions: Tensor
    """`[T, N, ...]` in the policy's units."""
    log_probs: Tensor
    """`[T, N]` of those actions when they were chosen."""
    rewards: Tensor
    """`[T, N]`, raw."""
    terminated: Tensor
    """`[T, N]` bool."""
    truncated: Tensor
    """`[T, N]` bool."""
    valid: Tensor
    """`[T, N]` bool: false where nothing may be learnt from the step."""
    final_index: tuple[Tensor, Tensor]
    """`(t, n)`, each `[K]`: the steps whose true successor is not `obs[t + 1]`."""
    final_obs: Obs
    """`[K, ...]`: those successors."""
    memory: Tree | None = None
    """What the policy remembered before the first step, `[N, ...]` by key; None: all episodes have just begun."""

    @property
    def done(self) -> Tensor:
        """`[T, N]` bool: the episode ended, for either reason."""
        return self.terminated | self.truncated

    @property
    def start(self) -> Tensor:
        """`[T + 1, N]` bool: an episode began after the rollout did, and what was remembered before is forgotten."""
        ended = self.done | ~self.valid
        return torch.cat([torch.zeros_like(ended[:1]), ended])


@dataclass(frozen=True, slots=True)
class TransitionBatch:
    """B transitions drawn from a replay buffer; with n-step targets a transition spans up to n steps."""

    obs: Obs
    """`[B, ...]`; for a learner with memory windows `[B, W, ...]` with the newest step last, `VALID` and `MEMORY`."""
    action: Tensor
    """`[B, ...]` in the policy's units."""
    reward: Tensor
    """`[B]`: the reward, or the discounted sum of up to n."""
    terminated: Tensor
    """`[B]` bool: nothing follows the last step."""
    next_obs: Obs
    """As `obs`: the true successor of the last step."""
    discount: Tensor
    """`[B]`: what the value of `next_obs` is multiplied by: gamma to the power of the steps taken."""
    weight: Tensor | None = None
    """`[B]` importance weights of prioritised sampling; None: every transition counts the same."""
    index: Tensor | None = None
    """`[B]` int64: where the transitions lie in the buffer, which wants their new priorities; None: it has none."""
    next_action: Tensor | None = None
    """`[B, ...]`: what is done in `next_obs`, for learners of what they do (SARSA); None: not chosen yet."""

    def split(self, size: int) -> Iterator[TransitionBatch]:
        """Yield consecutive parts of `size` transitions of a uniformly drawn batch."""
        columns = (self.action, self.reward, self.terminated, self.discount)
        parts = zip(
            tree_split(self.obs, size), tree_split(self.next_obs, size), *(x.split(size) for x in columns), strict=True
        )
        for obs, next_obs, action, reward, terminated, discount in parts:
            yield TransitionBatch(obs, action, reward, terminated, next_obs, discount)

    def columns(self) -> dict[str, Tensor]:
        """Return what every transition has as one flat tree, from which `tree_part` takes the observations."""
        columns = ("obs", "action", "reward", "terminated", "discount", "next_obs")
        return tree_join(**{name: getattr(self, name) for name in columns})
