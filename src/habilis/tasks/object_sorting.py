"""`habilis/ObjectSorting-v0`: an arm with a suction cup sorts a cube, a puck and a ball into three bins.

Eight discrete actions move the cup's target by 2.5 cm or switch the suction; the target's joint angles are found in
closed form and followed by position servos with limited torques, so the cup lags, pushes and is held up as a real one
is. Nothing is attached by a script: the suction is the adhesion of the contacts of the cup's lip, which hold up to a
limited pull, and the objects are free bodies that can be knocked over, dropped, and dropped beside the bin.
`habilis/ObjectSortingCamera-v0` is the same seen by a camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import require_choices
from habilis.core.random import derive_seed, generator_state, set_generator_state
from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step
from habilis.envs.render import Renderer
from habilis.envs.simulation import Rows, Simulation

ACTIONS = ("forward", "back", "left", "right", "up", "down", "grip", "release")
OBJECTS = ("cube", "puck", "ball")
"""Each has a bin of its colour."""

SUBSTEPS = 10
EPISODE_STEPS = 200
STEP = 0.025
"""How far an action moves the cup's target along an axis, m."""
REACH = np.array([[0.12, -0.18, 0.04], [0.42, 0.18, 0.14]])
"""Where the target may be, m: the lowest is at the tops of the objects and above every wall."""
START = np.array([[0.15, -0.18, 0.09], [0.40, 0.18, 0.14]])
"""Where the cup starts."""
FIELD = np.array([[0.13, -0.16], [0.27, 0.16]])
"""Where the objects start, m."""
SPACING = 0.065
"""Least distance between the centres of two objects at the start, m."""
TRAY = np.array([[0.07, -0.235], [0.47, 0.235]])
"""An object whose centre is outside of this is lost."""
BIN_CENTRES = np.array([[0.38, -0.1395], [0.38, 0.0], [0.38, 0.1395]])
BIN_HALF = np.array([0.062, 0.066])
RIM = 0.03
"""Height of the walls of the bins, m: an object is in a bin when its centre is below."""
TOP = np.array([0.0, 0.0, 0.02])
"""From an object's centre to where the lip touches it, m."""
CARRY = 0.06
"""Height of an object's centre at which it clears the walls, m."""

SORTED, WRONG, LOST, STEP_COST = 1.0, -1.0, -1.0, -0.01
PROGRESS = 2.0
"""Reward for a metre less of `work_left`."""
HANDLING = 0.25
"""What an object that is not sorted adds to `work_left` besides its way, m."""

LAMP = np.array([[0.25, 0.27, 0.30, 1.0], [0.35, 1.0, 0.45, 1.0]], dtype=np.float32)
"""Colour of the tool's lamp while the suction is off and on."""
CAMERA_SIZE = 64


@dataclass(frozen=True)
class Arm:
    """Kinematics of the arm of `robots/sorting_arm.xml`: yaw, shoulder, elbow, and a wrist that keeps the tool upright.

    Joint angles are `[n, 4]` and lips of the cup `[n, 3]`, in the frame of the base. At zero the arm is stretched
    upwards and the tool hangs along it.
    """

    shoulder: float = 0.16
    """Height of the shoulder, m."""
    link: float = 0.26
    """Length of upper arm and forearm, m."""
    tool: float = 0.09
    """From the wrist to the lip, m."""

    def lip(self, angles: np.ndarray) -> np.ndarray:
        """Return where the lip is."""
        yaw, shoulder, elbow, wrist = angles.T
        fore, tool = shoulder + elbow, shoulder + elbow + wrist
        out = self.link * (np.sin(shoulder) + np.sin(fore)) - self.tool * np.sin(tool)
        up = self.shoulder + self.link * (np.cos(shoulder) + np.cos(fore)) - self.tool * np.cos(tool)
        return np.stack([out * np.cos(yaw), out * np.sin(yaw), up], axis=1)

    def angles(self, lip: np.ndarray) -> np.ndarray:
        """Return the angles, elbow up, that bring the lip there with the tool upright; the place must be in reach."""
        x, y, z = lip.T
        out, up = np.hypot(x, y), z + self.tool - self.shoulder
        elbow = np.arccos((out**2 + up**2) / (2 * self.link**2) - 1)
        shoulder = np.arctan2(out, up) - elbow / 2  # the two links are equally long
        return np.stack([np.arctan2(y, x), shoulder, elbow, -shoulder - elbow], axis=1)


