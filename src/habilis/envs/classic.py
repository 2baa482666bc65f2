"""Gymnasium's classic control as native batched twins: the same numbers, many environments in one call, exact state.

Each task is a small frozen dataclass of pure functions on batched arrays, one row for each number of the state;
`ClassicEnv` steps, counts, resets and saves. Sources of the tasks: CartPole from Barto, Sutton and Anderson (1983),
MountainCar from Moore (1990), Acrobot from Sutton (1996), all as Gymnasium has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import continuous_actions, require_choices
from habilis.core.config import episode_limit, made_of
from habilis.core.protocols import VecEnv
from habilis.core.random import derive_env_seed, generator_state, set_generator_state
from habilis.core.specs import ActionSpec, BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step

Numbers = np.ndarray | Sequence[np.ndarray]
"""One row `[N]` for each number of a state or an observation."""

Outcome = tuple[Numbers, np.ndarray, np.ndarray]
"""The numbers of the next state, reward `[N]` and `terminated` `[N]`."""


class ClassicTask(Protocol):
    """What moves, how it is seen and what it pays. A state is one row for each of its numbers, `[k, N]` float64."""

    action: ClassVar[ActionSpec]
    seconds: ClassVar[float | None]
    """Of a step, where Gymnasium says so."""

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the state `[k]` in which an episode begins, as Gymnasium draws it."""
        ...

    def advance(self, state: np.ndarray, action: np.ndarray) -> Outcome:
        """Return what actions `[N]` lead to, a continuous one as float32."""
        ...

    def observe(self, state: np.ndarray) -> Numbers:
        """Return the numbers of the observations, `[N]` each."""
        ...


@dataclass(frozen=True, kw_only=True)
class CartPole:
    """Keep a pole upright by pushing the cart below it left or right."""

    sutton_barto_reward: bool = False
    """Pay -1 for falling and nothing else, in place of 1 a step."""
    action: ClassVar[ActionSpec] = DiscreteAction(2)
    seconds: ClassVar[float | None] = None

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Begin near the middle, upright."""
        return generator.uniform(-0.05, 0.05, 4)

    def advance(self, state: np.ndarray, action: np.ndarray) -> Outcome:
        """Take an Euler step of 20 ms; end where the cart leaves the track or the pole leans by 12 degrees."""
        _, x_dot, theta, theta_dot = state
        gravity, half_length, pole, total, tau = 9.8, 0.5, 0.1, 1.1, 0.02
        sine, cosine = np.sin(theta), np.cos(theta)
        push = (20.0 * action - 10.0 + pole * half_length * np.square(theta_dot) * sine) / total
        spin = (gravity * sine - cosine * push) / (half_length * (4.0 / 3.0 - pole * np.square(cosine) / total))
        acceleration = push - pole * half_length * spin * cosine / total
        state = state + tau * np.array((x_dot, acceleration, theta_dot, spin))
        fallen = (np.abs(state[0]) > 2.4) | (np.abs(state[2]) > 12 * 2 * pi / 360)
        reward = np.where(fallen, -1.0, 0.0) if self.sutton_barto_reward else np.ones(len(fallen))
        return state, reward, fallen

    def observe(self, state: np.ndarray) -> Numbers:
        """Return position and speed of the cart, angle and speed of the pole."""
        return state


@dataclass(frozen=True, kw_only=True)
class Pendulum:
    """Swing a pendulum up by a motor that is too weak to lift it, and hold it there."""

    g: float = 10.0
    """Gravity, m/s^2."""
    action: ClassVar[ActionSpec] = BoxAction(np.float32([-2.0]), np.float32([2.0]))
    seconds: ClassVar[float | None] = 0.05

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Begin anywhere, turning slowly."""
        return generator.uniform((-pi, -1.0), (pi, 1.0))

    def advance(self, state: np.ndarray, action: np.ndarray) -> Outcome:
        """Take a semi-implicit step of 50 ms; charge for the angle from upright, for speed and for torque."""
        theta, theta_dot = state
        torque = action.clip(-2.0, 2.0)
        cost = ((theta + pi) % (2 * pi) - pi) ** 2 + 0.1 * theta_dot**2 + 0.001 * torque**2
        theta_dot = (theta_dot + (1.5 * self.g * np.sin(theta) + 3.0 * torque) * 0.05).clip(-8.0, 8.0)
        return (theta + theta_dot * 0.05, theta_dot), -cost, np.zeros(len(cost), bool)

    def observe(self, state: np.ndarray) -> Numbers:
        """Return cosine and sine of the angle, and its speed."""
        return np.cos(state[0]), np.sin(state[0]), state[1]


