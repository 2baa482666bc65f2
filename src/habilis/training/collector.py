"""Steps the environment: keeps the current observation, follows episodes, refuses what is not finite and replays it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from habilis.core.errors import EnvError, NonFiniteError
from habilis.core.protocols import VecEnv
from habilis.core.tree import Tree, tree_map, zero_rows
from habilis.core.types import Obs, State, Step
from habilis.data.episodes import EpisodeTracker

SNAPSHOT_EVERY = 1000
"""Vector steps between two snapshots of the environment's state, from which `Recorder` replays."""


class Recorder:
    """Remembers an environment's state and every action since, so that what went wrong can be played again."""

    def __init__(self, env: VecEnv) -> None:
        self._env = env
        self._snapshot: State | None = None
        self._actions: list[Tensor] = []

    def record(self, action: Tensor) -> None:
        """Remember an action about to be taken."""
        if self._env.spec.saves_state and (self._snapshot is None or len(self._actions) >= SNAPSHOT_EVERY):
            self._snapshot = self._env.state_dict()
            self._actions.clear()
        elif len(self._actions) >= SNAPSHOT_EVERY:
            del self._actions[: SNAPSHOT_EVERY // 2]
        self._actions.append(action)

    def dump(self) -> State:
        """Return the snapshot (None where there is none) and the actions since, `[K, N, ...]`."""
        return {"env": self._snapshot, "actions": torch.stack(self._actions) if self._actions else None}

    def clear(self) -> None:
        """Forget everything, because the environment's state was set anew."""
        self._snapshot = None
        self._actions.clear()


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

    def step(self, env_action: Tensor, memory: Tree | None = None) -> Step:
        """Apply actions in the environment's units and return what came of them.

        Args:
            env_action: one for each environment.
            memory: what the policy will be handed with the next observation; zero there where an episode ended.

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


def first_fault(step: Step) -> str | None:
    """Name the first quantity of a step that is not finite, and its environment; None where all are."""
    named = {"reward": step.reward}
    for obs in (step.next_obs, step.obs):
        named |= {f"observation group {name!r}": group for name, group in obs.items() if group.is_floating_point()}
        for name, value in named.items():
            rows = ~value.flatten(1).isfinite().all(1) if value.dim() > 1 else ~value.isfinite()
            if rows.any():
                return f"the {name} of environment {int(rows.nonzero()[0])}"
    return None


def replay_dump(env: VecEnv, dump: Mapping[str, Any]) -> tuple[int, str] | None:
    """Play a dump again; return the index of the action after which something was not finite, and what that was.

    Raises:
        EnvError: the environment could not save its state, so that the dump does not say where its actions start.
    """
    if dump["env"] is None:
        raise EnvError(
            f"{env.spec.id} cannot save its state: its dump holds the last actions alone, which replay nothing"
        )
    env.load_state_dict(dump["env"])
    for index, action in enumerate(dump["actions"]):
        fault = first_fault(env.step(action))
        if fault is not None:
            return index, fault
    return None
