"""InvertedPendulum and InvertedDoublePendulum: a cart that keeps poles upright.

Observation, reward, termination and start are those of Gymnasium's `*-v5` environments, and so are the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np

from habilis.envs.mujoco.runners import normal_start, uniform_start
from habilis.envs.simulation import Rows, Simulation


@dataclass(frozen=True, kw_only=True)
class InvertedPendulum:
    """Keep one pole within 0.2 radians of upright."""

    xml_file: str = "inverted_pendulum.xml"
    frame_skip: int = 2
    reset_noise_scale: float = 0.01
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return nothing: no speed is rewarded."""
        return sim.qpos[:, :0]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return positions and velocities of cart and pole."""
        return [sim.qpos[rows], sim.qvel[rows]]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward each step upright; terminate when the pole falls."""
        fallen = np.abs(sim.qpos[:, 1]) > 0.2
        return {"survive": (~fallen).astype(np.float64)}, fallen

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near upright."""
        return uniform_start(model, count, generator, self.reset_noise_scale)


@dataclass(frozen=True, kw_only=True)
class InvertedDoublePendulum:
    """Keep the tip of two poles, one on the other, above height 1."""

    xml_file: str = "inverted_double_pendulum.xml"
    frame_skip: int = 5
    healthy_reward: float = 10.0
    reset_noise_scale: float = 0.1
    external_forces: ClassVar[bool] = False

    def position(self, sim: Simulation) -> np.ndarray:
        """Return nothing: no speed is rewarded."""
        return sim.qpos[:, :0]

    def observe(self, sim: Simulation, rows: Rows) -> list[np.ndarray]:
        """Return the cart, the poles' sines and cosines, velocities and the cart's constraint force, clipped to 10."""
        angle = sim.qpos[rows, 1:]
        force = sim.bind("qfrc_constraint")[rows, :1]
        velocity = sim.qvel[rows].clip(-10.0, 10.0)
        return [sim.qpos[rows, :1], np.sin(angle), np.cos(angle), velocity, force.clip(-10.0, 10.0)]

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Reward each step upright, charge for the tip's offset and the poles' speed; terminate when the tip falls."""
        tip = sim.bind("site_xpos")[:, 0]
        fallen = tip[:, 2] <= 1.0
        terms = {
            "survive": self.healthy_reward * ~fallen,
            "distance": -(0.01 * tip[:, 0] ** 2 + (tip[:, 2] - 2.0) ** 2),
            "velocity": -(1e-3 * sim.qvel[:, 1] ** 2 + 5e-3 * sim.qvel[:, 2] ** 2),
        }
        return terms, fallen

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start near upright."""
        return normal_start(model, count, generator, self.reset_noise_scale)
