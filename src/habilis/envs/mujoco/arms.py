"""Reacher and Pusher: arms that bring a fingertip, or an object, to a goal.

Observation, reward, termination and start are those of Gymnasium's `*-v5` environments, and so are the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np

from habilis.envs.mujoco.runners import ctrl_cost
from habilis.envs.simulation import Rows, Simulation


def _body(sim: Simulation, name: str) -> np.ndarray:
    """Return `[N, 3]`: the position of a body, a substep behind the state."""
    return sim.bind("xpos")[:, sim.model.body(name).id]


def _draw_until(
    draw: Callable[[int], np.ndarray], accept: Callable[[np.ndarray], np.ndarray], count: int
) -> np.ndarray:
    """Draw `count` rows, and those again that are not accepted, until all are."""
    rows = draw(count)
    while (rejected := np.flatnonzero(~accept(rows))).size:
        rows[rejected] = draw(rejected.size)
    return rows


@dataclass(frozen=True, kw_only=True)
class Reacher:
    """Bring the fingertip of a planar arm to a target; an episode never terminates."""

    xml_file: str = "reacher.xml"
    frame_skip: int = 2
    reward_dist_weight: float = 1.0
    reward_control_weight: float = 1.0
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return nothing: no speed is rewarded."""
        return sim.qpos[:, :0]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return the joints' cosines and sines, the target, joint velocities and the fingertip from the target."""
        angle = sim.qpos[rows, :2]
        offset = (_body(sim, "fingertip") - _body(sim, "target"))[rows, :2]
        return [np.cos(angle), np.sin(angle), sim.qpos[rows, 2:], sim.qvel[rows, :2], offset]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Charge for distance and control."""
        distance = np.linalg.norm(_body(sim, "fingertip") - _body(sim, "target"), axis=1)
        terms = {"dist": -self.reward_dist_weight * distance, "ctrl": ctrl_cost(sim, self.reward_control_weight)}
        return terms, np.zeros(sim.num_envs, dtype=bool)

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose, the target anywhere in a disc of radius 0.2."""
        qpos = model.qpos0 + generator.uniform(-0.1, 0.1, (count, model.nq))
        qpos[:, -2:] = _draw_until(
            lambda n: generator.uniform(-0.2, 0.2, (n, 2)), lambda goal: np.linalg.norm(goal, axis=1) < 0.2, count
        )
        qvel = generator.uniform(-0.005, 0.005, (count, model.nv))
        qvel[:, -2:] = 0.0
        return qpos, qvel


@dataclass(frozen=True, kw_only=True)
class Pusher:
    """Push a cylinder to a goal with an arm of seven joints; an episode never terminates."""

    xml_file: str = "pusher_v5.xml"
    frame_skip: int = 5
    reward_near_weight: float = 0.5
    reward_dist_weight: float = 1.0
    reward_control_weight: float = 0.1
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return nothing: no speed is rewarded."""
        return sim.qpos[:, :0]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return the arm's joints and velocities, and where fingertip, object and goal are."""
        bodies = [_body(sim, name)[rows] for name in ("tips_arm", "object", "goal")]
        return [sim.qpos[rows, :7], sim.qvel[rows, :7], *bodies]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Charge for both distances and for control."""
        thing = _body(sim, "object")
        terms = {
            "near": -self.reward_near_weight * np.linalg.norm(thing - _body(sim, "tips_arm"), axis=1),
            "dist": -self.reward_dist_weight * np.linalg.norm(thing - _body(sim, "goal"), axis=1),
            "ctrl": ctrl_cost(sim, self.reward_control_weight),
        }
        return terms, np.zeros(sim.num_envs, dtype=bool)

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start in the model's pose, the object anywhere on the table but near the goal."""
        qpos = np.tile(model.qpos0, (count, 1))
        qpos[:, -4:-2] = _draw_until(
            lambda n: generator.uniform((-0.3, -0.2), (0.0, 0.2), (n, 2)),
            lambda thing: np.linalg.norm(thing, axis=1) > 0.17,
            count,
        )
        qpos[:, -2:] = 0.0
        qvel = generator.uniform(-0.005, 0.005, (count, model.nv))
        qvel[:, -4:] = 0.0
        return qpos, qvel
