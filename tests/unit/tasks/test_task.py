"""The task framework on the quadruped: episodes, commands, noise, randomisation, saved state, divergence."""

import copy
import dataclasses
from dataclasses import replace

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers)
from habilis.core.errors import ConfigError, EnvError, NonFiniteError
from habilis.envs.make import make_vec_env
from habilis.tasks import locomotion as walk
from habilis.tasks.quadruped import COMMANDS, QUADRUPED_WALK, make_quadruped_walk
from habilis.tasks.task import Event, ObsTerm, RewardTerm, Task, Term

ID = "habilis/QuadrupedWalk-v0"
CALM = replace(QUADRUPED_WALK, on_reset=(Event(function=walk.fixed_command, params={"command": (0, 0, 0)}),),
               before_step=(), after_step=())  # fmt: skip


def columns(task, group, term):
    """Which columns of an observation group a term fills."""
    start = 0
    for name, part in QUADRUPED_WALK.observations[group].items():
        width = part.function(task._sense(task, slice(None)), **part.params).shape[1]
        if name == term:
            return slice(start, start + width)
        start += width
    raise KeyError(term)


def actions(num_envs, steps, seed=0, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(num_envs, 12, generator=generator) for _ in range(steps)]


def assert_same(one, two):
    for name in ("reward", "terminated", "truncated", "valid"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("obs", "next_obs", "info"):
        for key, value in getattr(one, name).items():
            assert torch.equal(value, getattr(two, name)[key]), (name, key)


def test_it_is_registered_with_the_house_and_with_gymnasium():
    env = make_vec_env(ID, 2)
    assert isinstance(env, Task)
    assert env.spec.id == ID
    assert env.spec.max_episode_steps == 1000
    assert env.spec.control_dt == pytest.approx(0.02)
    assert env.spec.action_names[0] == "FR_hip"
    assert ID in gymnasium.registry


@pytest.mark.parametrize("shape", [(12,), (1, 12), (3, 1), (4, 12)])
def test_actions_of_another_shape_are_refused(shape):
    task = Task(CALM, 3, threads=1)
    task.reset(0)
    with pytest.raises(EnvError, match=r"takes actions of shape \(3, 12\), got"):
        task.step(torch.zeros(shape))
    task.step(torch.zeros(3, 12))


def test_it_stands_for_five_seconds_without_an_action():
    task = Task(CALM, 1, threads=1)
    task.reset(0)
    for _ in range(250):
        step = task.step(torch.zeros(1, 12))
        assert not step.done
    assert task.simulation.qpos[0, 2] == pytest.approx(0.272, abs=0.01)
    assert np.abs(task.simulation.qpos[0, :2]).max() < 0.05
    assert np.abs(task.simulation.qvel[0]).max() < 0.01
    assert step.obs["critic"][0, columns(task, "critic", "foot_contacts")].tolist() == [1, 1, 1, 1]
    assert step.info["reward/velocity"].item() == pytest.approx(CALM.rewards["velocity"].weight / 50, abs=1e-4)


def test_an_action_moves_the_servos_by_its_scale_and_is_cut_at_one():
    task = Task(CALM, 1, threads=1)
    task.reset(0)
    task.step(torch.full((1, 12), 3.0))
    stance, scale = [0, 0.9, -1.7] * 4, np.array(CALM.action_scale)
    assert task.simulation.ctrl[0] == pytest.approx(stance + scale)
    task.step(torch.full((1, 12), -0.5))
    assert task.simulation.ctrl[0] == pytest.approx(stance - 0.5 * scale)
    assert task.last_action.tolist() == [[1.0] * 12]


def test_an_action_that_is_not_finite_is_named():
    task = Task(CALM, 2, threads=1)
    action = torch.zeros(2, 12)
    action[1, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="action 3 of environment 1 of"):
        task.step(action)


def test_the_reward_is_the_sum_of_its_logged_parts_and_shapes_hold():
    task = make_quadruped_walk(ID, 5, threads=1)
    task.reset(0)
    for action in actions(5, 10):
        step = task.step(action)
    parts = [value for name, value in step.info.items() if name.startswith("reward/")]
    assert len(parts) == len(QUADRUPED_WALK.rewards)
    assert torch.allclose(torch.stack(parts).sum(0), step.reward, atol=1e-6)
    for group, spec in task.spec.obs.items():
        assert step.obs[group].shape == (5, *spec.shape)
        assert step.obs[group].dtype == torch.float32
    assert step.reward.dtype == torch.float32
    assert all(value.shape == (5,) for value in step.info.values())
    for name in ("tracking_error", "success", "termination/fall", "termination/time_limit"):
        assert name in step.info


def test_a_fall_terminates_and_the_others_go_on():
    task = make_quadruped_walk(ID, 3, threads=1)
    task.reset(0)
    task.step(torch.zeros(3, 12))
    task.simulation.qpos[1, 3:7] = [0, 1, 0, 0]  # on its back
    step = task.step(torch.zeros(3, 12))
    assert step.terminated.tolist() == [False, True, False]
    assert not step.truncated.any()
    assert step.info["termination/fall"].tolist() == [False, True, False]
    gravity = columns(task, "critic", "gravity")
    assert step.next_obs["critic"][1, gravity][2] > 0.9  # the true successor lies on its back
    assert step.obs["critic"][1, gravity][2] < -0.9  # the next episode stands
    sensed, true = (step.obs[group][1, columns(task, group, "joint_angles")] for group in ("policy", "critic"))
    assert (sensed - true).abs().max() <= 0.02 + 1e-5  # and its encoders speak of it, not of the fall
    assert torch.equal(step.obs["policy"][[0, 2]], step.next_obs["policy"][[0, 2]])
    assert task.episode_step.tolist() == [2, 0, 2]


def test_the_time_limit_truncates_and_does_not_terminate():
    task = Task(replace(CALM, episode_steps=5), 2, threads=1)
    task.reset(0)
    for count in range(1, 6):
        step = task.step(torch.zeros(2, 12))
        assert step.truncated.tolist() == [count == 5] * 2
    assert not step.terminated.any()
    assert step.info["termination/time_limit"].all()
    assert step.valid.all()
    assert step.obs is not step.next_obs
    assert not task.step(torch.zeros(2, 12)).truncated.any()


def test_a_fall_in_the_last_step_terminates_and_does_not_truncate():
    task = Task(replace(CALM, episode_steps=1), 2, threads=1)
    task.reset(0)
    task.simulation.qpos[1, 3:7] = [0, 1, 0, 0]  # on its back
    step = task.step(torch.zeros(2, 12))
    assert step.terminated.tolist() == [False, True]
    assert step.truncated.tolist() == step.info["termination/time_limit"].tolist() == [True, False]


def test_standing_still_as_told_for_a_whole_episode_is_a_success():
    info = {**CALM.info, "success": replace(CALM.info["success"], params={**CALM.info["success"].params, "steps": 20})}
    config = replace(CALM, episode_steps=20, info=info, after_step=(Event(function=walk.sum_error),))
    task = Task(config, 3, threads=1)
    task.reset(0)
    task.memory["command"][1:, 0] = 1.0
    for count in range(20):
        task.memory["command"][2, 0] = float(count < 10)  # its mean error is 0.5, its last one nothing
        step = task.step(torch.zeros(3, 12))
    assert step.info["success"].tolist() == [True, False, False]
    assert step.info["tracking_error"].tolist() == pytest.approx([0, 1, 0], abs=0.1)
    for _ in range(20):
        step = task.step(torch.zeros(3, 12))
    assert step.info["success"].all()  # the next episode is told to stand, and its mean starts anew


def test_commands_change_within_the_episode_after_the_reward_and_stay_within_their_limits():
    redraw = Event(function=walk.resample_command, params={"seconds": 0.1, **COMMANDS})
    task = Task(replace(QUADRUPED_WALK, after_step=(redraw,), before_step=()), 64, threads=1)
    task.reset(0)
    where, seen = columns(task, "policy", "command"), []
    for count in range(1, 11):
        before = task.memory["command"].clone()
        step = task.step(torch.zeros(64, 12))
        assert torch.equal(before, task.memory["command"]) == (count % 5 != 0)
        assert torch.equal(step.obs["policy"][:, where], task.memory["command"])
        clock = walk.clock_signal(task.memory["clock"], walk.is_moving(task.memory["command"]))
        assert torch.equal(step.obs["policy"][:, columns(task, "policy", "clock")], clock)
        velocity = step.next_obs["critic"][:, columns(task, "critic", "base_velocity")]
        error = torch.linalg.vector_norm(before[:, :2] - velocity[:, :2], dim=1)
        assert torch.allclose(step.info["tracking_error"], error, atol=1e-6)
        seen.append(task.memory["command"].clone())
    commands = torch.cat(seen)
    assert torch.linalg.vector_norm(commands[:, :2], dim=1).max() <= 1.0 + 1e-6
    assert commands.abs().amax(0)[1:].tolist() <= [0.5, 1.0]
    assert commands.amax(0).tolist() == pytest.approx([1.0, 0.5, 1.0], abs=0.15)
    assert commands.amin(0).tolist() == pytest.approx([-1.0, -0.5, -1.0], abs=0.15)
    standing = (commands == 0).all(1).float().mean().item()
    assert 0.02 < standing < 0.25


def test_a_fixed_command_holds_for_every_episode():
    task = make_quadruped_walk(ID, 2, threads=1, command=(0.7, -0.1, 0.2))
    task.reset(0)
    task.simulation.qpos[1, 2] = 0.0
    for _ in range(3):
        task.step(torch.zeros(2, 12))
    assert task.memory["command"].numpy() == pytest.approx(np.array([[0.7, -0.1, 0.2]] * 2))
    assert task.memory["error_sum"].min() > 0.2  # success is judged by it


def test_noise_is_in_the_policy_group_only():
    task = make_quadruped_walk(ID, 64, threads=1)
    task.reset(0)
    step = task.step(torch.zeros(64, 12))
    truth = torch.from_numpy(task.simulation.qpos[:, 7:].astype(np.float32)) - torch.tensor([0, 0.9, -1.7] * 4)
    critic = step.obs["critic"][:, columns(task, "critic", "joint_angles")]
    assert torch.equal(critic, truth)
    encoders = torch.from_numpy(task.simulation.bind("sensordata")[:, :12].astype(np.float32))
    off = step.obs["policy"][:, columns(task, "policy", "joint_angles")] + torch.tensor([0, 0.9, -1.7] * 4) - encoders
    assert off.abs().max() <= 0.02 + 1e-5
    assert off.abs().max() > 0.019
    assert off.mean().abs() < 0.002
    command = step.obs["policy"][:, columns(task, "policy", "command")]
    assert torch.equal(command, task.memory["command"])


def test_the_same_seed_gives_the_same_and_another_seed_gives_another():
    one, two, other = (make_quadruped_walk(ID, 3, seed=seed, threads=1) for seed in (4, 4, 5))
    first, second, third = one.reset(), two.reset(), other.reset()
    assert torch.equal(first["policy"], second["policy"])
    assert not torch.equal(first["policy"], third["policy"])
    for action in actions(3, 20):
        assert_same(one.step(action), two.step(action))
    assert torch.equal(one.reset(4)["policy"], first["policy"])


def test_saved_and_restored_it_goes_on_bit_for_bit():
    config = replace(QUADRUPED_WALK, episode_steps=25)
    task = Task(config, 6, seed=1, threads=1)
    task.reset()
    script = actions(6, 80, scale=1.0)
    for action in script[:40]:
        task.step(action)
    saved = task.state_dict()
    expected = [task.step(action) for action in script[40:]]
    other = Task(config, 6, seed=99, threads=1)
    other.reset()
    assert any(step.done.any() for step in expected)
    for _ in range(2):  # the second time from a state that both have gone on from
        other.load_state_dict(saved)
        for action, step in zip(script[40:], expected, strict=True):
            assert_same(other.step(action), step)


def test_randomisation_does_not_compound_and_derived_constants_follow():
    task = make_quadruped_walk(ID, 8, threads=1)
    simulation, nominal = task.simulation, mujoco.MjModel.from_xml_path(str(QUADRUPED_WALK.model))
    trunk, floor = nominal.body("trunk").id, nominal.geom("floor").id
    for _ in range(60):
        task.reset()
    scale = simulation.expand("body_mass")[:, trunk] / nominal.body_mass[trunk]
    friction = simulation.expand("geom_friction")[:, floor, 0]
    assert ((scale >= 0.85) & (scale <= 1.15)).all()
    assert ((friction >= 0.5) & (friction <= 1.2)).all()
    assert np.ptp(scale) > 0.05
    assert np.ptp(friction) > 0.1
    for index in (0, 7):
        expected = copy.copy(nominal)
        expected.body_mass[trunk] *= scale[index]
        expected.body_inertia[trunk] *= scale[index]
        mujoco.mj_setConst(expected, mujoco.MjData(expected))
        model = simulation.get_model(index)
        assert model.body_subtreemass == pytest.approx(expected.body_subtreemass)
        assert model.dof_invweight0 == pytest.approx(expected.dof_invweight0)
        assert model.body_subtreemass[0] != pytest.approx(nominal.body_subtreemass[0], abs=1e-4)
    critic = task.reset()["critic"]
    assert critic[:, -1].numpy() == pytest.approx(
        simulation.expand("body_mass")[:, trunk] / nominal.body_mass[trunk], abs=1e-6
    )


def test_a_diverged_simulation_is_reset_and_the_others_do_not_notice():
    task, twin = (make_quadruped_walk(ID, 3, seed=2, threads=1) for _ in range(2))
    task.reset(), twin.reset()
    script = actions(3, 3)
    task.step(script[0]), twin.step(script[0])
    task.simulation.qvel[1, 8] = np.nan
    step, expected = task.step(script[1]), twin.step(script[1])
    assert step.valid.tolist() == [True, False, True]
    assert step.truncated.tolist() == step.info["termination/diverged"].tolist() == [False, True, False]
    assert not step.terminated.any()
    assert step.reward[1] == 0
    for values in (step.reward, *step.obs.values(), *step.next_obs.values(), *step.info.values()):
        assert torch.isfinite(values.float()).all()
    assert torch.equal(step.reward[[0, 2]], expected.reward[[0, 2]])
    assert torch.equal(step.next_obs["critic"][[0, 2]], expected.next_obs["critic"][[0, 2]])
    assert task.step(script[2]).valid.all()


def test_a_simulation_that_diverges_has_not_terminated():
    always = Term(function=lambda state: torch.ones(len(state.height), dtype=torch.bool))
    task = Task(replace(CALM, terminations={"always": always}), 2, threads=1)
    task.reset(0)
    task.simulation.qvel[1, 8] = np.nan
    step = task.step(torch.zeros(2, 12))
    assert step.terminated.tolist() == step.info["termination/always"].tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]


