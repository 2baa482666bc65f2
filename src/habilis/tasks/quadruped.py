"""`habilis/QuadrupedWalk-v0`: a four-legged robot follows a commanded planar velocity and yaw rate on flat ground.

The policy acts at 50 Hz on position targets of twelve joints; servos and physics run at 200 Hz. It sees what a
Go1-class robot senses, with noise: gyro, direction of gravity, joint angles and velocities, foot contacts, its last
action, the command and a gait clock. The critic also sees the truth. Commands go up to 1 m/s and change every five
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from habilis.core.errors import ConfigError, did_you_mean
from habilis.tasks import locomotion as walk
from habilis.tasks.task import Event, ObsTerm, RewardTerm, Task, TaskConfig, Term

COMMANDS = {"forward": 1.0, "sideways": 0.5, "yaw_rate": 1.0, "standing": 0.1}
FALL = {"height": 0.16, "tilt": 0.9}
EPISODE_STEPS = 1000


def _see(name: str, noise: float = 0.0) -> ObsTerm:
    return ObsTerm(function=walk.field, noise=noise, params={"name": name})


QUADRUPED_WALK = TaskConfig(
    id="habilis/QuadrupedWalk-v0",
    model=Path(__file__).parent / "robots" / "quadruped.xml",
    keyframe="stand",
    substeps=4,
    episode_steps=EPISODE_STEPS,
    # abduction, thigh, calf of each leg, rad
    action_scale=(0.3, 0.6, 0.6) * 4,
    memory={"command": 3, "clock": 1, "error_sum": 1},
    sense=walk.Sense,
    observations={
        "policy": {
            "gyro": _see("gyro", noise=0.2),
            "gravity": _see("sensed_gravity", noise=0.05),
            "command": _see("command"),
            "joint_angles": _see("encoder_offset", noise=0.02),
            "joint_velocities": _see("encoder_velocity", noise=1.0),
            "last_action": _see("action"),
            "foot_contacts": _see("foot_contact"),
            "clock": _see("clock"),
        },
        "critic": {
            "base_velocity": _see("base_velocity"),
            "base_rate": _see("base_rate"),
            "gravity": _see("gravity"),
            "height": _see("height"),
            "command": _see("command"),
            "joint_angles": _see("joint_offset"),
            "joint_velocities": _see("joint_velocity"),
            "last_action": _see("action"),
            "foot_contacts": _see("foot_contact"),
            "foot_heights": _see("foot_height"),
            "clock": _see("clock"),
            "friction": _see("friction"),
            "trunk_mass": _see("trunk_mass"),
        },
    },
    rewards={
        "velocity": RewardTerm(function=walk.track_velocity, weight=3.0, params={"width": 0.4}),
        "yaw_rate": RewardTerm(function=walk.track_yaw_rate, weight=1.0, params={"width": 0.5}),
        "trot": RewardTerm(function=walk.trot, weight=2.0),
        "foot_clearance": RewardTerm(function=walk.foot_clearance, weight=-1.0, params={"height": 0.07}),
        "foot_slip": RewardTerm(function=walk.foot_slip, weight=-0.3),
        "vertical_velocity": RewardTerm(function=walk.vertical_velocity, weight=-1.0),
        "roll_pitch_rate": RewardTerm(function=walk.roll_pitch_rate, weight=-0.05),
        "tilt": RewardTerm(function=walk.tilt, weight=-5.0),
        "height": RewardTerm(function=walk.height_error, weight=-50.0, params={"target": 0.28}),
        "torque": RewardTerm(function=walk.torque, weight=-2e-4),
        "action_rate": RewardTerm(function=walk.action_rate, weight=-0.1),
        "joint_limits": RewardTerm(function=walk.joint_limits, weight=-2.0),
        "abduction": RewardTerm(function=walk.abduction, weight=-0.5),
        "stand_still": RewardTerm(function=walk.stand_still, weight=-0.2),
    },
    terminations={"fall": Term(function=walk.fallen, params=FALL)},
    info={
        "tracking_error": Term(function=walk.tracking_error),
        "success": Term(function=walk.succeeded, params={"steps": EPISODE_STEPS, "error": 0.25, **FALL}),
    },
    on_reset=(
        Event(function=walk.start_pose, params={"tilt": 0.1, "joint": 0.15, "speed": 0.3, "rate": 0.3}),
        Event(function=walk.random_friction, params={"low": 0.5, "high": 1.2}),
        Event(function=walk.random_trunk_mass, params={"low": 0.85, "high": 1.15}),
        Event(function=walk.start_clock),
        Event(function=walk.draw_command, params=COMMANDS),
    ),
    before_step=(
        Event(function=walk.push, params={"interval": 8.0, "speed": 0.4}),
        Event(function=walk.advance_clock, params={"frequency": 2.0}),
    ),
    after_step=(
        Event(function=walk.sum_error),
        Event(function=walk.resample_command, params={"seconds": 5.0, **COMMANDS}),
    ),
)
"""The task as it is registered."""


def make_quadruped_walk(
    id: str,
    num_envs: int,
    *,
    seed: int = 0,
    threads: int | None = None,
    command: Sequence[float] | None = None,
    reward_weights: Mapping[str, float] | None = None,
) -> Task:
    """Build the walking task.

    Args:
        id: the name the environment is known by.
        num_envs: number of robots.
        seed: root of the task's random streams.
        threads: CPU threads of the physics; None measures.
        command: a velocity forward, to the left (m/s) and a yaw rate (rad/s) that hold for every episode as a whole,
            instead of random ones.
        reward_weights: weights to put in place of the registered ones, by term.
    """
    config = replace(QUADRUPED_WALK, id=id)
    if command is not None:
        starts = tuple(event for event in config.on_reset if event.function is not walk.draw_command)
        fixed = Event(function=walk.fixed_command, params={"command": tuple(command)})
        config = replace(config, on_reset=(*starts, fixed), after_step=(Event(function=walk.sum_error),))
    if reward_weights:
        config = replace(config, rewards=_reweighted(config.rewards, reward_weights))
    return Task(config, num_envs, seed=seed, threads=threads)


def _reweighted(rewards: Mapping[str, RewardTerm], weights: Mapping[str, float]) -> dict[str, RewardTerm]:
    """Return the terms with other weights; a term that does not exist is refused."""
    for name in weights:
        if name not in rewards:
            raise ConfigError(
                f"there is no reward term {name!r}{did_you_mean(name, rewards)}; known: {', '.join(rewards)}"
            )
    return {name: replace(term, weight=weights.get(name, term.weight)) for name, term in rewards.items()}
