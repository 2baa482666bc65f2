"""The batched simulation: state exact, fields per simulation, divergence named and isolated."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch

from habilis.core.errors import CheckpointError, ConfigError, EnvError
from habilis.envs import simulation as simulation_module
from habilis.envs.external_forces import _layout, compute_external_forces
from habilis.envs.mujoco_library import mujoco_library
from habilis.envs.simulation import Simulation

XML = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body name="box" pos="0 0 0.3">
      <freejoint/>
      <geom name="hull" type="box" size="0.1 0.1 0.05" mass="2"/>
      <body pos="0.1 0 0">
        <joint name="hinge" axis="0 1 0" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.03" mass="0.5"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" gear="2" ctrlrange="-1 1"/></actuator>
  <keyframe><key name="high" qpos="0 0 2 1 0 0 0 0.5"/></keyframe>
</mujoco>
"""


def make(num_envs: int = 4, **kwargs: object) -> Simulation:
    return Simulation(mujoco.MjModel.from_xml_string(XML), num_envs, **{"threads": 1, **kwargs})


def drive(simulation: Simulation, steps: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        simulation.ctrl[:] = generator.uniform(-1, 1, simulation.ctrl.shape)
        assert not simulation.step(2).any()
    return simulation.dynamics.copy()


def test_steps_as_mujoco_does():
    simulation = make(2)
    drive(simulation, 150)
    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    generator = np.random.default_rng(0)
    for _ in range(150):
        data.ctrl[:] = generator.uniform(-1, 1, (2, 1))[0]
        mujoco.mj_step(model, data, 2)
    assert (simulation.qpos[0] == data.qpos).all()
    assert (simulation.qvel[0] == data.qvel).all()
    assert simulation.time[0] == data.time


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_the_numbers(threads):
    assert (drive(make(5, threads=threads), 100) == drive(make(5), 100)).all()


def test_threads_are_measured_once(monkeypatch):
    monkeypatch.setattr(simulation_module, "cpu_count", lambda: 2)
    monkeypatch.setattr(simulation_module, "_measured_threads", {})
    asked = []
    monkeypatch.setattr(simulation_module, "_best_time", lambda step: asked.append(step) or 1.0 / len(asked))
    assert make(4, threads=None).threads == 2  # the second measurement is twice as fast
    assert make(4, threads=None).threads == 2
    assert len(asked) == 2
    assert make(1, threads=None).threads == 1
    assert make(4, threads=3).threads == 3


def test_partial_reset_and_keyframe():
    simulation = make()
    drive(simulation, 20)
    before = simulation.dynamics.copy()
    simulation.reset(np.array([1]))
    simulation.reset(np.array([False, False, True, False]), keyframe=0)
    assert (simulation.qpos[1] == simulation.model.qpos0).all()
    assert (simulation.qpos[2] == simulation.model.key_qpos[0]).all()
    assert (simulation.time == 0.0).tolist() == [False, True, True, False]
    assert (simulation.dynamics[[0, 3]] == before[[0, 3]]).all()


@pytest.mark.parametrize("field", ["qpos", "qvel"])
@pytest.mark.parametrize("poison", [np.nan, -np.inf, 1e200])
def test_divergence_is_named_and_isolated(field, poison):
    simulation, healthy = make(threads=2), make()
    drive(simulation, 10)
    drive(healthy, 10)
    getattr(simulation, field)[2, 1] = poison
    assert simulation.step().tolist() == [False, False, True, False]
    healthy.step()
    assert simulation.diverged_total == 1
    simulation.reset(np.array([2]))
    assert not simulation.step().any()
    healthy.step()
    others = [0, 1, 3]
    assert (simulation.dynamics[others] == healthy.dynamics[others]).all()
    assert simulation.diverged_total == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_divergence_in_the_last_substep_is_seen_at_once(sign):
    # the velocity passes 1e10 in the only substep, after the point where MuJoCo itself looks
    xml = """<mujoco><option timestep="1" gravity="0 0 0"/><worldbody><body><joint name="rail" type="slide"/>
      <geom size="0.1" mass="1"/></body></worldbody><actuator><motor joint="rail" gear="5e9"/></actuator></mujoco>"""
    simulation = Simulation(mujoco.MjModel.from_xml_string(xml), 2, threads=1)
    simulation.qvel[1] = sign * 9e9
    simulation.ctrl[:] = sign
    assert simulation.step().tolist() == [False, True]


def test_divergence_is_of_one_call():
    simulation = make(2)
    simulation.qvel[1] = np.nan
    assert simulation.step().tolist() == [False, True]
    # MuJoCo has put the simulation back to its defaults by itself
    assert not simulation.step().any()


def test_goes_on_bit_for_bit_after_a_restore():
    simulation, other = make(), make()
    simulation.expand("geom_friction")[:, 0, 0] = [0.2, 0.4, 0.6, 0.8]
    simulation.expand("opt.gravity")[1] = 0.0
    simulation.expand("body_mass")[:, 1] *= [0.5, 1.0, 1.5, 2.0]
    simulation.set_const()
    drive(simulation, 50)
    drive(other, 7)
    other.expand("geom_size")[:] *= 2.0  # not in the saved state: goes back to the model's
    other.expand("opt.viscosity")[:] = 5.0  # and so do options
    state = simulation.state_dict()
    expected = drive(simulation, 100, seed=3)
    other.load_state_dict(state)
    assert (drive(other, 100, seed=3) == expected).all()
    assert (expected[0] != expected[3]).any()
    assert set(state["fields"]) >= {"geom_friction", "opt.gravity", "body_mass", "body_subtreemass"}


def test_saving_does_not_alias():
    simulation = make()
    simulation.expand("body_mass")
    state = simulation.state_dict()
    before = {"state": state["state"].copy(), "mass": state["fields"]["body_mass"].copy()}
    simulation.expand("body_mass")[:] = 9.0
    drive(simulation, 5)
    assert (state["state"] == before["state"]).all()
    assert (state["fields"]["body_mass"] == before["mass"]).all()


def test_set_const_computes_derived_constants():
    simulation = make(2)
    box = simulation.model.body("box").id
    simulation.expand("body_mass")[1, box] = 20.0
    assert simulation.get_model(1).body_subtreemass[box] == pytest.approx(2.5)
    simulation.set_const()
    assert simulation.get_model(0).body_subtreemass[box] == pytest.approx(2.5)
    assert simulation.get_model(1).body_subtreemass[box] == pytest.approx(20.5)
    assert simulation.get_model(1).body_mass[box] == 20.0


def with_forces(**options):
    """The model of `XML` that computes its external forces."""
    spec = mujoco.MjSpec.from_string(XML)
    for name, value in options.items():
        setattr(spec.option, name, value)
    compute_external_forces(spec)
    return spec.compile()


@pytest.mark.parametrize("integrator", ["EULER", "RK4", "IMPLICITFAST"])
def test_external_forces_are_those_that_mujoco_computes_after_a_step(integrator):
    """For simulations that lie, fall and are held, on two threads."""
    model = with_forces(integrator=getattr(mujoco.mjtIntegrator, f"mjINT_{integrator}"))
    simulation, data = Simulation(model, 6, threads=2), [mujoco.MjData(model) for _ in range(6)]
    heights = np.linspace(0.05, 2.0, 6)
    simulation.qpos[:, 2] = heights
    forces = simulation.bind("cfrc_ext")
    touched = np.zeros(6, dtype=bool)
    for i in range(6):
        data[i].qpos[2] = heights[i]
    for _ in range(60):
        simulation.step(2)
        for i, one in enumerate(data):
            mujoco.mj_step(model, one, 2)
            one.cfrc_ext[:] = 7.0
            mujoco.mj_rnePostConstraint(model, one)
            assert (forces[i] == one.cfrc_ext).all()
        touched |= forces.any(axis=(1, 2))
    assert touched.any()
    assert not touched.all()


def test_a_plugin_is_laid_out_as_its_header_says():
    header = """typedef struct mjpPlugin_ {
      const char* name;  // unique; and known
      int count;
      void (*advance)(const mjModel* m, mjData* d);
    } mjpPlugin;"""
    layout = _layout(header)
    assert [name for name, _ in layout._fields_] == ["name", "count", "advance"]
    assert (layout.count.size, layout.advance.offset) == (4, 16)
    with pytest.raises(EnvError, match="does not declare mjpPlugin"):
        _layout(header.replace("mjpPlugin", "mjpOther"))


def test_external_forces_hold_the_weight():
    simulation = Simulation(with_forces(), 2, threads=1)
    simulation.qpos[1, 2] = 50.0  # in the air
    for _ in range(400):
        simulation.step()
    up = simulation.bind("cfrc_ext")[:, :, 5].sum(axis=1)
    assert up == pytest.approx([2.5 * 9.81, 0.0], abs=0.05)
    simulation.bind("xfrc_applied")[1, 1, 2] = 3.0
    simulation.step()
    assert simulation.bind("cfrc_ext")[1, 1, 5] == pytest.approx(3.0)
    simulation.reset(np.array([1]))
    simulation.forward(np.array([1]))
    assert (simulation.bind("cfrc_ext")[1] == 0.0).all()
    assert (simulation.bind("cfrc_ext")[0] != 0.0).any()
    simulation.reset()
    assert not simulation.bind("cfrc_ext").any()


def test_forward_refreshes_and_leaves_the_dynamics_alone():
    simulation, other = make(2), make(2)
    xpos = simulation.bind("xpos")
    drive(simulation, 100)
    drive(other, 100)
    assert xpos[:, 1] != pytest.approx(simulation.qpos[:, :3], abs=1e-12)
    simulation.forward()
    assert xpos[:, 1] == pytest.approx(simulation.qpos[:, :3], abs=1e-12)
    assert (drive(simulation, 50) == drive(other, 50)).all()


def test_data_and_model_of_one_simulation():
    simulation = make(3)
    simulation.expand("geom_rgba")[2, 1] = (1.0, 0.0, 0.0, 1.0)
    drive(simulation, 5)
    data = simulation.get_data(2)
    assert (data.qpos == simulation.qpos[2]).all()
    assert data.xpos[1] == pytest.approx(simulation.qpos[2, :3])
    assert simulation.get_model(2).geom_rgba[1].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_mujoco_writes_no_warnings_into_the_working_directory(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    simulation = make(4, threads=2)
    simulation.qvel[1:, 0] = np.nan
    assert simulation.step(3).tolist() == [False, True, True, True]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    # other warnings are passed on, and a listener of the user's own hears all of them
    simulation_module._hear("the contact buffer is full")
    assert caplog.messages == ["MuJoCo: the contact buffer is full"]
    heard = []
    mujoco.set_mju_user_warning(heard.append)
    try:
        simulation.qvel[0, 0] = np.nan
        simulation.step()
    finally:
        mujoco.set_mju_user_warning(None)
    assert "QVEL" in heard[0]


def test_mujoco_reads_no_clock_in_a_step_and_reads_it_again_for_the_users_own():
    read = []
    clock = ctypes.c_void_p.in_dll(mujoco_library(), "mjcb_time")
    before = clock.value
    callback = ctypes.CFUNCTYPE(ctypes.c_double)(lambda: read.append(None) or 0.0)
    simulation = make(2)
    clock.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        simulation.step(3)
        simulation.forward()
        assert not read
        mujoco.mj_step(simulation.model, mujoco.MjData(simulation.model))
        assert read
    finally:
        clock.value = before
    assert before is not None


THREADS = """
import sys, threading
import mujoco, numpy as np
from habilis.envs.simulation import Simulation

def diverge():
    simulation = Simulation(mujoco.MjModel.from_xml_string(sys.argv[1]), 100, threads=1)
    for _ in range(150):
        simulation.reset()
        simulation.qvel[:] = np.nan
        assert simulation.step(5).all()

threads = [threading.Thread(target=diverge) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert mujoco.get_mju_user_warning() is None
"""


def test_simulations_of_two_threads_diverge_without_harm(tmp_path):
    """In a process of its own: what went wrong here ended it."""
    call = [sys.executable, "-c", THREADS, XML]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_does_not_fit():
    with pytest.raises(ConfigError, match="at least 1"):
        make(0)
    with pytest.raises(CheckpointError, match="number of environments"):
        make(3).load_state_dict(make(2).state_dict())


def test_bodies_that_may_sleep_are_refused():
    option = '<option><flag sleep="enable"/></option>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{option}<worldbody/></mujoco>")
    with pytest.raises(ConfigError, match='leave out <flag sleep="enable"/>'):
        Simulation(model, 1)


def test_one_tree_without_islands_moves_as_with_them_and_two_trees_keep_them():
    disabled = mujoco.mjtDisableBit.mjDSBL_ISLAND
    path = Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"
    model = mujoco.MjModel.from_xml_path(str(path))
    simulation, plain = Simulation(model, 2, threads=1), Batch(model, 2, 1)
    assert simulation.model.opt.disableflags & disabled
    assert not model.opt.disableflags & disabled
    generator = np.random.default_rng(0)
    for _ in range(100):
        simulation.ctrl[:] = plain.ctrl[:] = generator.uniform(-1, 1, simulation.ctrl.shape)
        simulation.step(5)
        plain.step(nstep=5)
    assert np.array_equal(simulation.qpos, plain.qpos)
    assert np.array_equal(simulation.qvel, plain.qvel)
    two = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom size='1'/></body><body pos='3 0 0'><freejoint/><geom size='1'/>"
        "</body></worldbody></mujoco>"
    )
    assert Simulation(two, 1, threads=1).model is two
