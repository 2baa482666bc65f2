"""Steps the environment: keeps the current observation, follows episodes, refuses what is not finite.

It is the border between the environment's device and that of the networks: actions cross it one way, steps the other.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from habilis.core.protocols import VecEnv
from habilis.core.tree import Tree, tree_to, zero_rows
from habilis.core.types import Obs, State, Step
from habilis.data.episodes import EpisodeTracker
from habilis.training.faults import Recorder, refuse


class Collector:
    """One environment as a trainer sees it: `obs` is what to act on next, `memory` what the policy remembers.

    Args:
        env: what is stepped.
        skip_nonfinite: carry on when an observation or reward is not finite: the rows are replaced by zeros and marked
            invalid, so that nothing is learnt from them; otherwise raise.
        device: where the policy acts and learning happens: where `obs`, `memory` and steps lie.
    """

    def __init__(self, env: VecEnv, *, skip_nonfinite: bool = False, device: str | torch.device = "cpu") -> None:
        self.env = env
        self.device = torch.device(device)
        self.episodes = EpisodeTracker(env.num_envs)
        self.recorder = Recorder(env)
        self.skip_nonfinite = skip_nonfinite
        self.skipped_rows = 0
        self.obs: Obs = {}
        self.memory: Tree | None = None
        self._env_device = torch.device("cpu")
        self._untrusted: Tensor | None = None
        self._floats = [name for name, group in env.spec.obs.items() if group.dtype == "float32"]

    def reset(self, seed: int | None = None) -> None:
        """Start new episodes and break off those under way; without a seed the environment's random streams go on."""
        self.recorder.clear()
        self.episodes.reset()
        self._untrusted = None
        obs = self.env.reset(seed)
        self._env_device = next(iter(obs.values())).device
        self.obs, self.memory = tree_to(obs, self.device), None

    def step(self, env_action: Tensor, memory: Tree | None = None, wanted: Tensor | None = None) -> Step:
        """Apply actions in the environment's units and return what came of them.

        Args:
            env_action: one for each environment.
            memory: what the policy will be handed with the next observation; zero there where an episode ended.
            wanted: `[N]` bool: which environments are of use; the others' steps are not valid and belong to no episode.

        Raises:
            NonFiniteError: an observation or a reward is not finite, unless such rows are to be skipped.
        """
        env_action = env_action.to(self._env_device)
        self.recorder.record(env_action)
        step = self.env.step(env_action)
        total = step.reward.sum()
        for name in self._floats:
            total = total + step.obs[name].sum()
            if step.next_obs is not step.obs:
                total = total + step.next_obs[name].sum()
        if self._untrusted is not None or not math.isfinite(total):
            step, self._untrusted, count = refuse(step, self._untrusted, skip=self.skip_nonfinite)
            self.skipped_rows += count
        if wanted is not None:
            step = replace(step, valid=step.valid & wanted.to(self._env_device))
        self.episodes.update(step)
        step = step.to(self.device)
        self.obs = step.obs
        self.memory = None if memory is None else zero_rows(memory, step.done | ~step.valid)
        return step

    def state_dict(self) -> State:
        """Return the current observation and memory, the episodes under way and the environment's own state."""
        return {
            "obs": dict(self.obs),
            "memory": None if self.memory is None else dict(self.memory),
            "episodes": self.episodes.state_dict(),
            "untrusted": self._untrusted,
            "skipped_rows": self.skipped_rows,
            "env": self.env.state_dict() if self.env.spec.saves_state else None,
        }

    def load_state_dict(self, state: State, seed: int) -> None:
        """Restore the environment exactly, or start fresh episodes from `seed` where it cannot save its state."""
        self.episodes.load_state_dict(state["episodes"])
        self.skipped_rows = state["skipped_rows"]
        if state["env"] is None:
            self.reset(seed)
            return
        self.recorder.clear()
        self.env.load_state_dict(state["env"])
        self.obs = tree_to(state["obs"], self.device)
        self.memory = None if state["memory"] is None else tree_to(state["memory"], self.device)
        self._untrusted = state["untrusted"]
