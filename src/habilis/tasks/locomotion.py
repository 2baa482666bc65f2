"""Walking on legs: what is sensed, rewarded, ended and randomised, as plain functions.

`Sense` reads N simulations of a four-legged robot into one frozen `WalkState`; observation, reward and termination
terms are pure functions of that state, and events change the simulations. All tensors are batched over the n
simulations that were asked for. Lengths are in metres, angles in radians, times in seconds, forces in newtons. The base
frame is the trunk's: x forward, y left, z up. The ideas behind the reward are those of the published legged-robot tasks
(Rudin et al. 2022, arXiv 2109.11978; Siekmann et al. 2021, arXiv 2011.01387, for the gait clock).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from habilis.envs.simulation import Rows
    from habilis.tasks.task import Task

TWO_PI = 2.0 * torch.pi
TROT_OFFSETS = (0.0, 0.5, 0.5, 0.0)
"""Where in the cycle each leg (FR FL RR RL) is while the clock is at 0: diagonal legs move together."""


@dataclass(frozen=True, slots=True)
class WalkState:
    """n walking robots at one moment. What the robot itself senses is one physics step old, as the sensors give it."""

    command: Tensor
    """[n, 3]: wanted velocity forward and left (m/s) and yaw rate (rad/s), in the base frame."""
    base_velocity: Tensor
    """[n, 3]: true velocity of the trunk in its own frame, m/s."""
    base_rate: Tensor
    """[n, 3]: true angular velocity of the trunk in its own frame, rad/s."""
    gravity: Tensor
    """[n, 3]: true direction of gravity in the base frame; (0, 0, -1) when level."""
    height: Tensor
    """[n]: height of the trunk's origin above the floor."""
    joint_offset: Tensor
    """[n, 12]: true joint angles minus the stance."""
    joint_velocity: Tensor
    """[n, 12]: true joint velocities, rad/s."""
    beyond_limits: Tensor
    """[n, 12]: how far each joint is beyond the inner 90% of its range, rad."""
    encoder_offset: Tensor
    """[n, 12]: sensed joint angles minus the stance."""
    encoder_velocity: Tensor
    """[n, 12]: sensed joint velocities."""
    torque: Tensor
    """[n, 12]: torque at each joint, N m."""
    gyro: Tensor
    """[n, 3]: sensed angular velocity."""
    sensed_gravity: Tensor
    """[n, 3]: direction of gravity by the IMU's orientation."""
    foot_contact: Tensor
    """[n, 4] float: 1 where a foot presses the floor with more than 1 N."""
    foot_height: Tensor
    """[n, 4]: clearance of each foot above the floor."""
    foot_velocity: Tensor
    """[n, 4, 3]: velocity of each foot in the world."""
    leg_phase: Tensor
    """[n, 4] in [0, 1): where each leg is in its cycle; stance below 0.5, swing above."""
    moving: Tensor
    """[n] float: 1 where the command is to move, 0 where it is to stand."""
    clock: Tensor
    """[n, 2]: sine and cosine of the gait clock; zero while the command is to stand."""
    action: Tensor
    """[n, 12]: the action in force."""
    last_action: Tensor
    """[n, 12]: the one before it."""
    friction: Tensor
    """[n]: sliding friction of the floor."""
    trunk_mass: Tensor
    """[n]: mass of the trunk over its nominal mass."""
    tracking_error: Tensor
    """[n]: distance between wanted and true planar velocity, m/s."""
    mean_tracking_error: Tensor
    """[n]: its mean over the episode so far."""
    episode_step: Tensor
    """[n] int64: steps since the episode began."""