@dataclass(frozen=True)
class Scene:
    """n trays at one moment."""

    lip: np.ndarray
    """`[n, 3]`: where the cup's lip is."""
    objects: np.ndarray
    """`[n, 3, 3]`: the centre of each object."""
    held: np.ndarray
    """`[n, 3]` bool: the suction is on and the lip touches the object."""
    sorted: np.ndarray
    """`[n, 3]` bool: in its own bin and let go."""
    wrong: np.ndarray
    """`[n, 3]` bool: in another bin and let go."""
    lost: np.ndarray
    """`[n]` bool: an object has left the tray."""


def work_left(scene: Scene) -> np.ndarray:
    """Return `[n]`: the metres that are left to do, the potential of the reward for progress.

    Each object that is not sorted adds `HANDLING`, its horizontal distance to the centre of its bin and, until it is
    over the bin, what it must still be lifted; where none is held, the distance of the lip to the nearest object that
    is not sorted adds too.
    """
    away = scene.objects[:, :, :2] - BIN_CENTRES
    over = (np.abs(away) < BIN_HALF).all(axis=2)
    lift = np.where(over, 0.0, np.maximum(CARRY - scene.objects[:, :, 2], 0.0))
    way = np.where(scene.sorted, 0.0, HANDLING + np.hypot(away[:, :, 0], away[:, :, 1]) + lift)
    gap = scene.objects + TOP - scene.lip[:, None]
    reach = np.where(scene.sorted, np.inf, np.linalg.norm(gap, axis=2)).min(axis=1)
    idle = ~(scene.held.any(axis=1) | scene.sorted.all(axis=1))
    return way.sum(axis=1) + np.where(idle, reach, 0.0)


