"""Any Gymnasium environment as our `VecEnv`.

`make_gymnasium` makes N copies of a registered id or of a function's environment, in this process or one process each;
`GymnasiumVecEnv` takes a vector environment that exists already (`gym.make_vec`, a `VectorEnv` of your own) or a single
one. How spaces become groups and actions is told in `habilis.envs.spaces`, how infos become tensors in
`habilis.envs.infos`. The three autoreset modes end the same way, in a `Step`:

- SAME_STEP (what we make): `obs` is the new episode's first observation, `next_obs` the recovered `final_obs`.
- DISABLED: the adapter resets what ended, with `options={"reset_mask": ...}`, which comes to the same.
- NEXT_STEP: `obs` and `next_obs` are the old episode's last observation; the next step only resets, with `valid` false.

A 6-tuple step (observation, reward, cost, terminated, truncated, info) puts the cost in the info, and an observation
that an environment resetting itself leaves in `info["terminal_observation"]` is taken as the true successor. An
environment with goals answers for any goal by its own `compute_reward` and `compute_terminated` (`habilis.envs.goals`).
"""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from torch import Tensor

from habilis.core.errors import EnvError, MissingExtraError
from habilis.core.protocols import GoalFunction
from habilis.core.random import derive_env_seed
from habilis.core.specs import DESIRED, EnvSpec
from habilis.core.tree import tree_map, tree_where
from habilis.core.types import Obs, State, Step
from habilis.envs.goals import OwnFunction
from habilis.envs.infos import InfoTable, plain_info
from habilis.envs.spaces import ActionLayout, Misfit, ObsLayout

Look = Callable[[int, Any], None]
"""Is shown the index of an environment and one observation of it."""


EXTRAS = {"box2d": ("Box2D", "box2d"), "classic": ("pygame", "video"), "toy": ("pygame", "video")}
"""How Gymnasium's extras begin, with the package that is meant and the extra of ours that brings it."""


def make_gymnasium(
    env: str | Callable[[], gym.Env], num_envs: int = 1, *, seed: int = 0, asynchronous: bool = False, **kwargs: Any
) -> GymnasiumVecEnv:
    """Make N copies of a Gymnasium environment, reset in the step that ends an episode.

    Args:
        env: A registered id (`"CartPole-v1"`, `"package:Env-v0"`) or a function that makes one environment.
        num_envs: N.
        seed: Where the random streams of the environments start.
        asynchronous: Whether each environment runs in a process of its own.
        **kwargs: Arguments of the environment.

    Raises:
        EnvError: The environment cannot be made.
        MissingExtraError: It needs what an extra of ours brings.
        gymnasium.error.Error: The id is not registered.
    """
    id = env if isinstance(env, str) else None
    entry = partial(gym.make, env, disable_env_checker=True) if isinstance(env, str) else env
    make_one = partial(entry, **kwargs)
    vector = AsyncVectorEnv if asynchronous else SyncVectorEnv
    makers = [partial(_make_guarded, make_one, index) for index in range(num_envs)]
    try:
        made = vector(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv):
        raise
    except Exception as error:
        _name_missing(error)
        raise EnvError(f"the environment {id or env} cannot be made ({_cause(error)})") from error
    registered = gym.registry.get(id.split(":")[-1]) if id else None
    if registered is not None:  # which the environments know themselves, but those in other processes cannot be asked
        limit = kwargs.get("max_episode_steps", registered.max_episode_steps)
        made.spec = dataclasses.replace(registered, max_episode_steps=limit)
    return GymnasiumVecEnv(made, id=id, seed=seed, make_one=makers[0])


