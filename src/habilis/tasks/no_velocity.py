"""Known tasks without velocities: what a policy sees does not say how anything moves, so that it has to remember.

Everything else is that of the task: physics, rewards and ends, and its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from habilis.core.errors import ConfigError
from habilis.core.protocols import VecEnv
from habilis.core.types import Obs, State, Step
from habilis.envs.make import make_vec_env

NO_VELOCITY: dict[str, str] = {
    f"habilis/{task.split('-')[0]}NoVelocity-v0": task
    for task in (
        *("CartPole-v1", "Pendulum-v1"),
        *(f"{name}-v5" for name in ("HalfCheetah", "Hopper", "InvertedPendulum", "Swimmer", "Walker2d")),
    )
}
"""Which task each id is."""

_CLASSIC: dict[str, tuple[int, ...]] = {"CartPole-v1": (1, 3), "Pendulum-v1": (2,)}
"""Columns of the velocities in Gymnasium's own tasks; those of MuJoCo show positions first and velocities last."""


def make_no_velocity(id: str, num_envs: int, *, seed: int, threads: int | None, **kwargs: Any) -> VecEnv:
    """Make the task `id` of `NO_VELOCITY`; the rest is as for `make_vec_env`."""
    task = NO_VELOCITY[id]
    if kwargs.get("pixels") is not None:
        raise ConfigError(f"{id} hides velocities of a state: for pictures, which show none, make {task} with pixels")
    env: Any = make_vec_env(task, num_envs, seed=seed, threads=threads, **kwargs)
    size = env.spec.obs["policy"].size
    hidden = _CLASSIC[task] if task in _CLASSIC else range(size - env.simulation.model.nv, size)
    return HiddenVelocity(env, id, [column for column in range(size) if column not in hidden])


class HiddenVelocity:
    """An environment whose group "policy" lacks some of its values; all else that it offers passes as it is.

    Args:
        env: the environment.
        id: its id from now on.
        shown: columns of the values that stay.
    """

    def __init__(self, env: VecEnv, id: str, shown: Sequence[int]) -> None:
        self._env = env
        self._shown = torch.tensor(shown)
        self.num_envs = env.num_envs
        group = replace(env.spec.obs["policy"], shape=(len(shown),))
        self.spec = replace(env.spec, id=id, obs={"policy": group})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes."""
        return self._show(self._env.reset(seed))

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment."""
        step = self._env.step(action)
        obs = self._show(step.obs)
        return replace(step, obs=obs, next_obs=obs if step.next_obs is step.obs else self._show(step.next_obs))

    def state_dict(self) -> State:
        """Return the state of the environment."""
        return self._env.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore it."""
        self._env.load_state_dict(state)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _show(self, obs: Obs) -> dict[str, Tensor]:
        return {"policy": obs["policy"].index_select(1, self._shown)}
