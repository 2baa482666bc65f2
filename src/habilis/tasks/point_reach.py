"""`habilis/PointReach-v0`: a point in space is accelerated to a target; the smallest task of a robot that reaches.

velocity += 0.1 acceleration, each component cut at 0.5; position += 0.1 velocity. The reward is minus the distance to
the target after the move, and 10 more within 0.1 m, where the episode ends; 100 steps truncate it. An episode starts
at rest; start and target are uniform in the cube [-1, 1]^3. A point at full speed crosses the cube in 44 steps, so
every target is in reach, wherever the episode starts. Nothing holds the point inside the cube.

Accelerations are continuous, in [-1, 1]^3, or in `habilis/PointReachDiscrete-v0` one of 27: -1, 0 or 1 along each axis.
In `habilis/PointReachGoal-v0` the target is a goal: a step pays 0 within 0.1 m of it and -1 elsewhere, nothing ends the
episode before 100 steps, and it has succeeded if the point is there at its end.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import continuous_actions, require_choices
from habilis.core.random import derive_seed, generator_state, set_generator_state
from habilis.core.specs import ACHIEVED, DESIRED, ActionSpec, BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step
from habilis.envs.goals import distance_reward

DT = 0.1
MAX_SPEED = 0.5
RADIUS = 0.1
"""Within this distance of the target it is reached."""
BONUS = 10.0
EPISODE_STEPS = 100
ACCELERATIONS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float32)
"""`[27, 3]`: what the discrete actions mean."""
GOAL_GROUPS = {"policy": ObsGroup((6,)), ACHIEVED: ObsGroup((3,)), DESIRED: ObsGroup((3,))}

FRAME = 240
"""Pixels a side of each of the two views."""
VIEW = 1.25
"""Half of what a view shows, m."""


class PointReach:
    """N points on their way to N targets, with exact state.

    Observed: position, velocity and target (9); with a goal, position and velocity (6), and the goal by itself.

    Args:
        id: the name the environment is known by.
        num_envs: N.
        seed: of the stream that starts and targets are drawn from.
        discrete: whether an action is the number of one of `ACCELERATIONS`.
        goal: whether the target is a goal, reached or not.
    """

    compute_terminated = None
    """Reaching a goal ends nothing."""

    def __init__(self, id: str, num_envs: int, *, seed: int = 0, discrete: bool = False, goal: bool = False) -> None:
        self.num_envs = num_envs
        self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._rows = np.zeros((num_envs, 9), dtype=np.float32)  # position, velocity, target
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        one = np.ones(3, dtype=np.float32)
        action: ActionSpec = DiscreteAction(len(ACCELERATIONS)) if discrete else BoxAction(-one, one)
        self.spec = EnvSpec(
            id=id,
            obs=GOAL_GROUPS if goal else {"policy": ObsGroup((9,))},
            action=action,
            max_episode_steps=EPISODE_STEPS,
            saves_state=True,
            backend="native",
            control_dt=DT,
            action_names=() if discrete else ("x", "y", "z"),
        )
        self._begin(np.arange(num_envs))

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes, from the seed where one is given."""
        if seed is not None:
            self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._begin(np.arange(self.num_envs))
        return self._observe()

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Pay 0 for being within reach of a goal, else -1: `[B, 3]` each to `[B]`."""
        return distance_reward(achieved, desired, threshold=RADIUS)

    def step(self, action: Tensor) -> Step:
        """Accelerate each point: `[N, 3]`, cut to [-1, 1], or `[N]` numbers of `ACCELERATIONS`."""
        position, velocity, target = self._rows[:, :3], self._rows[:, 3:6], self._rows[:, 6:]
        velocity[:] = np.clip(velocity + DT * self._acceleration(action), -MAX_SPEED, MAX_SPEED)
        position += DT * velocity
        self._elapsed += 1
        distance = np.linalg.norm(position - target, axis=1)
        reached = distance <= RADIUS
        obs = next_obs = self._observe()
        if self.spec.has_goals:
            reward, terminated = self.compute_reward(next_obs[ACHIEVED], next_obs[DESIRED]), np.zeros_like(reached)
        else:
            reward, terminated = torch.from_numpy((BONUS * reached - distance).astype(np.float32)), reached
        truncated = (self._elapsed >= EPISODE_STEPS) & ~terminated
        ended = np.flatnonzero(terminated | truncated)
        if ended.size:
            self._begin(ended)
            obs = self._observe()
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=reward,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.ones(self.num_envs, dtype=torch.bool),
            info={"success": torch.from_numpy(reached), "distance": torch.from_numpy(distance)},
        )

    def render(self) -> np.ndarray:
        """Return `[240, 480, 3]` uint8: the first point (orange) and its target, from above and from the side."""
        row = self._rows[0]
        return np.concatenate([_view(row[[0, axis]], row[[6, 6 + axis]]) for axis in (1, 2)], axis=1)

    def state_dict(self) -> State:
        """Return points, targets, counters and the random stream."""
        return {
            "rows": self._rows.copy(),
            "elapsed": self._elapsed.copy(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._rows[:] = np.asarray(state["rows"])
        self._elapsed[:] = np.asarray(state["elapsed"])
        set_generator_state(self._generator, state["generator"])

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _acceleration(self, action: Tensor) -> np.ndarray:
        if isinstance(self.spec.action, DiscreteAction):
            require_choices(self.spec, action, self.num_envs)
            return ACCELERATIONS[action.numpy(force=True)]
        return np.clip(continuous_actions(self.spec, action, self.num_envs), -1.0, 1.0)

    def _observe(self) -> Obs:
        rows = torch.from_numpy(self._rows.copy())
        if not self.spec.has_goals:
            return {"policy": rows}
        return {"policy": rows[:, :6], ACHIEVED: rows[:, :3], DESIRED: rows[:, 6:]}

    def _begin(self, rows: np.ndarray) -> None:
        """Start new episodes in the environments `rows`."""
        places = self._generator.uniform(-1.0, 1.0, (len(rows), 6))
        self._rows[rows, :3], self._rows[rows, 3:6], self._rows[rows, 6:] = places[:, :3], 0.0, places[:, 3:]
        self._elapsed[rows] = 0


def _view(point: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Draw a point and its target, `[2]` each (right, up), in the cube's outline."""
    axis = VIEW * (2 * (np.arange(FRAME) + 0.5) / FRAME - 1)
    right, up = np.meshgrid(axis, -axis)
    pixel = 2 * VIEW / FRAME
    picture = np.full((FRAME, FRAME, 3), (245.0, 246.0, 248.0))
    inside = (np.abs(right) <= 1) & (np.abs(up) <= 1)
    picture[inside] = (226, 230, 235)
    for place, radius, colour in ((target, RADIUS, (92, 168, 120)), (point, 0.04, (245, 115, 25))):
        # where it left the picture it stays at the edge, half of it
        place = np.clip(place, -VIEW, VIEW)
        away = np.hypot(right - place[0], up - place[1])
        cover = np.clip((radius - away) / pixel + 0.5, 0, 1)[:, :, None]
        picture += cover * (np.array(colour) - picture)
    return picture.round().astype(np.uint8)
