"""The robot against its published figures, and its servos at work."""

import mujoco
import numpy as np
import pytest

from habilis.tasks.quadruped import QUADRUPED_WALK

LEGS = ("FR", "FL", "RR", "RL")


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_path(str(QUADRUPED_WALK.model))


def test_masses_are_the_published_ones(model):
    # Unitree's go1_description: trunk, hip, thigh, calf, foot, and three rotors of 89 g a leg
    assert model.body("trunk").mass[0] == pytest.approx(5.204 + 4 * 0.089)
    for leg in LEGS:
        assert model.body(f"{leg}_hip").mass[0] == pytest.approx(0.591 + 0.089)
        assert model.body(f"{leg}_thigh").mass[0] == pytest.approx(0.92 + 0.089)
        assert model.body(f"{leg}_calf").mass[0] == pytest.approx(0.135862 + 0.06)
    assert model.body_mass.sum() == pytest.approx(13.0994, abs=1e-3)


def test_dimensions_limits_and_torques_are_the_published_ones(model):
    for leg in LEGS:
        side, end = (1 if leg[1] == "L" else -1), (1 if leg[0] == "F" else -1)
        assert model.body(f"{leg}_hip").pos == pytest.approx([0.1881 * end, 0.04675 * side, 0])
        assert model.body(f"{leg}_thigh").pos == pytest.approx([0, 0.08 * side, 0])
        assert model.body(f"{leg}_calf").pos == pytest.approx([0, 0, -0.213])
        assert model.geom(f"{leg}_foot").pos == pytest.approx([0, 0, -0.213])
        assert model.geom(f"{leg}_foot").size[0] == pytest.approx(0.02)
        limits = {"hip": (-0.863, 0.863, 23.7), "thigh": (-0.686, 4.501, 23.7), "calf": (-2.818, -0.888, 35.55)}
        for joint, (low, high, torque) in limits.items():
            assert model.joint(f"{leg}_{joint}").range == pytest.approx([low, high])
            assert model.actuator(f"{leg}_{joint}").forcerange == pytest.approx([-torque, torque])


def test_the_legs_mirror_each_other(model):
    for right, left in (("FR", "FL"), ("RR", "RL")):
        for part in ("hip", "thigh"):
            assert model.body(f"{right}_{part}").ipos * [1, -1, 1] == pytest.approx(model.body(f"{left}_{part}").ipos)
            assert model.body(f"{right}_{part}").inertia == pytest.approx(model.body(f"{left}_{part}").inertia)


def test_joints_and_actuators_come_in_the_same_order(model):
    names = [f"{leg}_{joint}" for leg in LEGS for joint in ("hip", "thigh", "calf")]
    assert [model.joint(1 + i).name for i in range(12)] == names
    assert [model.actuator(i).name for i in range(12)] == names
    assert list(model.actuator_trnid[:, 0]) == list(range(1, 13))


def test_control_at_50_hz_over_physics_of_at_least_200_hz(model):
    assert 1 / model.opt.timestep >= 200 - 1e-9
    assert model.opt.timestep * QUADRUPED_WALK.substeps == pytest.approx(1 / 50)


def test_servos_reach_their_targets_within_their_torques(model):
    model.opt.gravity[:] = 0
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("stand").id)
    data.qpos[2] = 2.0
    data.ctrl[:] += np.tile([0.2, -0.5, 0.4], 4)
    for _ in range(200):
        mujoco.mj_step(model, data)
        assert (np.abs(data.actuator_force) <= model.actuator_forcerange[:, 1] + 1e-9).all()
    # what is left is what the joints' dry friction holds: 0.2 N m over 40 N m/rad
    assert data.qpos[7:] == pytest.approx(data.ctrl, abs=0.0075)
    data.ctrl[:] = model.actuator_ctrlrange[:, 0]
    mujoco.mj_step(model, data)
    assert np.abs(data.actuator_force[1]) == pytest.approx(23.7)


def test_only_feet_shanks_and_trunk_touch_and_only_the_floor(model):
    solid = {model.geom(i).name for i in range(model.ngeom) if model.geom_contype[i] or model.geom_conaffinity[i]}
    assert solid == {"floor", "trunk", *(f"{leg}_{part}" for leg in LEGS for part in ("foot", "shank"))}
    robot = [model.geom(name).id for name in solid - {"floor"}]
    assert not any(model.geom_contype[robot])
