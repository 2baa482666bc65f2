"""HalfCheetah, Hopper, Walker2d and Swimmer: planar robots that are to move along x.

Observation, reward, termination and start are those of Gymnasium's `*-v5` environments, and so are the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np

from habilis.envs.simulation import Rows, Simulation


def between(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Return where `values` lie strictly between the two bounds."""
    inside: np.ndarray = (bounds[0] < values) & (values < bounds[1])
    return inside


def ctrl_cost(sim: Simulation, weight: float) -> np.ndarray:
    """Return `-weight * |action|^2` `[N]`."""
    cost: np.ndarray = -weight * np.square(sim.ctrl).sum(axis=1)
    return cost


def uniform_start(
    model: mujoco.MjModel, count: int, generator: np.random.Generator, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw positions and velocities uniformly within `scale` of the model's own."""
    qpos = model.qpos0 + generator.uniform(-scale, scale, (count, model.nq))
    return qpos, generator.uniform(-scale, scale, (count, model.nv))


def normal_start(
    model: mujoco.MjModel, count: int, generator: np.random.Generator, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw positions uniformly within `scale` of the model's own, velocities from a normal of that deviation."""
    qpos = model.qpos0 + generator.uniform(-scale, scale, (count, model.nq))
    return qpos, scale * generator.standard_normal((count, model.nv))


@dataclass(frozen=True, kw_only=True)
class HalfCheetah:
    """Run forwards; an episode never terminates."""

    xml_file: str = "half_cheetah.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return x of the root."""
        return sim.qpos[:, :1]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return joint positions, without x by default, and velocities."""
        first = int(self.exclude_current_positions_from_observation)
        return [sim.qpos[rows, first:], sim.qvel[rows]]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward forward speed, charge for control."""
        terms = {
            "forward": self.forward_reward_weight * velocity[:, 0],
            "ctrl": ctrl_cost(sim, self.ctrl_cost_weight),
        }
        return terms, np.zeros(sim.num_envs, dtype=bool)

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose."""
        return normal_start(model, count, generator, self.reset_noise_scale)


@dataclass(frozen=True, kw_only=True)
class Hopper:
    """Hop forwards on one leg without falling."""

    xml_file: str = "hopper.xml"
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_state_range: tuple[float, float] = (-100.0, 100.0)
    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return x of the root."""
        return sim.qpos[:, :1]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return joint positions, without x by default, and velocities clipped to 10."""
        first = int(self.exclude_current_positions_from_observation)
        return [sim.qpos[rows, first:], sim.qvel[rows].clip(-10.0, 10.0)]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward forward speed and health, charge for control; terminate when unhealthy."""
        healthy = (
            between(sim.qpos[:, 1], self.healthy_z_range)
            & between(sim.qpos[:, 2], self.healthy_angle_range)
            & between(sim.qpos[:, 2:], self.healthy_state_range).all(axis=1)
            & between(sim.qvel, self.healthy_state_range).all(axis=1)
        )
        terms = {
            "forward": self.forward_reward_weight * velocity[:, 0],
            "ctrl": ctrl_cost(sim, self.ctrl_cost_weight),
            "survive": self.healthy_reward * healthy,
        }
        return terms, ~healthy & self.terminate_when_unhealthy

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose."""
        return uniform_start(model, count, generator, self.reset_noise_scale)


@dataclass(frozen=True, kw_only=True)
class Walker2d:
    """Walk forwards on two legs without falling."""

    xml_file: str = "walker2d_v5.xml"
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (0.8, 2.0)
    healthy_angle_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return x of the root."""
        return sim.qpos[:, :1]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return joint positions, without x by default, and velocities clipped to 10."""
        first = int(self.exclude_current_positions_from_observation)
        return [sim.qpos[rows, first:], sim.qvel[rows].clip(-10.0, 10.0)]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward forward speed and health, charge for control; terminate when unhealthy."""
        healthy = between(sim.qpos[:, 1], self.healthy_z_range) & between(sim.qpos[:, 2], self.healthy_angle_range)
        terms = {
            "forward": self.forward_reward_weight * velocity[:, 0],
            "ctrl": ctrl_cost(sim, self.ctrl_cost_weight),
            "survive": self.healthy_reward * healthy,
        }
        return terms, ~healthy & self.terminate_when_unhealthy

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose."""
        return uniform_start(model, count, generator, self.reset_noise_scale)


@dataclass(frozen=True, kw_only=True)
class Swimmer:
    """Swim forwards in a viscous plane; an episode never terminates."""

    xml_file: str = "swimmer.xml"
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-4
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return x and y of the front tip."""
        return sim.qpos[:, :2]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return joint positions, without x and y by default, and velocities."""
        first = 2 * int(self.exclude_current_positions_from_observation)
        return [sim.qpos[rows, first:], sim.qvel[rows]]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward forward speed, charge for control."""
        terms = {
            "forward": self.forward_reward_weight * velocity[:, 0],
            "ctrl": ctrl_cost(sim, self.ctrl_cost_weight),
        }
        return terms, np.zeros(sim.num_envs, dtype=bool)

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose."""
        return uniform_start(model, count, generator, self.reset_noise_scale)