class Sense:
    """Reads simulations of a four-legged robot of `robots/*.xml` into a `WalkState`.

    Args:
        model: a model with a free trunk, twelve leg joints, a keyframe `stand` and the sensors of `quadruped.xml`.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        first, last = model.actuator(0).name, model.actuator(model.nu - 1).name
        feet = [model.sensor(i).name.removesuffix("_touch") for i in range(model.nsensor)
                if model.sensor(i).name.endswith("_touch")]  # fmt: skip
        self._angle = _span(model, f"{first}_angle", f"{last}_angle")
        self._velocity = _span(model, f"{first}_velocity", f"{last}_velocity")
        self._torque = _span(model, f"{first}_torque", f"{last}_torque")
        self._gyro = _span(model, "gyro", "gyro")
        self._orientation = _span(model, "orientation", "orientation")
        self._force = _span(model, f"{feet[0]}_touch", f"{feet[-1]}_touch")
        self._foot_position = _span(model, f"{feet[0]}_foot_position", f"{feet[-1]}_foot_position")
        self._foot_velocity = _span(model, f"{feet[0]}_foot_velocity", f"{feet[-1]}_foot_velocity")
        self._foot_radius = float(model.geom(f"{feet[0]}_foot").size[0])
        self._floor = model.geom("floor").id
        self._trunk = model.body("trunk").id
        self._trunk_mass = float(model.body("trunk").mass[0])
        self._stance = torch.tensor(model.key("stand").qpos[7:], dtype=torch.float32)
        joint_range = torch.tensor(model.jnt_range[1:], dtype=torch.float32)
        self._middle, self._half = joint_range.mean(1), 0.9 * (joint_range[:, 1] - joint_range[:, 0]) / 2
        self._offsets = torch.tensor(TROT_OFFSETS)

    def __call__(self, task: Task, rows: Rows) -> WalkState:
        """Return the state of the simulations `rows`."""
        simulation, memory = task.simulation, task.memory
        qpos, qvel = _floats(simulation.qpos[rows]), _floats(simulation.qvel[rows])
        sensed = _floats(simulation.bind("sensordata")[rows])
        quaternion, joint = qpos[:, 3:7], qpos[:, 7:]
        command = memory["command"][rows].clone()
        clock, moving = memory["clock"][rows], is_moving(command)
        base_velocity = into_frame(quaternion, qvel[:, :3])
        error = torch.linalg.vector_norm(command[:, :2] - base_velocity[:, :2], dim=1)
        episode_step = task.episode_step[rows].clone()
        return WalkState(
            command=command,
            base_velocity=base_velocity,
            base_rate=qvel[:, 3:6],
            gravity=down_in_frame(quaternion),
            height=qpos[:, 2],
            joint_offset=joint - self._stance,
            joint_velocity=qvel[:, 6:],
            beyond_limits=((joint - self._middle).abs() - self._half).clamp_(min=0.0),
            encoder_offset=sensed[:, self._angle] - self._stance,
            encoder_velocity=sensed[:, self._velocity],
            torque=sensed[:, self._torque],
            gyro=sensed[:, self._gyro],
            sensed_gravity=down_in_frame(sensed[:, self._orientation]),
            foot_contact=(sensed[:, self._force] > 1.0).float(),
            foot_height=sensed[:, self._foot_position].view(-1, 4, 3)[:, :, 2] - self._foot_radius,
            foot_velocity=sensed[:, self._foot_velocity].view(-1, 4, 3),
            leg_phase=(clock + self._offsets) % 1.0,
            moving=moving,
            clock=clock_signal(clock, moving),
            action=task.action[rows].clone(),
            last_action=task.last_action[rows].clone(),
            friction=_floats(simulation.expand("geom_friction")[rows, self._floor, 0]),
            trunk_mass=_floats(simulation.expand("body_mass")[rows, self._trunk]) / self._trunk_mass,
            tracking_error=error,
            mean_tracking_error=(memory["error_sum"][rows, 0] + error) / episode_step.clamp(min=1),
            episode_step=episode_step,
        )


def into_frame(quaternion: Tensor, vector: Tensor) -> Tensor:
    """Rotate world vectors `[n, 3]` into the frames whose orientations are the unit quaternions `[n, 4]` (w first)."""
    w, axis = quaternion[:, :1], quaternion[:, 1:]
    twist = 2.0 * torch.linalg.cross(axis, vector)
    return vector - w * twist + torch.linalg.cross(axis, twist)


def down_in_frame(quaternion: Tensor) -> Tensor:
    """Return the world's downward direction `[n, 3]` in the frames of unit quaternions `[n, 4]` (w first)."""
    w, x, y, z = quaternion.unbind(1)
    return torch.stack([2 * (w * y - x * z), -2 * (w * x + y * z), 2 * (x * x + y * y) - 1], dim=1)


def is_moving(command: Tensor) -> Tensor:
    """Return 1.0 for commands `[n, 3]` to move and 0.0 for those to stand, `[n]`."""
    return (command.abs().sum(1) > 0.05).float()


def clock_signal(clock: Tensor, moving: Tensor) -> Tensor:
    """Return sine and cosine `[n, 2]` of the gait clock `[n, 1]`, zero where `moving` `[n]` is 0."""
    angle = TWO_PI * clock
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1) * moving[:, None]


def _floats(array: np.ndarray) -> Tensor:
    """Return a float32 copy as a tensor."""
    return torch.from_numpy(array.astype(np.float32))


def _span(model: mujoco.MjModel, first: str, last: str) -> slice:
    """Return the columns of `sensordata` from the sensor `first` to the sensor `last`."""
    return slice(model.sensor(first).adr[0], model.sensor(last).adr[0] + model.sensor(last).dim[0])


# Observation terms: [n, k]


def field(state: WalkState, name: str) -> Tensor:
    """A field of the state, as a column where it is one number a robot."""
    value: Tensor = getattr(state, name)
    return value if value.dim() == 2 else value.unsqueeze(1)