def _roll(position: np.ndarray, velocity: np.ndarray, push: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return position and velocity of a car in a valley, whose left end is a wall, after a step."""
    velocity = (velocity + push - 0.0025 * np.cos(3 * position)).clip(-0.07, 0.07)
    position = (position + velocity).clip(-1.2, 0.6)
    return position, np.where((position == -1.2) & (velocity < 0), 0.0, velocity)


def _start_in_valley(generator: np.random.Generator) -> np.ndarray:
    return np.array([generator.uniform(-0.6, -0.4), 0.0])


@dataclass(frozen=True, kw_only=True)
class MountainCar:
    """Rock a car out of a valley by pushing left, not at all, or right."""

    goal_velocity: float = 0.0
    """Least speed at the top."""
    action: ClassVar[ActionSpec] = DiscreteAction(3)
    seconds: ClassVar[float | None] = None

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Begin at rest near the bottom."""
        return _start_in_valley(generator)

    def advance(self, state: np.ndarray, action: np.ndarray) -> Outcome:
        """Charge 1 a step until the top is reached."""
        position, velocity = _roll(*state, (action - 1) * 0.001)
        done = (position >= 0.5) & (velocity >= self.goal_velocity)
        return (position, velocity), np.full(len(done), -1.0), done

    def observe(self, state: np.ndarray) -> Numbers:
        """Return position and velocity."""
        return state


@dataclass(frozen=True, kw_only=True)
class MountainCarContinuous:
    """The same with a force of any size, which costs."""

    goal_velocity: float = 0.0
    """Least speed at the top."""
    action: ClassVar[ActionSpec] = BoxAction(np.float32([-1.0]), np.float32([1.0]))
    seconds: ClassVar[float | None] = None

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Begin at rest near the bottom."""
        return _start_in_valley(generator)

    def advance(self, state: np.ndarray, action: np.ndarray) -> Outcome:
        """Pay 100 at the top, charge for force; the state is rounded to float32, as Gymnasium's is."""
        position, velocity = np.float32(_roll(*state, action.clip(-1.0, 1.0) * 0.0015))
        done = (position >= 0.45) & (velocity >= self.goal_velocity)
        return (position, velocity), 100.0 * done - 0.1 * action.astype(np.float64) ** 2, done

    def observe(self, state: np.ndarray) -> Numbers:
        """Return position and velocity."""
        return state


@dataclass(frozen=True, kw_only=True)
class Acrobot:
    """Swing the end of two links above a line by a motor between them, which pulls left, not at all, or right."""

    action: ClassVar[ActionSpec] = DiscreteAction(3)
    seconds: ClassVar[float | None] = 0.2

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Begin hanging, nearly at rest."""
        return generator.uniform(-0.1, 0.1, 4).astype(np.float32)

    def advance(self, state: np.ndarray, action: np.ndarray) -> Outcome:
        """Take a Runge-Kutta step of 0.2 s; charge 1 a step until the end is above the line."""
        torque, dt = action - 1.0, 0.2
        k1 = self._slope(state, torque)
        k2 = self._slope(state + dt / 2 * k1, torque)
        k3 = self._slope(state + dt / 2 * k2, torque)
        k4 = self._slope(state + dt * k3, torque)
        angles, speeds = np.split(state + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4), 2)
        # twice: at its highest speed a link turns by 1.8 pi in a step
        for _ in range(2):
            angles = np.where(angles > pi, angles - 2 * pi, np.where(angles < -pi, angles + 2 * pi, angles))
        limit = np.array([[4 * pi], [9 * pi]])
        done = -np.cos(angles[0]) - np.cos(angles[1] + angles[0]) > 1.0
        return (*angles, *speeds.clip(-limit, limit)), np.where(done, 0.0, -1.0), done

    def observe(self, state: np.ndarray) -> Numbers:
        """Return cosine and sine of both angles, and their speeds."""
        first, second, *speeds = state
        return np.cos(first), np.sin(first), np.cos(second), np.sin(second), *speeds

    @staticmethod
    def _slope(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """Return the derivative `[4, N]` of a state, of links of 1 kg, 1 m and 1 kg m^2 (the book's equations)."""
        first, second, first_dot, second_dot = state
        sine, cosine = np.sin(second), np.cos(second)
        d1 = 0.25 + (1.25 + cosine) + 2.0
        d2 = 0.25 + 0.5 * cosine + 1.0
        phi2 = 0.5 * 9.8 * np.cos(first + second - pi / 2)
        phi1 = -0.5 * second_dot**2 * sine - second_dot * first_dot * sine + 1.5 * 9.8 * np.cos(first - pi / 2) + phi2
        second_slope = (torque + d2 / d1 * phi1 - 0.5 * first_dot**2 * sine - phi2) / (1.25 - d2**2 / d1)
        return np.stack([first_dot, second_dot, -(d2 * second_slope + phi1) / d1, second_slope])


CLASSIC: dict[str, tuple[type, int]] = {
    "Acrobot-v1": (Acrobot, 500),
    "CartPole-v0": (CartPole, 200),
    "CartPole-v1": (CartPole, 500),
    "MountainCar-v0": (MountainCar, 200),
    "MountainCarContinuous-v0": (MountainCarContinuous, 999),
    "Pendulum-v1": (Pendulum, 200),
}
"""By Gymnasium's id: the task, and the steps after which an episode is truncated."""


class ClassicEnv:
    """N copies of a task of classic control on the CPU, with exact state; a `VecEnv`.

    Given the same state and actions it returns what Gymnasium's environment returns; computed in float64, handed out in
    float32. Episodes begin as Gymnasium's do under the same seed, one after the other, so that an evaluation is of the
    same episodes in both. `state` `[k, N]` may be written between steps; an episode goes on from there.

    Args:
        id: the id of the task, for `spec`.
        task: what moves.
        num_envs: N.
        max_episode_steps: steps after which an episode is truncated; None for no limit.
        seed: of the streams that episodes are started from, one for each environment.
    """

    takes_render_mode = True
    """Made with a `render_mode` it is Gymnasium's own environment, which can open a window."""

    def __init__(self, id: str, task: ClassicTask, num_envs: int, *, max_episode_steps: int | None, seed: int) -> None:
        self.task = task
        self.num_envs = num_envs
        self.spec = EnvSpec(
            id=id,
            obs={"policy": ObsGroup((len(task.observe(task.start(np.random.default_rng(0)))),))},
            action=task.action,
            max_episode_steps=max_episode_steps,
            saves_state=True,
            backend="native",
            control_dt=task.seconds,
        )
        self._drawn: Any = None
        self._valid = torch.ones(num_envs, dtype=torch.bool)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes, from the seed where one is given."""
        if seed is not None:
            self._generators = [np.random.default_rng(derive_env_seed(seed, i)) for i in range(self.num_envs)]
        self.state = self._starts(range(self.num_envs))
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        return self._observe()

    def step(self, action: Tensor) -> Step:
        """Apply one action to each environment, `[N]` choices or `[N, 1]` forces.

        Raises:
            EnvError: an action of another shape, or a choice that there is not.
            NonFiniteError: a force is not finite.
        """
        numbers, reward, terminated = self.task.advance(self.state, self._controls(action))
        self.state = np.asarray(numbers, np.float64)
        self._elapsed += 1
        truncated = (self._elapsed >= self.spec.step_limit) & ~terminated
        obs = next_obs = self._observe()
        ended = terminated | truncated
        if ended.any():
            self.state[:, ended] = self._starts(np.flatnonzero(ended))
            self._elapsed[ended] = 0
            obs = self._observe()
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=torch.from_numpy(reward.astype(np.float32)),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=self._valid,
        )

    def state_dict(self) -> State:
        """Return where everything is, the episode counters and the random streams."""
        generators = [generator_state(generator) for generator in self._generators]
        return {"state": self.state.copy(), "elapsed": self._elapsed.copy(), "generators": generators}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self.state, self._elapsed = np.array(state["state"]), np.array(state["elapsed"])
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            set_generator_state(generator, saved)

    def render(self) -> np.ndarray:
        """Return the picture of the first environment, `[height, width, 3]` uint8, as Gymnasium draws it."""
        if self._drawn is None:
            import gymnasium

            self._drawn = gymnasium.make(self.spec.id, render_mode="rgb_array", disable_env_checker=True).unwrapped
            self._drawn.reset()
        self._drawn.state = self.state[:, 0].copy()
        return np.asarray(self._drawn.render())

    def close(self) -> None:
        """Free what pictures took."""
        if self._drawn is not None:
            self._drawn.close()
            self._drawn = None

    def _starts(self, envs: Iterable[int]) -> np.ndarray:
        """Draw the states `[k, len(envs)]` in which the next episodes of some environments begin."""
        return np.stack([self.task.start(self._generators[i]) for i in envs], axis=1, dtype=np.float64)

    def _controls(self, action: Tensor) -> np.ndarray:
        """Return actions as the task takes them, `[N]`."""
        if isinstance(self.spec.action, DiscreteAction):
            require_choices(self.spec, action, self.num_envs)
            return action.numpy(force=True)
        return continuous_actions(self.spec, action, self.num_envs)[:, 0]

    def _observe(self) -> Obs:
        return {"policy": torch.from_numpy(np.asarray(self.task.observe(self.state)).T.astype(np.float32, order="C"))}


def make_classic(
    id: str,
    num_envs: int,
    *,
    seed: int,
    threads: int | None = None,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> VecEnv:
    """Make the twin of a task of classic control, or where there are to be pictures, Gymnasium's environment itself.

    Args:
        id: one of `CLASSIC`.
        num_envs: how many environments are stepped together.
        seed: of the streams that episodes are started from, one for each environment.
        threads: not used: a step is done before a thread could help.
        max_episode_steps: steps after which an episode is truncated; None takes Gymnasium's, -1 sets no limit.
        render_mode: as of Gymnasium's environment.
        kwargs: the arguments of Gymnasium's own class.

    Raises:
        ConfigError: an argument the environment does not have, or of another type.
    """
    kind, usual = CLASSIC[id]
    task = made_of(id, kind, kwargs, "max_episode_steps", "render_mode")
    if render_mode is not None:
        from habilis.envs.gymnasium import make_gymnasium

        steps = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        return make_gymnasium(id, num_envs, seed=seed, render_mode=render_mode, **steps, **kwargs)
    limit = episode_limit(max_episode_steps, usual)
    return ClassicEnv(id, task, num_envs, max_episode_steps=limit, seed=seed)
