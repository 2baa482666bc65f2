"""Steps the environment: keeps the current observation, follows episodes, refuses what is not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from habilis.core.errors import NonFiniteError
from habilis.core.protocols import VecEnv
from habilis.core.tree import Tree, tree_map, zero_rows
from habilis.core.types import Obs, State, Step
from habilis.data.episodes import EpisodeTracker
from habilis.training.faults import Recorder, first_fault


class Collector:
    """One environment as a trainer sees it: `obs` is what to act on next, `memory` what the policy remembers.

    Args:
        env: what is stepped.
        skip_nonfinite: carry on when an observation or reward is not finite: the rows are replaced by zeros and marked
            invalid, so that nothing is learnt from them; otherwise raise.
    """

    def __init__(self, env: VecEnv, *, skip_nonfinite: bool = False) -> None:
        self.env = env
        self.episodes = EpisodeTracker(env.num_envs)
        self.recorder = Recorder(env)
        self.skip_nonfinite = skip_nonfinite
        self.skipped_rows = 0
        self.obs: Obs = {}
        self.memory: Tree | None = None
        self._untrusted: Tensor | None = None
        self._floats = [name for name, group in env.spec.obs.items() if group.dtype == "float32"]

    def reset(self, seed: int) -> None:
        """Start new episodes."""
        self.recorder.clear()
        self.obs = self.env.reset(seed)
        self.memory = None

    def restart(self) -> None:
        """Break off the episodes under way and begin new ones, the environment's random streams going on."""
        self.recorder.clear()
        self.episodes.reset()
        self._untrusted = None
        self.obs = self.env.reset()
        self.memory = None

    def step(self, env_action: Tensor, memory: Tree | None = None, wanted: Tensor | None = None) -> Step:
        """Apply actions in the environment's units and return what came of them.

        Args:
            env_action: one for each environment.
            memory: what the policy will be handed with the next observation; zero there where an episode ended.
            wanted: `[N]` bool: which environments are of use; the others' steps are not valid and belong to no episode.

        Raises:
            NonFiniteError: an observation or a reward is not finite, unless such rows are to be skipped.
        """
        self.recorder.record(env_action)
        step = self.env.step(env_action)
        total = step.reward.sum()
        for name in self._floats:
            total = total + step.obs[name].sum()
            if step.next_obs is not step.obs:
                total = total + step.next_obs[name].sum()
        if self._untrusted is not None or not math.isfinite(total):
            step = self._refuse(step)
        if wanted is not None:
            step = replace(step, valid=step.valid & wanted)
        self.episodes.update(step)
        self.obs = step.obs
        self.memory = zero_rows(memory, step.done | ~step.valid)
        return step

    def _refuse(self, step: Step) -> Step:
        """Raise for rows that are not finite, or mark them invalid and replace them by zeros."""
        fault = None if self.skip_nonfinite else first_fault(step)
        if fault is not None:
            raise NonFiniteError(
                f"{fault} is not finite: the simulation diverged or the task divides by zero; "
                "mend the environment, or go on without such steps by --on-nonfinite skip"
            )
        bad = ~step.reward.isfinite()
        bad_next = torch.zeros_like(bad)
        for name in self._floats:
            for source, mark in ((step.obs, bad_next), (step.next_obs, bad)):
                mark |= ~source[name].flatten(1).isfinite().all(1)
        invalid = bad | bad_next if self._untrusted is None else bad | bad_next | self._untrusted
        self.skipped_rows += int(invalid.sum())
        self._untrusted = bad_next if bad_next.any() else None
        obs = tree_map(torch.nan_to_num, step.obs)
        return Step(
            obs,
            obs if step.next_obs is step.obs else tree_map(torch.nan_to_num, step.next_obs),
            torch.where(bad, 0.0, step.reward),
            step.terminated,
            step.truncated,
            step.valid & ~invalid,
            step.info,
        )

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
        self.recorder.clear()
        self.episodes.load_state_dict(state["episodes"])
        self.skipped_rows = state["skipped_rows"]
        if state["env"] is None:
            self.episodes.reset()
            self._untrusted = None
            self.reset(seed)
            return
        self.env.load_state_dict(state["env"])
        self.obs, self.memory = state["obs"], state["memory"]
        self._untrusted = state["untrusted"]