# Reward terms: [n]


def track_velocity(state: WalkState, width: float) -> Tensor:
    """1 at the wanted planar velocity, exp(-1) at `width` m/s from it."""
    return torch.exp(-((state.tracking_error / width) ** 2))


def track_yaw_rate(state: WalkState, width: float) -> Tensor:
    """1 at the wanted yaw rate, exp(-1) at `width` rad/s from it."""
    return torch.exp(-(((state.command[:, 2] - state.base_rate[:, 2]) / width) ** 2))


def trot(state: WalkState) -> Tensor:
    """Share of the feet that press the floor when the clock says stance and are off it when it says swing."""
    stance = (state.leg_phase < 0.5) | (state.moving[:, None] < 0.5)
    return (stance == (state.foot_contact > 0.5)).float().mean(1)


def foot_clearance(state: WalkState, height: float) -> Tensor:
    """Squared distance of swinging feet from an arc of `height` above the floor, over `height` squared."""
    swing = (2.0 * state.leg_phase - 1.0).clamp(min=0.0) * state.moving[:, None]
    target = height * torch.sin(torch.pi * swing)
    return (((target - state.foot_height) / height) ** 2 * (swing > 0.0)).sum(1)


def foot_slip(state: WalkState) -> Tensor:
    """Sum of the squared horizontal speeds of the feet on the floor."""
    return (state.foot_velocity[:, :, :2].square().sum(2) * state.foot_contact).sum(1)


def vertical_velocity(state: WalkState) -> Tensor:
    """Squared vertical velocity of the trunk."""
    return state.base_velocity[:, 2].square()


def roll_pitch_rate(state: WalkState) -> Tensor:
    """Squared roll and pitch rates."""
    return state.base_rate[:, :2].square().sum(1)


def tilt(state: WalkState) -> Tensor:
    """Squared sine of the angle between the trunk and the level."""
    return state.gravity[:, :2].square().sum(1)


def height_error(state: WalkState, target: float) -> Tensor:
    """Squared difference of the trunk's height from `target`."""
    return (state.height - target).square()


def torque(state: WalkState) -> Tensor:
    """Sum of the squared joint torques: the heat of the motors."""
    return state.torque.square().sum(1)


def action_rate(state: WalkState) -> Tensor:
    """Sum of the squared changes of the action."""
    return (state.action - state.last_action).square().sum(1)


def joint_limits(state: WalkState) -> Tensor:
    """Sum of the angles beyond the inner 90% of the joints' ranges."""
    return state.beyond_limits.sum(1)


def abduction(state: WalkState) -> Tensor:
    """Sum of the squared abduction angles: legs that spread or cross."""
    return state.joint_offset[:, ::3].square().sum(1)


def stand_still(state: WalkState) -> Tensor:
    """Sum of the joints' distances from the stance while the command is to stand."""
    return state.joint_offset.abs().sum(1) * (1.0 - state.moving)


# Endings and logged quantities: [n]


def fallen(state: WalkState, height: float, tilt: float) -> Tensor:
    """Whether the trunk is below `height` or tilted by more than `tilt`."""
    return (state.height < height) | (state.gravity[:, 2] > -float(np.cos(tilt)))


def succeeded(state: WalkState, steps: int, error: float, height: float, tilt: float) -> Tensor:
    """Whether an episode of `steps` ends now on its feet, with a mean tracking error of at most `error`."""
    whole = (state.episode_step >= steps) & (state.mean_tracking_error <= error)
    return whole & ~fallen(state, height, tilt)


def tracking_error(state: WalkState) -> Tensor:
    """Distance between wanted and true planar velocity in the base frame, m/s."""
    return state.tracking_error


# Events


def start_pose(task: Task, ids: np.ndarray, tilt: float, joint: float, speed: float, rate: float) -> None:
    """Start anywhere near the stance: any heading, roll, pitch and joint angles off it, the trunk already moving.

    Args:
        task: the task.
        ids: the simulations that start.
        tilt: largest roll and pitch.
        joint: largest distance of a joint from the stance.
        speed: largest velocity of the trunk along each axis.
        rate: largest angular velocity about each axis.
    """
    simulation, n = task.simulation, len(ids)
    draw = _uniform(task, (n, 3 + 12 + 6)).double().numpy()
    roll, pitch, yaw = tilt * draw[:, 0], tilt * draw[:, 1], np.pi * draw[:, 2]
    simulation.qpos[ids, 3:7] = _quaternion(roll, pitch, yaw)
    simulation.qpos[ids, 7:] += joint * draw[:, 3:15]
    simulation.qvel[ids, :6] = draw[:, 15:] * np.repeat([speed, rate], 3)
    # lifted by a few centimetres: one foot in twenty starts inside the floor all the same, none deeper than three
    simulation.qpos[ids, 2] += 0.1 * (tilt + joint)


