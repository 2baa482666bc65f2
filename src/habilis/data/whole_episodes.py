"""Time-major rollouts of whole episodes, for learners from returns: a given number of them, each from its first step.

Which episodes are kept must not depend on how they went, or the gradient is biased: those that end first are the short
ones. So the first K that are begun are kept, however long they take. Every environment begins one, and another
whenever it has ended one, until K are begun; then it waits for the last, and its steps are not valid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from habilis.core.errors import HabilisError
from habilis.core.specs import EnvSpec
from habilis.core.tree import Tree
from habilis.core.types import Obs, PolicyStep, Step
from habilis.data.episodes import LONGEST_EPISODE
from habilis.data.rollout import StepList


class EpisodeBuffer(StepList):
    """A rollout of K whole episodes: as many steps as they take.

    Args:
        spec: of the environments, named where an episode never ends.
        n_episodes: K.
        num_envs: N; all of them start anew with each rollout.
        device: where the data lies.
    """

    starts_anew = True

    def __init__(self, spec: EnvSpec, n_episodes: int, num_envs: int, device: str = "cpu") -> None:
        super().__init__(device)
        self.spec = spec
        self.n_episodes = n_episodes
        self._envs = torch.arange(num_envs, device=device)
        self._lengths = torch.zeros(num_envs, dtype=torch.long, device=device)
        self._started = 0
        self.wanted: Tensor = torch.zeros(num_envs, dtype=torch.bool, device=device)
        """`[N]` bool: which environments are in an episode that is kept."""

    @property
    def full(self) -> bool:
        """Whether every episode has ended."""
        return not self.wanted.any()

    def start(self, obs: Obs, memory: Tree | None = None) -> None:
        """Begin a rollout at `obs`, where every environment has just begun an episode; `memory` is fresh."""
        self.wanted = self._envs < self.n_episodes
        self._started = int(self.wanted.sum())
        self._lengths.zero_()
        super().start(obs, memory)

    def add(self, policy_step: PolicyStep, step: Step) -> None:
        """Store what was done and what came of it; `step` is valid in none but the wanted environments.

        Raises:
            HabilisError: an episode takes too long to ever end.
        """
        super().add(policy_step, step)
        self._lengths += step.valid
        # a step that is not valid ends an episode that has begun: the simulation diverged
        ended = self.wanted & (step.done | ~step.valid) & (self._lengths > 0)
        if ended.any():
            self._lengths.masked_fill_(ended, 0)
            again = ended & (ended.cumsum(0) <= self.n_episodes - self._started)
            self._started += int(again.sum())
            self.wanted = self.wanted & (~ended | again)
        if len(self._steps) % LONGEST_EPISODE == 0 and self._lengths.max() >= LONGEST_EPISODE:
            raise HabilisError(
                f"an episode of {self.spec.id} has not ended after {LONGEST_EPISODE:,} steps, and nothing is learnt "
                "from its return before it has: give the environment a limit (--env-kwargs max_episode_steps 1000), or "
                "use a2c"
            )
