"""Every term of walking by numbers worked out by hand."""

import dataclasses
import math

import mujoco
import numpy as np
import pytest
import torch

from habilis.tasks import locomotion as walk
from habilis.tasks.quadruped import make_quadruped_walk

WIDTHS = {
    "height": (), "moving": (), "friction": (), "trunk_mass": (), "tracking_error": (), "mean_tracking_error": (),
    "episode_step": (), "command": (3,), "base_velocity": (3,), "base_rate": (3,), "gravity": (3,), "gyro": (3,),
    "sensed_gravity": (3,), "foot_contact": (4,), "foot_height": (4,), "leg_phase": (4,),
    "foot_velocity": (4, 3), "clock": (2,),
}  # fmt: skip


def state(**given):
    """One robot, every field zero (twelve numbers where WIDTHS says nothing) but the given ones."""
    fields = {f.name: torch.zeros(1, *WIDTHS.get(f.name, (12,))) for f in dataclasses.fields(walk.WalkState)}
    return walk.WalkState(**fields | {name: torch.tensor([value]) for name, value in given.items()})


def joints(**given):
    values = [0.0] * 12
    for index, value in given.items():
        values[int(index[1:])] = value
    return values


CASES = [
    (walk.track_velocity, {"width": 0.5}, {"tracking_error": 0.25}, math.exp(-0.25)),
    (walk.track_yaw_rate, {"width": 0.5}, {"command": [0.0, 0.0, 1.0], "base_rate": [9.0, 9.0, 0.5]}, math.exp(-1)),
    (walk.vertical_velocity, {}, {"base_velocity": [3.0, 3.0, -0.5]}, 0.25),
    (walk.roll_pitch_rate, {}, {"base_rate": [1.0, -2.0, 7.0]}, 5.0),
    (walk.tilt, {}, {"gravity": [0.3, -0.4, -0.9]}, 0.25),
    (walk.height_error, {"target": 0.3}, {"height": 0.2}, 0.01),
    (walk.torque, {}, {"torque": joints(_0=3.0, _11=-4.0)}, 25.0),
    (walk.action_rate, {}, {"action": joints(_2=0.5), "last_action": joints(_2=-0.5, _3=2.0)}, 5.0),
    (walk.joint_limits, {}, {"beyond_limits": joints(_2=0.1, _5=0.2)}, 0.3),
    (walk.abduction, {}, {"joint_offset": joints(_0=0.1, _3=0.2, _4=9.0, _9=0.2)}, 0.09),
    (walk.stand_still, {}, {"joint_offset": joints(_1=0.1, _2=-0.2)}, 0.3),
    (walk.stand_still, {}, {"joint_offset": joints(_1=0.1, _2=-0.2), "moving": 1.0}, 0.0),
    # at a phase of 0.25 a leg stands, at 0.75 it swings: FR stands and presses, FL hangs but should stand,
    # RR presses but should swing, RL swings
    (walk.trot, {}, {"moving": 1.0, "leg_phase": [0.25, 0.25, 0.75, 0.75], "foot_contact": [1.0, 0.0, 1.0, 0.0]}, 0.5),
    (walk.trot, {}, {"leg_phase": [0.25, 0.25, 0.75, 0.75], "foot_contact": [1.0, 1.0, 1.0, 0.0]}, 0.75),
    # FR on the ground in stance; FL at the top of its arc; RR half a height below it; RL at 1/6 of the swing, where
    # the arc is at half its height, on the ground
    (walk.foot_clearance, {"height": 0.08},
     {"moving": 1.0, "leg_phase": [0.2, 0.75, 0.75, 0.5 + 1 / 12], "foot_height": [0.0, 0.08, 0.04, 0.0]}, 0.5),
    (walk.foot_clearance, {"height": 0.08}, {"leg_phase": [0.2, 0.75, 0.75, 0.6]}, 0.0),
    (walk.foot_slip, {},
     {"foot_contact": [1.0, 0.0, 1.0, 0.0], "foot_velocity": [[0.3, 0.4, 9.0], [1.0] * 3, [0.0] * 3, [1.0] * 3]}, 0.25),
    (walk.tracking_error, {}, {"tracking_error": 0.2}, 0.2),
]  # fmt: skip


