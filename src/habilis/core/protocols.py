"""The few contracts of the house. Nothing inherits from them: a class that fits is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from habilis.core.specs import EnvSpec
from habilis.core.types import Metrics, Obs, PolicyStep, State, Step


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state a checkpoint holds."""

    def state_dict(self) -> State:
        """Return the whole state: nested dicts and lists of tensors, arrays, numbers, strings and None."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        ...


class VecEnv(Protocol):
    """N environments stepped together, tensors in and out.

    `num_envs` is N; `spec` says what is observed and done. `step` resets an environment whose episode ended by itself:
    `Step.obs` is then the new episode's first observation and `Step.next_obs` the old one's last. Where an environment
    can only reset one step later, that step has `Step.valid` false. An environment with `spec.saves_state` false
    raises in `state_dict`.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, every random stream of the environments starts from it."""
        ...

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment: `[N, dim]` float32, `[N]` or `[N, k]` int64."""
        ...

    def state_dict(self) -> State:
        """Return the exact state: physics, episode counters, random streams."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore it."""
        ...

    def close(self) -> None:
        """Free threads, processes and windows."""
        ...


GoalFunction = Callable[[Tensor, Tensor], Tensor]
"""(achieved, desired), each `[B, *goal]`, to `[B]`."""


class GoalEnv(VecEnv, Protocol):
    """Environments whose reward follows from the goal that a step reached and the one that was wanted.

    Their `spec.has_goals`: the groups "achieved_goal" and "desired_goal" are alike. The functions work on any number of
    goals at once, whatever the environments are doing.
    """

    compute_reward: GoalFunction
    """What a step pays, float32."""
    compute_terminated: GoalFunction | None
    """Whether the goal ends the episode, bool; None where nothing ever does. An episode that ends by itself for another
    reason, a fall say, would end so whichever goal is wanted."""


class Policy(Protocol):
    """Maps observation (and memory) to action; an `nn.Module` that owns its normaliser and its action map."""

    def act(
        self, obs: Obs, memory: Any = None, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> PolicyStep:
        """Choose actions for a batch of observations, without gradients."""
        ...


class Algorithm(Protocol):
    """Owns what is learnt and how. `state_dict` holds networks, targets, optimisers, temperatures and counters."""

    policy: Any
    gradient_steps: int

    def set_progress(self, progress: float, episodes: int) -> None:
        """Set what is scheduled, for `progress` in [0, 1] of the run and the number of episodes that ended in it."""
        ...

    def update(self, batch: Any) -> Metrics:
        """Learn from one batch and return detached scalars."""
        ...

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore it."""
        ...


class Plugin(Protocol):
    """A modifier of learning: an exploration bonus, a learnt reward, a cost multiplier."""

    def transform(self, batch: Any) -> Any:
        """Return a new batch, without gradients."""
        ...

    def update(self, batch: Any) -> Metrics:
        """Learn from what `transform` was given, after the algorithm has, and return detached scalars."""
        ...

    def state_dict(self) -> State:
        """Return everything that learning changes."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore it."""
        ...