class GymnasiumVecEnv:
    """A Gymnasium vector environment (or a single one, as N = 1) with the contract of `VecEnv`.

    Args:
        env: The environment; a vector environment must name its autoreset mode in `metadata["autoreset_mode"]`.
        id: What to call it; by default what its registration says.
        seed: Where its random streams start at the first reset; None leaves that to the environment.
        make_one: Makes one more of it, to be asked of goals where the others run in processes of their own.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv | gym.Env,
        *,
        id: str | None = None,
        seed: int | None = None,
        make_one: Callable[[], gym.Env] | None = None,
    ) -> None:
        if not isinstance(env, gym.vector.VectorEnv):
            single = env
            env = SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.SAME_STEP)
        self._base = env.unwrapped
        if isinstance(self._base, SyncVectorEnv):
            self._base.envs = [e if isinstance(e, _Guard) else _Guard(e, i) for i, e in enumerate(self._base.envs)]
        self._mode = env.metadata.get("autoreset_mode")
        if not isinstance(self._mode, AutoresetMode):
            raise EnvError(
                f"the vector environment has metadata['autoreset_mode'] = {self._mode!r}: "
                "set it to a member of gymnasium.vector.AutoresetMode"
            )
        self.env = env
        self.num_envs = int(env.num_envs)
        self._space = env.single_observation_space
        self._to_obs = ObsLayout(self._space)
        self._to_action = ActionLayout(env.single_action_space)
        self._to_info = InfoTable(self.num_envs)
        self._seed = seed
        self._make_one = make_one
        self._look: Look | None = None
        self._resetting = np.zeros(self.num_envs, bool)
        self.spec = self._describe(id)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes; with a seed, or the constructor's at the first reset, all random streams start anew."""
        seed, self._seed = self._seed if seed is None else seed, None
        self._resetting = np.zeros(self.num_envs, bool)
        seeds: Any = seed
        if seed is not None and isinstance(self._base, (SyncVectorEnv, AsyncVectorEnv)):
            seeds = [derive_env_seed(seed, i) for i in range(self.num_envs)]
        observations, _ = self._call("reset", seed=seeds)
        self._show(observations)
        return self._to_obs(observations, self.num_envs)

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment.

        Raises:
            EnvError: An environment raised, or breaks its own contract.
        """
        answer = self._call("step", self._to_action(action))
        self._show(answer[0])
        cost = answer[2] if len(answer) == 6 else None
        observations, reward, terminated, truncated, infos = answer if cost is None else (*answer[:2], *answer[3:])
        if cost is not None:
            infos = {**infos, "cost": np.asarray(cost)}
        terminated = np.array(terminated, bool)
        truncated = np.asarray(truncated, bool) & ~terminated
        ended = terminated | truncated
        obs: Obs = self._to_obs(observations, self.num_envs)
        next_obs = obs
        final_infos = None
        if ended.any():
            next_obs = self._true_successor(obs, infos, ended)
            if isinstance(infos.get("final_info"), Mapping):
                final_infos = ended
            if self._mode is AutoresetMode.DISABLED:
                fresh, _ = self._call("reset", options={"reset_mask": ended.copy()})
                obs = tree_where(torch.from_numpy(ended), self._to_obs(fresh, self.num_envs), obs)
        valid = ~self._resetting
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resetting = ended
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=torch.from_numpy(np.array(reward, np.float32).reshape(self.num_envs)),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
            info=self._to_info(infos, final_infos),
        )

    def watch(self, look: Callable[[int, Misfit], None] | None) -> None:
        """Have `look(index, misfit)` told of every observation that is not what its space declares; None ends that.

        Environments in this process are looked at before the vector environment casts what they give to the type of
        the space; of others, only what is out of bounds can be seen.
        """

        def tell(look: Callable[[int, Misfit], None], index: int, observation: Any) -> None:
            for misfit in self._to_obs.misfits(observation):
                look(index, misfit)

        told = None if look is None else partial(tell, look)
        if isinstance(self.env, SyncVectorEnv):
            for guard in self.env.envs:
                guard.look = told
        else:
            self._look = told

    def state_dict(self) -> State:
        """Refuse: Gymnasium has no way to save an environment.

        Raises:
            EnvError: Always.
        """
        raise EnvError(
            f"{self.spec.id} cannot save its state (spec.saves_state is false): start new episodes on resume"
        )

    def load_state_dict(self, state: State) -> None:
        """Refuse, as `state_dict` does.

        Raises:
            EnvError: Always.
        """
        raise EnvError(f"{self.spec.id} cannot load a state (spec.saves_state is false): start new episodes on resume")

    @cached_property
    def compute_reward(self) -> GoalFunction | None:
        """What a step pays for the goal it reached and the one wanted; None where the environment does not say."""
        return self._own_function("compute_reward", torch.float32)

    @cached_property
    def compute_terminated(self) -> GoalFunction | None:
        """Whether the goal ends the episode; None where the environment does not say."""
        return self._own_function("compute_terminated", torch.bool)

    @property
    def render_fps(self) -> float | None:
        """Pictures a second by which the environment says it is seen in real time, one a step; None if it does not."""
        rate = (self.env.metadata or {}).get("render_fps")
        return float(rate) if isinstance(rate, int | float) and rate > 0 else None

    def render(self) -> np.ndarray:
        """Return the picture of the first environment, `[height, width, 3]` uint8.

        Raises:
            EnvError: The environment was not made with `render_mode="rgb_array"`.
        """
        if self.env.render_mode != "rgb_array":
            raise EnvError(f"{self.spec.id} cannot be pictured: make it with render_mode='rgb_array'")
        return np.asarray(self._call("render")[0])

    def close(self) -> None:
        """Free processes and windows."""
        self.env.close()

    @cached_property
    def _asked(self) -> Any:
        """What knows of goals: the first environment, one more where they are in other processes, or all of them."""
        if isinstance(self._base, SyncVectorEnv):
            return self._base.envs[0]
        return self._base if self._make_one is None else self._make_one()

    def _own_function(self, name: str, dtype: torch.dtype) -> GoalFunction | None:
        """Return a function of goals of the environment itself, or of the outermost wrapper that has it."""
        asked = self._asked
        if isinstance(asked, gym.Env):
            function = asked.get_wrapper_attr(name) if asked.has_wrapper_attr(name) else None
        else:
            function = getattr(asked, name, None)
        if function is None or not self.spec.has_goals:
            return None
        return OwnFunction(f"{name} of {self.spec.id}", function, self._space[DESIRED], dtype)

    def _show(self, observations: Any) -> None:
        """Show what the vector environment returned to who watches it."""
        if self._look is not None:
            for index, observation in enumerate(iterate(self.env.observation_space, observations)):
                self._look(index, observation)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.env, method)(*args, **kwargs)
        except EnvError:
            raise
        except Exception as error:
            _name_missing(error)
            raise _told(self.spec.id, method, error) from error

    def _true_successor(self, obs: Obs, infos: Mapping[str, Any], ended: np.ndarray) -> Obs:
        """Return `obs` with the last observation of each episode that ended, where the infos carry it."""
        final_info = infos.get("final_info")
        sources = [(infos, "terminal_observation"), (infos, "final_obs"), (infos, "final_observation")]
        if isinstance(final_info, Mapping):
            sources.insert(0, (final_info, "terminal_observation"))
        missing = ended.copy()
        next_obs = tree_map(Tensor.clone, obs)
        for source, key in sources:
            rows = np.flatnonzero(missing & np.asarray(source.get(f"_{key}", key in source), bool))
            value = source.get(key)
            objects = isinstance(value, np.ndarray) and value.dtype == object
            if objects:
                rows = rows[[value[i] is not None for i in rows]]
            if not len(rows):
                continue
            if objects:
                final = self._last_observations([value[i] for i in rows], key)
            else:
                final = {name: tensor[rows] for name, tensor in self._to_obs(value, self.num_envs).items()}
            for name, tensor in next_obs.items():
                tensor[rows] = final[name]
            missing[rows] = False
        if self._mode is AutoresetMode.SAME_STEP and missing.any():
            raise EnvError(
                f"{self.spec.id} says SAME_STEP but gave no info['final_obs'] for environment "
                f"{int(missing.argmax())}, so the true successor is lost: give final_obs, or use another autoreset mode"
            )
        return next_obs

    def _last_observations(self, values: Sequence[Any], key: str) -> Obs:
        """Return the observations with which some episodes ended, as `info[key]` carries them."""
        try:
            stacked = concatenate(self._space, values, create_empty_array(self._space, len(values)))
        except (TypeError, ValueError, KeyError) as error:
            raise EnvError(
                f"{self.spec.id} gave an info[{key!r}] that is none of its observations ({error}): "
                "give the last observation of the episode there, or leave the key out"
            ) from error
        return self._to_obs(stacked, len(values))

    def _describe(self, id: str | None) -> EnvSpec:
        one = self._base.envs[0] if isinstance(self._base, SyncVectorEnv) else None
        registered = self.env.spec if one is None else one.spec
        limit = None
        if registered is not None:
            limit = registered.kwargs.get("max_episode_steps", registered.max_episode_steps)
        control_dt = getattr(one.unwrapped, "dt", None) if one is not None else None
        return EnvSpec(
            id=id or getattr(registered, "id", None) or type(self._base if one is None else one.unwrapped).__name__,
            obs=self._to_obs.groups,
            action=self._to_action.spec,
            max_episode_steps=limit if limit is not None and limit > 0 else None,
            backend="gymnasium",
            control_dt=float(control_dt) if isinstance(control_dt, (int, float)) else None,
        )


class _Guard(gym.Wrapper):
    """Names the environment that raises, takes 6-tuple steps, and keeps the last observation from being overwritten.

    Shows every observation to `look`, where that is set.
    """

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self._index = index
        self.look: Look | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            obs, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._named("reset", error) from error
        if self.look is not None:
            self.look(self._index, obs)
        return obs, plain_info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            answer = self.env.step(action)
        except Exception as error:
            raise self._named("step", error) from error
        if len(answer) == 6:
            obs, reward, cost, terminated, truncated, info = answer
            info = {**info, "cost": cost}
        else:
            obs, reward, terminated, truncated, info = answer
        if self.look is not None:
            self.look(self._index, obs)
        if terminated or truncated:  # reset may write into the same arrays
            obs = copy.deepcopy(obs)
        if not isinstance(reward, float):
            reward = self._number(reward)
        return obs, reward, terminated, truncated, plain_info(info)

    def _number(self, reward: Any) -> float:
        """Return a reward that may be an integer or an array of one number."""
        try:
            return float(np.asarray(reward).item())
        except (TypeError, ValueError) as error:
            raise EnvError(f"environment {self._index} gave the reward {reward!r}, expected one number") from error

    def _named(self, method: str, error: Exception) -> EnvError:
        return _told(f"environment {self._index}", method, error)


def _told(who: str, method: str, error: Exception) -> EnvError:
    """Return what to tell of an error in a method of an environment; an error may say nothing itself."""
    said = f": {str(error).removesuffix('.')}" if str(error) else ""
    return EnvError(f"{who} raised {type(error).__name__} in {method}{said}; mend the environment")


def _name_missing(error: Exception) -> None:
    """Raise `MissingExtraError` where Gymnasium misses a package that an extra of ours brings."""
    if isinstance(error, gym.error.DependencyNotInstalled):
        for extra, (package, ours) in EXTRAS.items():
            if f"gymnasium[{extra}" in str(error):
                raise MissingExtraError(package, ours) from error


def _cause(error: Exception) -> str:
    """Return what an error says, and where it says nothing the line that raised it."""
    said = str(error)
    if not said and error.__traceback__ is not None:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{at.line}, line {at.lineno} of {at.filename}"
    return f"{type(error).__name__}: {said}"


def _make_guarded(make_one: Callable[[], gym.Env], index: int) -> gym.Env:
    return _Guard(make_one(), index)