def test_a_step_is_not_written_to_again():
    task = make_quadruped_walk(ID, 4, threads=1)
    first = task.reset(0)
    kept = {name: value.clone() for name, value in first.items()}
    step = task.step(torch.zeros(4, 12))
    before = copy.deepcopy({**step.obs, **step.next_obs, **step.info, "r": step.reward})
    for action in actions(4, 5):
        task.step(action)
    assert all(torch.equal(first[name], value) for name, value in kept.items())
    now = {**step.obs, **step.next_obs, **step.info, "r": step.reward}
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_a_state_is_a_snapshot():
    task = make_quadruped_walk(ID, 2, threads=1)
    task.reset(0)
    task.step(torch.ones(2, 12))
    state = task._sense(task, slice(None))
    before = copy.deepcopy(state)
    task._start_episodes(np.arange(2))
    for field in dataclasses.fields(state):
        assert torch.equal(getattr(state, field.name), getattr(before, field.name)), field.name


def test_episodes_start_near_the_stance_in_any_heading():
    start = Event(function=walk.start_pose, params={"tilt": 0.1, "joint": 0.2, "speed": 0.3, "rate": 0.6})
    task = Task(replace(CALM, on_reset=(*CALM.on_reset, start)), 1000, threads=1)
    task.reset(0)
    qpos, qvel = task.simulation.qpos, task.simulation.qvel
    offsets = np.abs(qpos[:, 7:] - [0, 0.9, -1.7] * 4).max(0)
    assert offsets == pytest.approx(np.full(12, 0.2), abs=0.005)
    assert np.abs(qvel).max(0) == pytest.approx(np.repeat([0.3, 0.6, 0.0], [3, 3, 12]), abs=0.01)
    assert qpos[:, 2] == pytest.approx(0.301 + 0.03)
    w, x, y, z = qpos[:, 3:7].T
    roll, pitch = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)), np.arcsin(2 * (w * y - z * x))
    assert [np.abs(roll).max(), np.abs(pitch).max()] == pytest.approx([0.1, 0.1], abs=0.002)
    heading = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    assert np.histogram(heading, 8, (-np.pi, np.pi))[0] == pytest.approx(np.full(8, 125), abs=50)


