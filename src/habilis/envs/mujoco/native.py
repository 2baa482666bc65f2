"""A Gymnasium MuJoCo task as N simulations stepped together: the part that all robots share.

`NativeMujocoEnv` steps, counts, resets and saves; what is observed and rewarded it asks of a `Robot`, a small frozen
dataclass of pure functions on batched arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import gymnasium
import mujoco
import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import continuous_actions
from habilis.core.errors import EnvError
from habilis.core.random import derive_seed, generator_state, set_generator_state
from habilis.core.specs import BoxAction, EnvSpec, ObsGroup
from habilis.core.types import NamedRows, Obs, State, Step
from habilis.envs.external_forces import compute_external_forces
from habilis.envs.render import Renderer, View
from habilis.envs.simulation import Rows, Simulation

T = TypeVar("T")


class Robot(Protocol):
    """What makes a task of a simulation. Arrays are float64 with one row per environment."""

    external_forces: ClassVar[bool]
    """Whether it reads `cfrc_ext`."""

    @property
    def xml_file(self) -> str:
        """The model: a name among Gymnasium's own, or a path that starts with `.`, `/` or `~`."""
        ...

    @property
    def frame_skip(self) -> int:
        """Substeps of physics for one action."""
        ...

    def position(self, sim: Simulation) -> np.ndarray:
        """Return `[N, k]`: the planar position whose change is rewarded; k = 0 where none is."""
        ...

    def observe(self, sim: Simulation, rows: Rows) -> Sequence[np.ndarray]:
        """Return the parts of the observation of the chosen environments, `[rows, *]` each, in order."""
        ...

    def judge(self, sim: Simulation, velocity: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the reward terms `[N]`, whose sum is the reward, and `terminated` `[N]`.

        Args:
            sim: the simulation after the step; `sim.ctrl` is the action.
            velocity: `[N, k]`, the change of `position` over the step by its duration.
        """
        ...

    def start(self, model: mujoco.MjModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the first `qpos` `[count, nq]` and `qvel` `[count, nv]` of `count` episodes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a policy sees instead of the state: a picture."""

    size: int
    """Pixels a side."""
    camera: str | View | None
    """Through which camera of the model, or where one stands; None: as of `Renderer`."""
    critic_state: bool
    """Whether the state is shown too, as the group `critic`."""


class NativeMujocoEnv:
    """N copies of one Gymnasium MuJoCo task on MuJoCo's batched engine; a `VecEnv`.

    Given the same state and actions it returns what Gymnasium's environment returns; computed in float64, handed out in
    float32. As there, an action beyond its bounds is not clipped: the motors saturate, and its cost is that of the
    action given. A simulation that diverges ends its episode with `truncated` and without `valid`, its last finite
    observation as `next_obs` and no reward, and starts a new one; `info["diverged"]` shows it.

    A policy may be shown pictures `[size, size, 3]` in place of the state: no shadows, no reflections, no smooth edges.

    `simulation.qpos` and `simulation.qvel` may be written between steps; an episode goes on from there.

    Args:
        id: the id of the task, for `spec`.
        robot: what is observed, rewarded and reset.
        num_envs: N.
        max_episode_steps: steps after which an episode is truncated; None for no limit.
        seed: of the stream that episodes are started from.
        threads: CPU threads; None measures.
        pixels: the pictures that a policy is shown; None for the state.
    """

    def __init__(
        self,
        id: str,
        robot: Robot,
        num_envs: int,
        *,
        max_episode_steps: int | None,
        seed: int,
        threads: int | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        model = _load_model(robot.xml_file, external_forces=robot.external_forces)
        self.robot = robot
        self.num_envs = num_envs
        self.simulation = Simulation(model, num_envs, threads=threads)
        self._dt = self.simulation.timestep * robot.frame_skip
        self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        # sizes; and a derived field is filled only by the calls that follow its first use
        self._position = robot.position(self.simulation).copy()
        self._obs = self._observe(slice(None))
        terms = [f"reward/{name}" for name in robot.judge(self.simulation, self._position)[0]]
        place = ["x_position", "x_velocity"] if self._position.shape[1] else []
        self._told = (*terms, *place, "diverged")
        self._dynamics = self.simulation.dynamics.copy()
        self._pixels = pixels
        side = 0 if pixels is None else pixels.size
        self._pictures = np.zeros((num_envs, side, side, 3), dtype=np.uint8)
        self._renderer: Renderer | None = None
        if pixels is not None:
            self._renderer = Renderer(self, width=side, height=side, camera=pixels.camera, quick=True, even=True)
        self._begin(np.arange(num_envs))
        state, picture = ObsGroup((self._obs.shape[1],)), ObsGroup((side, side, 3), "uint8")
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        self.spec = EnvSpec(
            id=id,
            obs=self._groups(state, picture),
            action=BoxAction(low.copy(), high.copy()),
            max_episode_steps=max_episode_steps,
            saves_state=True,
            backend="native",
            control_dt=self._dt,
            # Gymnasium names few of its motors; each of them drives one joint
            action_names=tuple(
                model.actuator(i).name or model.joint(model.actuator_trnid[i, 0]).name for i in range(model.nu)
            ),
        )

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes, from the seed where one is given."""
        if seed is not None:
            self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._begin(np.arange(self.num_envs))
        return self._observed()

    def step(self, action: Tensor) -> Step:
        """Apply `[N, dim]` actions for `frame_skip` substeps; environments whose episode ended begin the next.

        Raises:
            EnvError: the actions have another shape.
            NonFiniteError: an action is not finite.
        """
        simulation, robot = self.simulation, self.robot
        control = continuous_actions(self.spec, action, self.num_envs)
        self._notice_writes()
        simulation.ctrl[:] = control
        diverged = simulation.step(robot.frame_skip)
        self._elapsed += 1

        position = robot.position(simulation)
        velocity = (position - self._position) / self._dt
        terms, terminated = robot.judge(simulation, velocity)
        truncated = (self._elapsed >= self.spec.step_limit) & ~terminated
        told = self._numbers(terms, velocity, diverged)
        next_obs = self._observe(slice(None))
        if diverged.any():
            terminated &= ~diverged
            truncated |= diverged
            next_obs[diverged] = self._obs[diverged]

        self._obs[:] = next_obs
        self._look(~diverged)
        after = self._observed()
        self._position[:] = position
        ended = np.flatnonzero(terminated | truncated)
        if ended.size:
            self._begin(ended)
        self._dynamics[:] = simulation.dynamics
        return Step(
            obs=self._observed() if ended.size else after,
            next_obs=after,
            reward=torch.from_numpy(told[0]),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(~diverged),
            info=NamedRows(self._told, torch.from_numpy(told[1:])),
        )

    def state_dict(self) -> State:
        """Return the physics, the episode counters, and what a step needs of the one before it."""
        return {
            "simulation": self.simulation.state_dict(),
            "elapsed": self._elapsed.copy(),
            "position": self._position.copy(),
            "obs": self._obs.copy(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; the environments go on bit for bit."""
        self.simulation.load_state_dict(state["simulation"])
        self._elapsed[:] = np.asarray(state["elapsed"])
        self._position[:] = np.asarray(state["position"])
        self._obs[:] = np.asarray(state["obs"])
        self._dynamics[:] = self.simulation.dynamics
        set_generator_state(self._generator, state["generator"])
        self._look(np.arange(self.num_envs))

    def close(self) -> None:
        """Free the threads and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.simulation.close()

    def _begin(self, rows: np.ndarray) -> None:
        """Start new episodes in the environments `rows`."""
        simulation = self.simulation
        simulation.reset(rows)
        simulation.qpos[rows], simulation.qvel[rows] = self.robot.start(simulation.model, len(rows), self._generator)
        simulation.forward(rows)
        self._elapsed[rows] = 0
        self._position[rows] = self.robot.position(simulation)[rows]
        self._obs[rows] = self._observe(rows)
        self._look(rows)
        self._dynamics[rows] = simulation.dynamics[rows]

    def _look(self, rows: np.ndarray) -> None:
        """Take pictures of the environments `rows`, a mask or indices, where a policy is shown pictures."""
        if self._renderer is not None:
            for row in np.arange(self.num_envs)[rows]:
                self._pictures[row] = self._renderer.frame(row)

    def _observed(self) -> Obs:
        """Return fresh tensors of what N environments show."""
        pictures = None if self._pixels is None else torch.from_numpy(self._pictures.copy())
        return self._groups(torch.from_numpy(self._obs.copy()), pictures)

    def _groups(self, state: T, picture: T | None) -> dict[str, T]:
        """Return what is shown of a state and its picture, by groups."""
        if self._pixels is None or picture is None:
            return {"policy": state}
        return {"policy": picture, "critic": state} if self._pixels.critic_state else {"policy": picture}

    def _notice_writes(self) -> None:
        """Measure anew the position of environments whose state was written from outside, as Gymnasium would."""
        if not np.array_equal(self._dynamics, self.simulation.dynamics):
            written = (self._dynamics != self.simulation.dynamics).any(axis=1)
            self.simulation.forward(written)
            self._position[written] = self.robot.position(self.simulation)[written]

    def _observe(self, rows: Rows) -> np.ndarray:
        """Return fresh float32 observations of the environments `rows`."""
        return np.concatenate(self.robot.observe(self.simulation, rows), axis=1, dtype=np.float32, casting="same_kind")

    def _numbers(self, terms: Mapping[str, np.ndarray], velocity: np.ndarray, diverged: np.ndarray) -> np.ndarray:
        """Return the reward and what `_told` names, in the rows of one fresh float32 array."""
        place = (self.simulation.qpos[:, 0], velocity[:, 0]) if velocity.shape[1] else ()
        rows = np.array([sum(terms.values()), *terms.values(), *place, diverged], dtype=np.float32)
        if diverged.any():
            rows[:-1, diverged] = 0.0
        return rows


def _load_model(xml_file: str, *, external_forces: bool) -> mujoco.MjModel:
    """Load a model, named by the rule of Gymnasium's environments, with `cfrc_ext` where that is asked for."""
    own = xml_file.startswith(("~", ".", "/"))
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    path = Path(xml_file).expanduser() if own else assets / xml_file
    if not path.is_file():
        raise EnvError(f"there is no model file {path}: give the name of one of Gymnasium's or a path")
    warn = mujoco.get_mju_user_warning()
    if not own:  # MuJoCo would warn of old attributes in it, and write so into a file in the working directory
        mujoco.set_mju_user_warning(lambda text: None)
    try:
        if not external_forces:
            return mujoco.MjModel.from_xml_path(str(path))
        spec = mujoco.MjSpec.from_file(str(path))
        compute_external_forces(spec)
        return spec.compile()
    finally:
        mujoco.set_mju_user_warning(warn)
