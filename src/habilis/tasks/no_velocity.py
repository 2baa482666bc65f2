"""Known tasks without velocities: what a policy sees does not say how anything moves, so that it has to remember.

Everything else is that of the task: physics, rewards and ends, and its arguments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from habilis.core.protocols import VecEnv
from habilis.core.types import Obs, State, Step
from habilis.envs.make import make_vec_env

NO_VELOCITY: dict[str, str] = {
    "habilis/PendulumNoVelocity-v0": "Pendulum-v1",
    **{
        f"habilis/{name}NoVelocity-v0": f"{name}-v5"
        for name in ("HalfCheetah", "Hopper", "InvertedPendulum", "Swimmer", "Walker2d")
    },
}
"""Which task each id is; all of them show positions first and velocities last."""


def make_no_velocity(id: str, num_envs: int, *, seed: int, threads: int | None, **kwargs: Any) -> VecEnv:
    """Make the task `id` of `NO_VELOCITY`; the rest is as for `make_vec_env`."""
    if id == "habilis/PendulumNoVelocity-v0":
        kwargs.setdefault("render_mode", "rgb_array")  # which costs nothing before a picture is asked for
    env = make_vec_env(NO_VELOCITY[id], num_envs, seed=seed, threads=threads, **kwargs)
    simulation = getattr(env, "simulation", None)
    return HiddenVelocity(env, id, 1 if simulation is None else simulation.model.nv)


class HiddenVelocity:
    """An environment whose group "policy" lacks its last values; all else that it offers passes as it is.

    Args:
        env: the environment.
        id: its id from now on.
        hidden: how many values are left out.
    """

    def __init__(self, env: VecEnv, id: str, hidden: int) -> None:
        self._env = env
        group = env.spec.obs["policy"]
        self._shown = group.size - hidden
        self.num_envs = env.num_envs
        self.spec = replace(env.spec, id=id, obs={"policy": replace(group, shape=(self._shown,))})

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
        return {"policy": obs["policy"][:, : self._shown].contiguous()}
