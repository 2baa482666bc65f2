"""Time-major rollouts: T steps of N environments, raw as they came."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.tree import Tree, tree_cat, tree_index, tree_stack
from habilis.core.types import Obs, PolicyStep, Step


class StepList(ABC):
    """Keeps steps as they come and puts them together when they are all there.

    Observations are kept once: the successor of step t is row t + 1, except where an episode ended, whose true last
    observation is kept aside.

    Args:
        device: where the data lies.
    """

    starts_anew: bool
    """Whether every rollout begins with new episodes."""
    wanted: Tensor | None
    """Which environments are of use, `[N]` bool; None: all."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._obs: list[Obs] = []
        self._acted: list[PolicyStep] = []
        self._steps: list[Step] = []
        self._memory: Tree | None = None

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether the rollout is complete."""

    def start(self, obs: Obs, memory: Tree | None = None) -> None:
        """Begin a rollout at `obs`; `memory` is what the policy remembers of the episodes under way."""
        self._obs, self._acted, self._steps, self._memory = [obs], [], [], memory

    def add(self, policy_step: PolicyStep, step: Step) -> None:
        """Keep what was done and what came of it."""
        self._obs.append(step.obs)
        self._acted.append(policy_step)
        self._steps.append(step)

    def batch(self) -> RolloutBatch:
        """Return the full rollout, once: the steps it is made of are given up with it."""
        assert self.full, "a rollout is read when it is full"
        steps = self._steps
        terminated = torch.stack([step.terminated for step in steps])
        truncated = torch.stack([step.truncated for step in steps])
        rollout = RolloutBatch(
            obs=tree_stack(self._obs),
            actions=torch.stack([acted.action for acted in self._acted]),
            log_probs=torch.stack([acted.log_prob for acted in self._acted]),  # type: ignore[misc]
            rewards=torch.stack([step.reward for step in steps]),
            terminated=terminated,
            truncated=truncated,
            valid=torch.stack([step.valid for step in steps]),
            **self._final(terminated | truncated),
            memory=self._memory,
        )
        self._obs, self._acted, self._steps = [], [], []
        return rollout

    def _final(self, done: Tensor) -> dict[str, Any]:
        """Return where episodes ended by `done` `[T, N]`, and their true last observations."""
        # also where the next observation is that last one, because the environment starts anew one step later: nothing
        # that is remembered then counts for it
        times, envs = done.nonzero(as_tuple=True)
        moments, counts = (part.numpy(force=True) for part in times.unique_consecutive(return_counts=True))
        obs = [tree_index(self._obs[0], torch.zeros(0, dtype=torch.long, device=self.device))]
        for t, ended in zip(moments.tolist(), envs.split(counts.tolist()), strict=True):
            obs.append(tree_index(self._steps[t].next_obs, ended))
        return {"final_index": (times, envs), "final_obs": tree_cat(obs)}


class RolloutBuffer(StepList):
    """A rollout of T steps; episodes go on from one to the next.

    Args:
        n_steps: T.
        device: where the data lies.
    """

    starts_anew = False
    wanted = None

    def __init__(self, n_steps: int, device: str = "cpu") -> None:
        super().__init__(device)
        self.n_steps = n_steps

    @property
    def full(self) -> bool:
        """Whether the rollout is complete."""
        return len(self._steps) == self.n_steps