def test_a_push_shoves_about_as_often_as_it_is_told_to():
    task = Task(replace(CALM, before_step=(Event(function=walk.push, params={"interval": 1.0, "speed": 0.4}),)), 500)
    task.reset(0)
    shoved = 0
    for _ in range(10):
        before = task.simulation.qvel[:, :2].copy()
        walk.push(task, interval=1.0, speed=0.4)
        change = task.simulation.qvel[:, :2] - before
        shoved += np.count_nonzero(change.any(1))
        assert np.abs(change).max() <= 0.4
        assert change.min() < 0 < change.max()  # to either side
    assert 60 <= shoved <= 140  # 500 robots, 10 steps of 0.02 s: 100 expected, four standard deviations


def test_the_gait_clock_starts_anywhere_and_runs_at_its_frequency():
    starts = make_quadruped_walk(ID, 400, threads=1).memory["clock"][:, 0].numpy()
    assert np.histogram(starts, 4, (0, 1))[0] == pytest.approx(np.full(4, 100), abs=40)
    task = Task(replace(CALM, before_step=(Event(function=walk.advance_clock, params={"frequency": 2.0}),)), 1)
    task.reset(0)
    for _ in range(20):
        task.step(torch.zeros(1, 12))
    assert task.memory["clock"].item() == pytest.approx(0.8, abs=1e-5)  # 0.4 s, two cycles a second
    for _ in range(10):
        task.step(torch.zeros(1, 12))
    assert task.memory["clock"].item() == pytest.approx(0.2, abs=1e-5)