def random_friction(task: Task, ids: np.ndarray, low: float, high: float) -> None:
    """Set the sliding friction of the floor, one value a robot."""
    values = low + (high - low) * torch.rand(len(ids), generator=task.streams.torch("randomise")).double().numpy()
    floor = task.simulation.model.geom("floor").id
    task.simulation.expand("geom_friction")[ids, floor, 0] = values


def random_trunk_mass(task: Task, ids: np.ndarray, low: float, high: float) -> None:
    """Scale the trunk's nominal mass and inertia, and recompute the constants that MuJoCo derives from them."""
    simulation, trunk = task.simulation, task.simulation.model.body("trunk")
    scale = low + (high - low) * torch.rand(len(ids), generator=task.streams.torch("randomise")).double().numpy()
    simulation.expand("body_mass")[ids, trunk.id] = trunk.mass * scale
    simulation.expand("body_inertia")[ids, trunk.id] = trunk.inertia * scale[:, None]
    simulation.set_const(ids)


def start_clock(task: Task, ids: np.ndarray) -> None:
    """Start the gait clock anywhere in its cycle."""
    task.memory["clock"][ids] = torch.rand(len(ids), 1, generator=task.streams.torch("randomise"))


def advance_clock(task: Task, frequency: float) -> None:
    """Advance the gait clock by one control step at `frequency` cycles a second."""
    task.memory["clock"].add_(frequency * task.control_dt).remainder_(1.0)


def push(task: Task, interval: float, speed: float) -> None:
    """Push each robot once in `interval` seconds on average: its horizontal velocity jumps by up to `speed` an axis."""
    chance = torch.rand(task.num_envs, generator=task.streams.torch("push"))
    ids = np.flatnonzero((chance < task.control_dt / interval).numpy())
    if ids.size:
        jump = torch.rand(ids.size, 2, generator=task.streams.torch("push")).double().numpy()
        task.simulation.qvel[ids, :2] += speed * (2.0 * jump - 1.0)


def draw_command(
    task: Task, ids: np.ndarray, forward: float, sideways: float, yaw_rate: float, standing: float
) -> None:
    """Give the robots of `ids` a new command, uniform within limits.

    Args:
        task: the task.
        ids: the simulations.
        forward: largest velocity forward and backward, m/s.
        sideways: largest velocity to the side, m/s; the planar velocity as a whole stays within `forward`.
        yaw_rate: largest yaw rate, rad/s.
        standing: share of the commands that are to stand.
    """
    generator = task.streams.torch("command")
    limits = torch.tensor([forward, sideways, yaw_rate])
    command = (2.0 * torch.rand(len(ids), 3, generator=generator) - 1.0) * limits
    speed = torch.linalg.vector_norm(command[:, :2], dim=1, keepdim=True)
    command[:, :2] *= (forward / speed.clamp(min=1e-6)).clamp(max=1.0)
    command[torch.rand(len(ids), generator=generator) < standing] = 0.0
    task.memory["command"][ids] = command


def resample_command(task: Task, state: WalkState, seconds: float, **limits: float) -> WalkState:
    """Every `seconds` of an episode draw another command, as `draw_command` does with the same limits."""
    ids = np.flatnonzero((state.episode_step % round(seconds / task.control_dt) == 0).numpy())
    if not ids.size:
        return state
    draw_command(task, ids, **limits)
    command = task.memory["command"].clone()
    moving = is_moving(command)
    return replace(state, command=command, moving=moving, clock=clock_signal(task.memory["clock"], moving))


def sum_error(task: Task, state: WalkState) -> WalkState:
    """Add the step's tracking error to the episode's."""
    task.memory["error_sum"][:, 0] += state.tracking_error
    return state


def fixed_command(task: Task, ids: np.ndarray, command: Sequence[float]) -> None:
    """Give every episode the same command, for as long as it lasts."""
    task.memory["command"][ids] = torch.tensor(command, dtype=torch.float32)


def _uniform(task: Task, shape: tuple[int, ...]) -> Tensor:
    """Return uniform draws in [-1, 1] from the task's stream for starts."""
    return 2.0 * torch.rand(shape, generator=task.streams.torch("start")) - 1.0


def _quaternion(roll: np.ndarray, pitch: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Return unit quaternions `[n, 4]` (w first) of rotations about x, then y, then z."""
    (cr, cp, cy), (sr, sp, sy) = (tuple(f(angle / 2) for angle in (roll, pitch, yaw)) for f in (np.cos, np.sin))
    return np.stack(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ],
        axis=1,
    )