class ObjectSorting:
    """N arms at N trays: a `VecEnv` whose `simulation` is open to the caller.

    Args:
        id: the name the environment is known by.
        num_envs: N.
        seed: of the stream that episodes are started from.
        threads: CPU threads of the physics; None measures.
        camera: whether the policy sees a picture `[64, 64, 3]`; the state is then the group `critic`.
    """

    def __init__(
        self, id: str, num_envs: int, *, seed: int = 0, threads: int | None = None, camera: bool = False
    ) -> None:
        model = mujoco.MjModel.from_xml_path(str(Path(__file__).parent / "robots" / "sorting_arm.xml"))
        self.num_envs = num_envs
        self.simulation = Simulation(model, num_envs, threads=threads)
        self._arm = Arm()
        self._touch = self.simulation.bind("sensordata")
        self._lips = np.flatnonzero((model.geom_adhesion > 0) & (model.geom_contype > 0))
        self._pull = model.geom_adhesion[self._lips]
        self._adhesion = self.simulation.expand("geom_adhesion")
        self._lamp = self.simulation.expand("site_rgba")[:, model.site("lamp").id]
        self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._target = np.zeros((num_envs, 3))
        self._suction = np.zeros(num_envs, dtype=bool)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._work = np.zeros(num_envs)
        self._sorted = np.zeros((num_envs, 3), dtype=bool)
        self._wrong = np.zeros((num_envs, 3), dtype=bool)
        self._renderer: Renderer | None = None
        self._begin(np.arange(num_envs))
        state = ObsGroup((self._observe(self._look(slice(None)), slice(None)).shape[1],))
        picture = ObsGroup((CAMERA_SIZE, CAMERA_SIZE, 3), "uint8")
        self.spec = EnvSpec(
            id=id,
            obs={"policy": picture, "critic": state} if camera else {"policy": state},
            action=DiscreteAction(len(ACTIONS)),
            max_episode_steps=EPISODE_STEPS,
            saves_state=True,
            backend="native",
            control_dt=self.simulation.timestep * SUBSTEPS,
            action_names=ACTIONS,
        )
        if camera:
            self._renderer = Renderer(self, width=CAMERA_SIZE, height=CAMERA_SIZE, camera="above", quick=True)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes, from the seed where one is given."""
        if seed is not None:
            self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._begin(np.arange(self.num_envs))
        return self._groups(self._observe(self._look(slice(None)), slice(None)))

    def step(self, action: Tensor) -> Step:
        """Apply one of `ACTIONS` `[N]` to each environment; those whose episode ended begin the next."""
        require_choices(self.spec, action, self.num_envs)
        choice = action.numpy(force=True)
        self._command(choice)
        diverged = self.simulation.step(SUBSTEPS)
        self._elapsed += 1
        if diverged.any():  # what they say now means nothing, and would stain the rest with NaN
            self._begin(np.flatnonzero(diverged))
        scene = self._look(slice(None))
        terminated = (scene.sorted.all(axis=1) | scene.lost) & ~diverged
        truncated = ((self._elapsed >= EPISODE_STEPS) & ~terminated) | diverged
        reward, info = self._judge(scene, diverged)
        state = self._observe(scene, slice(None))
        obs = next_obs = self._groups(state)
        ended = np.flatnonzero((terminated | truncated) & ~diverged)
        if ended.size:
            self._begin(ended)
            obs = self._restarted(ended, state, next_obs)
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=reward,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(~diverged),
            info=info,
        )

    def state_dict(self) -> State:
        """Return the physics, the cups' targets, what the next reward is measured from, and the random stream."""
        return {
            "simulation": self.simulation.state_dict(),
            "target": self._target.copy(),
            "suction": self._suction.copy(),
            "elapsed": self._elapsed.copy(),
            "work": self._work.copy(),
            "sorted": self._sorted.copy(),
            "wrong": self._wrong.copy(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; the environments go on bit for bit."""
        self.simulation.load_state_dict(state["simulation"])
        for name in ("target", "suction", "elapsed", "work", "sorted", "wrong"):
            getattr(self, f"_{name}")[:] = np.asarray(state[name])
        set_generator_state(self._generator, state["generator"])

    def close(self) -> None:
        """Free the threads and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.simulation.close()

    def _command(self, choice: np.ndarray) -> None:
        """Move the targets and switch the suction as `choice` `[N]` says."""
        self._target = np.clip(self._target + _MOVES[choice], *REACH)
        self.simulation.ctrl[:] = self._arm.angles(self._target)
        switched = choice >= 6
        self._switch(np.flatnonzero(switched), choice[switched] == 6)

    def _switch(self, rows: np.ndarray, on: np.ndarray | bool) -> None:
        self._suction[rows] = on
        self._adhesion[rows[:, None], self._lips] = self._pull * self._suction[rows, None]
        self._lamp[rows] = LAMP[self._suction[rows].astype(int)]

    def _look(self, rows: Rows) -> Scene:
        """Read the trays `rows`. What the lip touches is one physics step old, as the sensors give it."""
        simulation = self.simulation
        objects = simulation.qpos[rows, 4:].reshape(-1, 3, 7)[:, :, :3]
        held = (self._touch[rows] > 0) & self._suction[rows, None]
        away = np.abs(objects[:, :, None, :2] - BIN_CENTRES)
        inside = (away < BIN_HALF).all(axis=3) & ((objects[:, :, 2] < RIM) & ~held)[:, :, None]
        own = inside[:, range(3), range(3)]
        lost = ((objects[:, :, :2] < TRAY[0]) | (objects[:, :, :2] > TRAY[1])).any(axis=(1, 2))
        lip = self._arm.lip(simulation.qpos[rows, :4])
        return Scene(lip, objects.copy(), held, own, inside.any(axis=2) & ~own, lost)

    def _observe(self, scene: Scene, rows: Rows) -> np.ndarray:
        """Return the state `[n, 31]` float32, scaled to about 1."""
        lip = scene.lip
        tool = (lip - REACH.mean(axis=0)) / (np.ptp(REACH, axis=0) / 2)
        lag = (self._target[rows] - lip) / STEP
        suction = self._suction[rows, None]
        relative = (scene.objects - lip[:, None]) / 0.1
        way = (BIN_CENTRES - scene.objects[:, :, :2]) / 0.1
        flags = np.stack([scene.held, scene.sorted, scene.wrong], axis=2)
        each = np.concatenate([relative, way, flags], axis=2).reshape(len(lip), -1)
        return np.concatenate([tool, lag, suction, each], axis=1, dtype=np.float32, casting="same_kind")

    def _groups(self, state: np.ndarray) -> dict[str, Tensor]:
        """Return the observation groups: the state, or pictures of every tray and the state."""
        if self._renderer is None:
            return {"policy": torch.from_numpy(state)}
        pictures = np.stack([self._renderer.frame(i) for i in range(self.num_envs)])
        return {"policy": torch.from_numpy(pictures), "critic": torch.from_numpy(state)}

    def _restarted(self, ended: np.ndarray, state: np.ndarray, next_obs: Obs) -> dict[str, Tensor]:
        """Return `next_obs` with the rows `ended` replaced by the first observations of their new episodes."""
        first = state.copy()
        first[ended] = self._observe(self._look(ended), ended)
        if self._renderer is None:
            return {"policy": torch.from_numpy(first)}
        pictures = next_obs["policy"].clone()
        for i in ended:
            pictures[i] = torch.from_numpy(self._renderer.frame(i))
        return {"policy": pictures, "critic": torch.from_numpy(first)}

    def _judge(self, scene: Scene, diverged: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the reward `[N]` and the info, and remember what the next reward is measured from."""
        work = work_left(scene)
        terms = {
            "sorted": SORTED * (scene.sorted.sum(axis=1) - self._sorted.sum(axis=1, dtype=int)),
            "wrong": WRONG * (scene.wrong & ~self._wrong).sum(axis=1),
            "lost": LOST * scene.lost,
            "progress": PROGRESS * (self._work - work),
            "step": np.full(self.num_envs, STEP_COST),
        }
        self._work, self._sorted, self._wrong = work, scene.sorted, scene.wrong
        share = scene.sorted.mean(axis=1)
        rows = np.stack([sum(terms.values()), *terms.values(), share], dtype=np.float32, casting="same_kind")
        rows[:, diverged] = 0.0
        reward, *parts, share = torch.from_numpy(rows).unbind()
        info = {f"reward/{name}": part for name, part in zip(terms, parts, strict=True)}
        info["success/sorted"] = share
        info["success"] = share == 1.0
        info["termination/lost"] = torch.from_numpy(scene.lost & ~diverged)
        info["diverged"] = torch.from_numpy(diverged)
        return reward, info

    def _begin(self, rows: np.ndarray) -> None:
        """Start new episodes in the environments `rows`."""
        simulation, count, generator = self.simulation, len(rows), self._generator
        simulation.reset(rows)
        target = generator.uniform(START[0], START[1], (count, 3))
        self._target[rows] = target
        simulation.qpos[rows, :4] = simulation.ctrl[rows] = self._arm.angles(target)
        poses = simulation.qpos[rows, 4:].reshape(count, 3, 7)
        poses[:, :, :2] = _scatter(count, generator)
        turn = generator.uniform(0, np.pi, (count, 3))
        poses[:, :, 3], poses[:, :, 6] = np.cos(turn / 2), np.sin(turn / 2)
        simulation.qpos[rows, 4:] = poses.reshape(count, 21)
        self._switch(rows, False)
        simulation.forward(rows)
        self._elapsed[rows] = 0
        scene = self._look(rows)
        self._work[rows] = work_left(scene)
        self._sorted[rows], self._wrong[rows] = scene.sorted, scene.wrong


_MOVES = np.zeros((len(ACTIONS), 3))
_MOVES[range(6), (0, 0, 1, 1, 2, 2)] = [STEP, -STEP, STEP, -STEP, STEP, -STEP]


def _scatter(count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `[count, 3, 2]` places in `FIELD`, uniform among those that are `SPACING` apart."""
    places = generator.uniform(FIELD[0], FIELD[1], (count, 3, 2))
    while True:
        gaps = np.linalg.norm(places - places[:, [1, 2, 0]], axis=2).min(axis=1)
        close = np.flatnonzero(gaps < SPACING)
        if not close.size:
            return places
        places[close] = generator.uniform(FIELD[0], FIELD[1], (close.size, 3, 2))
