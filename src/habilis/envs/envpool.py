"""EnvPool's environments as our `VecEnv` (extra `envpool`): some 1,650 tasks stepped by C++ threads.

EnvPool resets an environment in the step after its episode's end: that step has `Step.valid` false. Observations
(arrays, nested dictionaries, images) become groups as told in `habilis.envs.spaces`. EnvPool takes seeds only when a
pool is made, so a seeded reset makes the pool anew. Robots with goals (Fetch, the reaching hand) say what each goal
pays.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from habilis.core.errors import ConfigError, EnvError, did_you_mean, import_extra
from habilis.core.random import derive_env_seed
from habilis.core.specs import EnvSpec
from habilis.core.types import Obs, State, Step
from habilis.envs.goals import distance_rule
from habilis.envs.infos import InfoTable
from habilis.envs.spaces import ActionLayout, ObsLayout


def envpool_ids() -> list[str]:
    """Return the ids of all of EnvPool's environments.

    Raises:
        MissingExtraError: EnvPool is not installed.
    """
    return sorted(import_extra("envpool", "envpool").list_all_envs())


class EnvPoolVecEnv:
    """N environments of one EnvPool id.

    Args:
        id: One of `envpool_ids()`.
        num_envs: N.
        seed: Where the random streams of the environments start.
        threads: Number of threads; None leaves it to EnvPool.
        **kwargs: Further arguments of `envpool.make`, say `from_pixels=True`.

    Raises:
        MissingExtraError: EnvPool is not installed.
        ConfigError: EnvPool has no such id.
        EnvError: The environment cannot be made.
    """

    def __init__(self, id: str, num_envs: int = 1, *, seed: int = 0, threads: int | None = None, **kwargs: Any) -> None:
        known = envpool_ids()
        if id not in known:
            raise ConfigError(f"EnvPool has no environment {id!r}{did_you_mean(id, known)}")
        self._id, self._kwargs = id, {**kwargs, "num_envs": num_envs, "num_threads": threads or 0}
        self.num_envs = num_envs
        self._seed: int | None = seed
        self._pool = self._make(seed)
        self._to_obs = ObsLayout(self._pool.observation_space)
        if self._pool.action_space.shape is None:
            raise EnvError(
                f"{id} of EnvPool takes actions of several parts, and EnvPool tells no order of them: "
                "take the environment from Gymnasium"
            )
        self._to_action = ActionLayout(self._pool.action_space)
        self._to_info = InfoTable(num_envs)
        action_shape = list(self._pool.spec.action_array_spec.values())[-1].shape
        self._action_shape = [size for size in action_shape if size != -1]
        self._resetting = np.zeros(num_envs, bool)
        limit = getattr(self._pool.spec.config, "max_episode_steps", None)
        self.spec = EnvSpec(
            id=id,
            obs=self._to_obs.groups,
            action=self._to_action.spec,
            max_episode_steps=limit if limit and limit < 2**31 - 1 else None,
            backend="envpool",
        )
        self.compute_reward = distance_rule(self._pool.spec.config) if self.spec.has_goals else None
        self.compute_terminated = None

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, in a pool made anew from it.

        Raises:
            EnvError: Several agents act in each environment.
        """
        if seed is not None and seed != self._seed:
            self._pool.close()
            self._pool = self._make(seed)
        self._seed = None  # from now on a pool of the same seed has moved on, too
        self._resetting = np.zeros(self.num_envs, bool)
        observations, infos = self._pool.reset()
        agents = len(infos["players"]["env_id"]) // self.num_envs
        if agents != 1:
            raise EnvError(
                f"{self._id} of EnvPool has {agents} agents in each environment, and Habilis trains one: "
                "choose an environment of one agent"
            )
        return self._to_obs(observations, self.num_envs)

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment.

        Raises:
            EnvError: EnvPool raised.
        """
        actions = self._to_action(action).reshape(self.num_envs, *self._action_shape)
        try:
            observations, reward, terminated, truncated, infos = self._pool.step(actions)
        except Exception as error:
            raise EnvError(f"EnvPool's {self._id} raised {type(error).__name__} in step: {error}") from error
        terminated = np.array(terminated, bool)
        truncated = np.asarray(truncated, bool) & ~terminated
        valid = ~self._resetting
        self._resetting = terminated | truncated
        obs = self._to_obs(observations, self.num_envs)
        return Step(
            obs=obs,
            next_obs=obs,
            reward=torch.from_numpy(np.array(reward, np.float32).reshape(self.num_envs)),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
            info=self._to_info({k: v for k, v in infos.items() if k not in ("env_id", "players")}),
        )

    def state_dict(self) -> State:
        """Refuse: EnvPool cannot save its state.

        Raises:
            EnvError: Always.
        """
        raise EnvError(f"{self._id} of EnvPool cannot save its state (spec.saves_state is false): start new episodes")

    def load_state_dict(self, state: State) -> None:
        """Refuse, as `state_dict` does.

        Raises:
            EnvError: Always.
        """
        raise EnvError(f"{self._id} of EnvPool cannot load a state (spec.saves_state is false): start new episodes")

    def close(self) -> None:
        """Free the threads."""
        self._pool.close()

    def _make(self, seed: int) -> Any:
        seeds = [derive_env_seed(seed, i) for i in range(self.num_envs)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of float64 bounds narrowed to float32
                pool = import_extra("envpool", "envpool").make_gymnasium(self._id, seed=seeds, **self._kwargs)
                _ = pool.observation_space, pool.action_space  # made at first use, with those warnings
                return pool
        except Exception as error:
            raise EnvError(f"EnvPool cannot make {self._id} ({type(error).__name__}: {error})") from error