@pytest.mark.parametrize(("term", "params", "given", "expected"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_term_by_hand(term, params, given, expected):
    assert term(state(**given), **params).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize(("height", "up", "expected"), [(0.3, -1.0, False), (0.1, -1.0, True), (0.3, -0.5, True)])
def test_a_fall_is_a_low_or_a_tilted_trunk(height, up, expected):
    robot = state(height=height, gravity=[0.0, math.sqrt(1 - up * up), up])
    assert walk.fallen(robot, height=0.15, tilt=0.9).item() is expected


@pytest.mark.parametrize(
    ("step", "error", "height", "expected"),
    [(10, 0.2, 0.3, True), (9, 0.2, 0.3, False), (10, 0.3, 0.3, False), (10, 0.2, 0.1, False)],
)
def test_success_is_a_whole_episode_on_its_feet_near_the_command(step, error, height, expected):
    robot = state(episode_step=step, mean_tracking_error=error, height=height, gravity=[0.0, 0.0, -1.0])
    assert walk.succeeded(robot, steps=10, error=0.25, height=0.15, tilt=0.9).item() is expected


def test_what_is_sensed_is_what_mujoco_says_of_the_robot():
    task = make_quadruped_walk("Walk", 4, seed=1, threads=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        task.step(torch.randn(4, 12, generator=generator))
    simulation, legs = task.simulation, ("FR", "FL", "RR", "RL")
    simulation.qpos[:, 7:9] = [0.82, -0.6]  # beyond the inner 90% of their ranges
    simulation.forward()  # what the robot senses is then of this moment
    sensed = task._sense(task, slice(None))
    for row in range(4):
        model, data = simulation.get_model(row), simulation.get_data(row)
        into_trunk, (low, high) = data.body("trunk").xmat.reshape(3, 3).T, model.jnt_range[1:].T
        velocity = np.zeros((4, 6))
        for leg, out in zip(legs, velocity, strict=True):
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_GEOM, model.geom(f"{leg}_foot").id, out, 0)
        margin, down, offset = 0.05 * (high - low), into_trunk @ [0, 0, -1], data.qpos[7:] - [0, 0.9, -1.7] * 4
        beyond = np.maximum(data.qpos[7:] - (high - margin), (low + margin) - data.qpos[7:]).clip(0)
        expected = {
            "base_velocity": into_trunk @ data.qvel[:3], "base_rate": data.qvel[3:6], "gyro": data.qvel[3:6],
            "gravity": down, "sensed_gravity": down, "height": data.qpos[2], "beyond_limits": beyond,
            "joint_offset": offset, "encoder_offset": offset,
            "joint_velocity": data.qvel[6:], "encoder_velocity": data.qvel[6:], "torque": data.actuator_force,
            "foot_height": [data.geom(f"{leg}_foot").xpos[2] - 0.02 for leg in legs], "foot_velocity": velocity[:, 3:],
            "foot_contact": [data.sensor(f"{leg}_touch").data[0] > 1.0 for leg in legs],
            "friction": model.geom("floor").friction[0], "trunk_mass": model.body("trunk").mass[0] / 5.56,
            # diagonal legs move together, half a cycle after the others
            "leg_phase": (np.array([0.0, 0.5, 0.5, 0.0]) + task.memory["clock"][row].numpy()) % 1,
        }  # fmt: skip
        assert (beyond[:2] > 0).all()
        for name, value in expected.items():
            assert getattr(sensed, name)[row].numpy() == pytest.approx(np.array(value, dtype=float), abs=1e-4), name


def test_rotation_into_a_frame():
    half = math.sqrt(0.5)
    yawed_left, rolled_right = torch.tensor([[half, 0, 0, half]]), torch.tensor([[half, half, 0, 0]])
    # who faces left (world y) sees the world's y axis ahead and its x axis to the right
    assert walk.into_frame(yawed_left, torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [pytest.approx([2, -1, 3])]
    # who lies on the right side feels gravity to the right (body -y)
    assert walk.down_in_frame(rolled_right).tolist() == [pytest.approx([0, -1, 0], abs=1e-6)]
    quaternion = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.2, 0.7]]), dim=1)
    down = walk.into_frame(quaternion, torch.tensor([[0.0, 0.0, -1.0]]))
    assert walk.down_in_frame(quaternion).numpy() == pytest.approx(down.numpy(), abs=1e-6)


def test_quaternions_of_roll_pitch_yaw():
    roll, pitch, yaw = (np.array([angle]) for angle in (0.3, -0.2, 1.0))
    got = torch.from_numpy(walk._quaternion(roll, pitch, yaw)).float()
    # gravity in the frame of roll-pitch-yaw angles, the textbook formula
    expected = [math.sin(-0.2), -math.sin(0.3) * math.cos(-0.2), -math.cos(0.3) * math.cos(-0.2)]
    assert walk.down_in_frame(got).tolist() == [pytest.approx(expected, abs=1e-6)]
    heading = walk.into_frame(got * torch.tensor([1, -1, -1, -1]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert math.atan2(heading[0, 1], heading[0, 0]) == pytest.approx(1.0, abs=1e-6)


def test_a_command_to_stand_stops_the_clock_signal():
    moving = walk.is_moving(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
    assert moving.tolist() == [0.0, 1.0]
    assert walk.clock_signal(torch.tensor([[0.25], [0.25]]), moving).numpy() == pytest.approx(
        np.array([[0, 0], [1, 0]]), abs=1e-6
    )