def test_weights_are_replaced_by_name_and_the_registered_config_is_never_changed():
    registered = copy.deepcopy({name: term.weight for name, term in QUADRUPED_WALK.rewards.items()})
    task = make_quadruped_walk(ID, 1, threads=1, reward_weights={"trot": 0.0})
    assert task.config.rewards["trot"].weight == 0.0
    assert {name: term.weight for name, term in QUADRUPED_WALK.rewards.items()} == registered
    with pytest.raises(ConfigError, match=r"'troot'.*did you mean 'trot'"):
        make_quadruped_walk(ID, 1, reward_weights={"troot": 1.0})
    with pytest.raises(ConfigError, match="action_scale needs 1 or 12 values"):
        Task(replace(QUADRUPED_WALK, action_scale=(1.0, 1.0)), 1)


def test_observations_of_double_precision_are_taken():
    def positions(state):
        return state.joint_offset.double()

    terms = {"positions": ObsTerm(function=positions)}
    task = Task(replace(CALM, observations={**CALM.observations, "critic": terms}), 2, threads=1)
    assert task.reset(0)["critic"].dtype == torch.float32
    assert task.step(torch.zeros(2, 12)).next_obs["critic"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value")
def test_copies_for_gymnasium_start_apart_unless_they_are_given_one_seed():
    for mode in ("sync", "async"):
        envs = gymnasium.make_vec("habilis/PointReach-v0", num_envs=2, vectorization_mode=mode)
        first, _ = envs.reset()
        again, _ = envs.reset()
        assert not np.array_equal(first[0], first[1])
        assert not np.array_equal(first, again)
        envs.close()
    one, two = (gymnasium.make("habilis/PointReach-v0", seed=5) for _ in range(2))
    assert np.array_equal(one.reset()[0], two.reset()[0])


@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value")
def test_gymnasium_gets_an_ordinary_environment():
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make(ID)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()
    env, vec = gymnasium.make(ID), make_vec_env(ID, 1)
    observation, _ = env.reset(seed=3)
    assert np.array_equal(observation, vec.reset(3)["policy"][0].numpy())
    for action in actions(1, 5):
        observation, reward, terminated, truncated, info = env.step(action[0].numpy())
        step = vec.step(action)
        assert np.array_equal(observation, step.next_obs["policy"][0].numpy())
        assert (reward, terminated, truncated) == (step.reward.item(), False, False)
        assert info["tracking_error"] == step.info["tracking_error"].item()


def test_a_reward_counts_by_its_weight_and_the_length_of_a_step():
    three = RewardTerm(function=lambda state: torch.ones(2), weight=3.0)
    task = Task(replace(CALM, rewards={"three": three}), 2, threads=1)
    task.reset(0)
    step = task.step(torch.zeros(2, 12))
    assert task.control_dt == 0.02
    assert step.reward.tolist() == step.info["reward/three"].tolist() == pytest.approx([0.06, 0.06])
