"""The native twins: equal to Gymnasium step for step, exact on restore, unharmed by a simulation that diverges."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from habilis.core.errors import ConfigError, EnvError, NonFiniteError
from habilis.core.specs import BoxAction
from habilis.envs.mujoco import NATIVE_IDS, NativeMujocoEnv, make_native

STEPS = 1000
SHOWN_AND_TWICE = {"exclude_current_positions_from_observation": False, "forward_reward_weight": 2.0}
GYMNASIUM_NAMES = {
    "reward/forward": "reward_forward",
    "reward/ctrl": "reward_ctrl",
    "reward/contact": "reward_contact",
    "reward/survive": "reward_survive",
    "reward/dist": "reward_dist",
    "reward/near": "reward_near",
    "reward/distance": "distance_penalty",
    "reward/velocity": "velocity_penalty",
    "x_position": "x_position",
    "x_velocity": "x_velocity",
}


def copy_state(source: gymnasium.Env, env: NativeMujocoEnv, row: int) -> None:
    """Start the twin's episode where Gymnasium's starts."""
    env.simulation.reset([row])
    env.simulation.qpos[row] = source.unwrapped.data.qpos
    env.simulation.qvel[row] = source.unwrapped.data.qvel
    env.simulation.forward([row])


def actions(env: NativeMujocoEnv, generator: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    assert isinstance(env.spec.action, BoxAction)
    low, high = scale * env.spec.action.low, scale * env.spec.action.high
    return generator.uniform(low, high, (env.num_envs, env.spec.action.dim)).astype(np.float32)


def assert_equals_gymnasium(id: str, steps: int, scale: float = 1.0, **kwargs: object) -> int:
    generator = np.random.default_rng(0)
    originals = [gymnasium.make(id, **kwargs) for _ in range(2)]
    env = make_native(id, 2, seed=0, threads=1, **kwargs)
    space = originals[0].action_space
    assert np.array_equal([env.spec.action.low, env.spec.action.high], [space.low, space.high])
    for row, original in enumerate(originals):
        first, _ = original.reset(seed=row)
        copy_state(original, env, row)
        np.testing.assert_allclose(env._observe(np.array([row]))[0], first, rtol=1e-5, atol=1e-6)
    episodes = 0
    for t in range(steps // 2):
        action = actions(env, generator, scale)
        step = env.step(torch.from_numpy(action))
        assert step.valid.all()
        for row, original in enumerate(originals):
            obs, reward, terminated, truncated, info = original.step(action[row])
            where = f"{id}, step {t}, environment {row}"
            np.testing.assert_allclose(step.next_obs["policy"][row], obs, rtol=1e-5, atol=1e-6, err_msg=where)
            assert step.reward[row].item() == pytest.approx(reward, rel=1e-5, abs=1e-5), where
            assert bool(step.terminated[row]) == terminated, where
            assert bool(step.truncated[row]) == (truncated and not terminated), where
            for ours, value in step.info.items():
                if ours != "diverged":
                    assert value[row].item() == pytest.approx(info[GYMNASIUM_NAMES[ours]], rel=1e-5, abs=1e-5), ours
            if terminated or truncated:
                episodes += 1
                original.reset()
                copy_state(original, env, row)
    env.close()
    return episodes


@pytest.mark.parametrize("id", NATIVE_IDS)
def test_equals_gymnasium(id):
    # a limit of 200 steps ends episodes of the tasks that never terminate; Reacher and Pusher have shorter ones
    limit = min(200, gymnasium.spec(id).max_episode_steps)
    assert assert_equals_gymnasium(id, STEPS, max_episode_steps=limit) >= 4


@pytest.mark.parametrize(
    ("id", "kwargs"),
    [
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "forward_reward_weight": 2.0}),
        ("Hopper-v5", {"healthy_z_range": (1.2, 1.3), "healthy_reward": 0.5, "frame_skip": 2}),
        ("Hopper-v5", {"healthy_state_range": (-1.0, 1.0), "terminate_when_unhealthy": False, **SHOWN_AND_TWICE}),
        ("Walker2d-v5", {"terminate_when_unhealthy": False, "ctrl_cost_weight": 0.1, **SHOWN_AND_TWICE}),
        ("Walker2d-v5", {"healthy_z_range": (1.1, 1.3), "healthy_angle_range": (-0.1, 0.1)}),
        ("Ant-v5", {"include_cfrc_ext_in_observation": False, "main_body": "aux_1", "contact_cost_weight": 0.1}),
        ("Ant-v5", {"contact_force_range": (-5.0, 5.0), "healthy_z_range": (0.3, 0.9)}),
        ("Ant-v5", {"healthy_z_range": (0.6, 0.9), "terminate_when_unhealthy": False, **SHOWN_AND_TWICE}),
        ("Humanoid-v5", {"include_cinert_in_observation": False, "contact_cost_range": (0.0, 0.001)}),
        ("Humanoid-v5", {"include_cvel_in_observation": False, "healthy_z_range": (1.3, 1.5), **SHOWN_AND_TWICE}),
        ("Humanoid-v5", {"include_qfrc_actuator_in_observation": False, "terminate_when_unhealthy": False}),
        ("Humanoid-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.01}),
        ("Swimmer-v5", {"ctrl_cost_weight": 0.1, **SHOWN_AND_TWICE}),
        ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.3}),
        ("Pusher-v5", {"reward_near_weight": 0.1, "reward_control_weight": 0.3}),
        ("InvertedDoublePendulum-v5", {"healthy_reward": 3.0, "reset_noise_scale": 0.3}),
    ],
)
def test_arguments_mean_what_they_mean_in_gymnasium(id, kwargs):
    # actions beyond their bounds: neither side clips them, the motors do
    assert_equals_gymnasium(id, 120, scale=1.5, **kwargs)


@pytest.mark.parametrize("id", NATIVE_IDS)
def test_starts_are_drawn_as_gymnasium_draws_them(id):
    env = make_native(id, 200, seed=3, threads=1)
    original = gymnasium.make(id).unwrapped
    theirs = np.array([original.reset(seed=seed)[0] for seed in range(400)])
    ours = np.concatenate([env.reset()["policy"].double().numpy() for _ in range(10)])
    scale = theirs.std(0)
    moving = scale > 1e-6
    np.testing.assert_allclose(ours.std(0)[moving] / scale[moving], 1.0, atol=0.15)
    np.testing.assert_allclose(ours.std(0)[~moving], 0.0, atol=1e-6)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=1e-5 + 0.25 * scale.max())
    env.close()


@pytest.mark.parametrize(("id", "still"), [("Reacher-v5", 2), ("Pusher-v5", 4)])
def test_a_target_and_what_is_to_be_pushed_start_at_rest(id, still):
    velocity = make_native(id, 8, seed=3, threads=1).simulation.qvel
    assert not velocity[:, -still:].any()
    assert velocity[:, :-still].all()


@pytest.mark.parametrize("id", [id for id in NATIVE_IDS if id not in ("Pusher-v5", "Reacher-v5")])
def test_without_noise_episodes_start_in_the_models_pose(id):
    env = make_native(id, 2, seed=0, threads=1, reset_noise_scale=0.0)
    assert (env.simulation.qpos == env.simulation.model.qpos0).all()
    assert not env.simulation.qvel.any()


def run(env: NativeMujocoEnv, steps: int, seed: int = 0) -> list[torch.Tensor]:
    generator = np.random.default_rng(seed)
    trace: list[torch.Tensor] = []
    for _ in range(steps):
        step = env.step(torch.from_numpy(actions(env, generator)))
        trace += [step.obs["policy"], step.next_obs["policy"], step.reward, step.terminated, step.truncated]
    return trace


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("id", ["Hopper-v5", "Ant-v5"])
def test_threads_do_not_change_the_numbers(id):
    envs = [make_native(id, 5, seed=1, threads=threads, max_episode_steps=20) for threads in (1, 2, 4)]
    assert [env.simulation.threads for env in envs] == [1, 2, 4]
    traces = [run(env, 50) for env in envs]
    assert equal(traces[0], traces[1])
    assert equal(traces[0], traces[2])


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Reacher-v5"])
def test_goes_on_bit_for_bit_after_a_restore(id):
    env, other = (make_native(id, 3, seed=seed, threads=1, max_episode_steps=25) for seed in (1, 2))
    run(env, 30)
    run(other, 7)
    state = env.state_dict()
    expected = run(env, 40, seed=5)
    other.load_state_dict(state)
    assert equal(run(other, 40, seed=5), expected)


def test_same_seed_same_episodes():
    first, second = (make_native("Hopper-v5", 3, seed=9, threads=1) for _ in range(2))
    assert equal(run(first, 60), run(second, 60))
    assert torch.equal(first.reset(seed=2)["policy"], second.reset(seed=2)["policy"])
    assert not torch.equal(first.reset(seed=2)["policy"], first.reset(seed=3)["policy"])


def test_an_episode_that_ends_leaves_the_others_alone():
    env = make_native("InvertedPendulum-v5", 3, seed=0, threads=1)
    env.step(torch.zeros(3, 1))
    env.simulation.qpos[1, 1] = 1.0
    step = env.step(torch.zeros(3, 1))
    assert step.terminated.tolist() == [False, True, False]
    assert step.next_obs["policy"][1, 1] > 0.2
    assert step.obs["policy"][1].abs().max() < 0.02
    assert torch.equal(step.obs["policy"][[0, 2]], step.next_obs["policy"][[0, 2]])
    assert (env.simulation.time == 0.0).tolist() == [False, True, False]
    step = env.step(torch.zeros(3, 1))
    assert step.obs is step.next_obs


def test_the_time_limit_truncates_and_termination_wins_over_it():
    env = make_native("InvertedPendulum-v5", 2, seed=0, threads=1, max_episode_steps=3)
    for _ in range(2):
        assert not env.step(torch.zeros(2, 1)).done.any()
    env.simulation.qpos[0, 1] = 1.0
    step = env.step(torch.zeros(2, 1))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]
    assert not env.step(torch.zeros(2, 1)).done.any()


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5"])
def test_velocity_is_measured_from_where_the_step_starts(id):
    env = make_native(id, 2, seed=0, threads=1, max_episode_steps=5)
    run(env, 3)
    env.simulation.qpos[0, 0] += 100.0
    zero = torch.zeros(2, env.spec.action.dim)
    for in_the_distance in (True, True, False):  # written from outside; going on; begun anew
        step = env.step(zero)
        assert (step.info["x_position"][0] > 90.0) == in_the_distance
        assert step.info["x_velocity"].abs().max() < 20.0


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("field", ["qpos", "qvel"])
@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Ant-v5"])
def test_divergence_is_isolated(id, field, poison):
    env, healthy = (make_native(id, 3, seed=1, threads=2) for _ in range(2))
    before = run(env, 5)[-5].clone()
    run(healthy, 5)
    getattr(env.simulation, field)[1, 0] = poison
    action = torch.from_numpy(actions(env, np.random.default_rng(7)))
    step, expected = env.step(action), healthy.step(action)
    assert step.info["diverged"].tolist() == [False, True, False]
    assert step.valid.tolist() == [True, False, True]
    assert step.truncated.tolist() == [False, True, False]
    assert not step.terminated.any()
    assert step.reward[1] == 0.0
    assert not any(value[1] for name, value in step.info.items() if name != "diverged")
    assert torch.equal(step.next_obs["policy"][1], before[1])
    assert step.obs["policy"].isfinite().all()
    assert not torch.equal(step.obs["policy"][1], before[1])
    assert env.simulation.time[1] == 0.0
    assert env.simulation.diverged_total == 1
    for row in (0, 2):
        assert torch.equal(step.next_obs["policy"][row], expected.next_obs["policy"][row])
        assert step.reward[row] == expected.reward[row]
    step = env.step(action)
    assert step.valid.all()
    assert step.next_obs["policy"].isfinite().all()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_an_action_that_is_not_finite_is_named_before_it_reaches_the_simulator(bad):
    env = make_native("HalfCheetah-v5", 3, seed=1, threads=1)
    action = torch.zeros(3, 6)
    env.step(action)
    action[2, 4] = bad
    before = env.simulation.qpos.copy()
    with pytest.raises(NonFiniteError, match=f"action 4 of environment 2 of HalfCheetah-v5 must be finite, got {bad}"):
        env.step(action)
    assert np.array_equal(env.simulation.qpos, before)


def test_a_simulation_that_diverges_has_not_terminated(monkeypatch):
    env = make_native("InvertedPendulum-v5", 2, seed=0, threads=1)
    env.simulation.qpos[:, 1] = 1.0  # both have fallen
    monkeypatch.setattr(env.simulation, "step", lambda nstep: np.array([False, True]))
    step = env.step(torch.zeros(2, 1))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]


def test_a_divergence_right_after_a_restore_still_knows_the_last_observation():
    env, other = (make_native("Hopper-v5", 2, seed=seed, threads=1) for seed in (1, 2))
    last = run(env, 5)[-5]
    other.load_state_dict(env.state_dict())
    other.simulation.qvel[0, 0] = np.nan
    assert torch.equal(other.step(torch.zeros(2, 3)).next_obs["policy"][0], last[0])


def test_tensors_are_fresh_and_float32():
    env = make_native("Ant-v5", 2, seed=0, threads=1, max_episode_steps=2)
    for _ in range(2):  # within an episode, and at its end
        step = env.step(torch.zeros(2, 8))
        kept = [step.obs["policy"], step.next_obs["policy"], step.reward, step.valid, *step.info.values()]
        copies = [tensor.clone() for tensor in kept]
        for _ in range(2):
            env.step(torch.ones(2, 8))
        assert equal(kept, copies)
        assert step.obs["policy"].dtype == step.reward.dtype == torch.float32
    assert step.truncated.all()


def test_writing_the_tensors_does_not_change_the_environment():
    env, untouched = (make_native("Hopper-v5", 2, seed=0, threads=1) for _ in range(2))
    env.step(torch.zeros(2, 3)).obs["policy"].fill_(7.0)
    untouched.step(torch.zeros(2, 3))
    for each in (env, untouched):
        each.simulation.qvel[0, 0] = np.nan
    mine, theirs = (each.step(torch.zeros(2, 3)) for each in (env, untouched))
    assert torch.equal(mine.next_obs["policy"], theirs.next_obs["policy"])


def test_spec_says_what_is_known():
    spec = make_native("Ant-v5", 1, seed=0, threads=1).spec
    assert spec.obs["policy"].shape == (105,)
    assert (spec.max_episode_steps, spec.control_dt, spec.backend, spec.saves_state) == (1000, 0.05, "native", True)
    assert spec.action_names[:2] == ("hip_4", "ankle_4")


def test_refuses_what_does_not_fit():
    with pytest.raises(ConfigError, match="healthy_z_range"):
        make_native("Hopper-v5", 1, seed=0, healthy_z_rang=(0.0, 1.0))
    with pytest.raises(ConfigError, match="HalfCheetah-v5"):
        make_native("HalfChetah-v5", 1, seed=0)
    with pytest.raises(EnvError, match="model file"):
        make_native("Ant-v5", 1, seed=0, xml_file="bee.xml")
    env = make_native("Hopper-v5", 2, seed=0, threads=1)
    with pytest.raises(EnvError, match="shape"):
        env.step(torch.zeros(3))


def test_old_attributes_of_gymnasiums_models_are_not_the_users_concern(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_native("HalfCheetah-v5", 1, seed=0, threads=1).close()
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir()), "MuJoCo writes MUJOCO_LOG.TXT when it warns"
