"""Ant and Humanoid: robots free in space, which feel the forces of contact.

Observation, reward, termination and start are those of Gymnasium's `*-v5` environments, and so are the arguments.
Fields that MuJoCo derives (body positions, inertias, contact forces) lag the state by a substep here as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np

from habilis.envs.mujoco.runners import between, ctrl_cost, normal_start, uniform_start
from habilis.envs.simulation import Rows, Simulation


def _flat(values: np.ndarray) -> np.ndarray:
    """Return one row per environment, the world (body 0) left out."""
    return values[:, 1:].reshape(len(values), -1)


@dataclass(frozen=True, kw_only=True)
class Ant:
    """Walk forwards on four legs."""

    xml_file: str = "ant.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    healthy_reward: float = 1.0
    main_body: int | str = 1
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    include_cfrc_ext_in_observation: bool = True
    external_forces: ClassVar[bool] = True

    def position(self, sim: Simulation) -> np.ndarray:
        """Return x and y of the main body."""
        return sim.bind("xpos")[:, sim.model.body(self.main_body).id, :2]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return positions, without x and y by default, velocities and clipped contact forces."""
        first = 2 * int(self.exclude_current_positions_from_observation)
        parts = [sim.qpos[rows, first:], sim.qvel[rows]]
        if self.include_cfrc_ext_in_observation:
            parts.append(_flat(sim.bind("cfrc_ext")[rows]).clip(*self.contact_force_range))
        return parts

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward forward speed and health, charge for control and contact; terminate when unhealthy."""
        # a state that is not finite has diverged, which the environment sees to
        height = sim.qpos[:, 2]
        healthy = (self.healthy_z_range[0] <= height) & (height <= self.healthy_z_range[1])
        force = sim.bind("cfrc_ext").clip(*self.contact_force_range)
        terms = {
            "forward": self.forward_reward_weight * velocity[:, 0],
            "ctrl": ctrl_cost(sim, self.ctrl_cost_weight),
            "contact": -self.contact_cost_weight * np.square(force).sum(axis=(1, 2)),
            "survive": self.healthy_reward * healthy,
        }
        return terms, ~healthy & self.terminate_when_unhealthy

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose."""
        return normal_start(model, count, generator, self.reset_noise_scale)


@dataclass(frozen=True, kw_only=True)
class Humanoid:
    """Walk forwards on two legs without falling."""

    xml_file: str = "humanoid.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.25
    ctrl_cost_weight: float = 0.1
    contact_cost_weight: float = 5e-7
    contact_cost_range: tuple[float, float] = (-float("inf"), 10.0)
    healthy_reward: float = 5.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (1.0, 2.0)
    reset_noise_scale: float = 1e-2
    exclude_current_positions_from_observation: bool = True
    include_cinert_in_observation: bool = True
    include_cvel_in_observation: bool = True
    include_qfrc_actuator_in_observation: bool = True
    include_cfrc_ext_in_observation: bool = True
    external_forces: ClassVar[bool] = True

    def position(self, sim: Simulation) -> np.ndarray:
        """Return x and y of the centre of mass."""
        mass = sim.model.body_mass
        centre: np.ndarray = np.einsum("b,nbj->nj", mass, sim.bind("xipos")[:, :, :2]) / mass.sum()
        return centre

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return positions, without x and y by default, velocities, inertias, motor forces and contact forces."""
        first = 2 * int(self.exclude_current_positions_from_observation)
        parts = [sim.qpos[rows, first:], sim.qvel[rows]]
        if self.include_cinert_in_observation:
            parts.append(_flat(sim.bind("cinert")[rows]))
        if self.include_cvel_in_observation:
            parts.append(_flat(sim.bind("cvel")[rows]))
        if self.include_qfrc_actuator_in_observation:
            parts.append(sim.bind("qfrc_actuator")[rows, 6:])
        if self.include_cfrc_ext_in_observation:
            parts.append(_flat(sim.bind("cfrc_ext")[rows]))
        return parts

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward forward speed and health, charge for control and contact; terminate when unhealthy."""
        healthy = between(sim.qpos[:, 2], self.healthy_z_range)
        contact_cost = self.contact_cost_weight * np.square(sim.bind("cfrc_ext")).sum(axis=(1, 2))
        terms = {
            "forward": self.forward_reward_weight * velocity[:, 0],
            "ctrl": ctrl_cost(sim, self.ctrl_cost_weight),
            "contact": -contact_cost.clip(*self.contact_cost_range),
            "survive": self.healthy_reward * healthy,
        }
        return terms, ~healthy & self.terminate_when_unhealthy

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near the model's pose."""
        return uniform_start(model, count, generator, self.reset_noise_scale)
