"""What went wrong, and how to play it again: a recorder of actions, and the search for what is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from habilis.core.errors import EnvError, NonFiniteError
from habilis.core.protocols import VecEnv
from habilis.core.tree import tree_map
from habilis.core.types import State, Step

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


def refuse(step: Step, untrusted: Tensor | None, *, skip: bool) -> tuple[Step, Tensor | None, int]:
    """Raise for rows that are not finite, or mark them invalid and replace them by zeros.

    Args:
        step: what may hold such rows.
        untrusted: `[N]` bool: environments whose present observation was not finite; None where all were.
        skip: whether to carry on.

    Returns:
        The step, which environments are untrusted from now on, and how many rows are invalid.

    Raises:
        NonFiniteError: an observation or a reward is not finite, and such rows are not to be skipped.
    """
    fault = None if skip else first_fault(step)
    if fault is not None:
        raise NonFiniteError(
            f"{fault} is not finite: the simulation diverged or the task divides by zero; "
            "mend the environment, or go on without such steps by --on-nonfinite skip"
        )
    bad = ~step.reward.isfinite()
    bad_next = torch.zeros_like(bad)
    for name in [name for name, group in step.obs.items() if group.is_floating_point()]:
        for source, mark in ((step.obs, bad_next), (step.next_obs, bad)):
            mark |= ~source[name].flatten(1).isfinite().all(1)
    invalid = bad | bad_next if untrusted is None else bad | bad_next | untrusted
    obs = tree_map(_zero_nonfinite, step.obs)
    trusted = replace(
        step,
        obs=obs,
        next_obs=obs if step.next_obs is step.obs else tree_map(_zero_nonfinite, step.next_obs),
        reward=torch.where(bad, 0.0, step.reward),
        valid=step.valid & ~invalid,
    )
    return trusted, bad_next if bad_next.any() else None, int(invalid.sum())


def _zero_nonfinite(group: Tensor) -> Tensor:
    # PyTorch's own default for an infinity is the largest number there is, whose square is an infinity again
    return torch.nan_to_num(group, nan=0.0, posinf=0.0, neginf=0.0)


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
