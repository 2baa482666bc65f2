"""The point that reaches: its equations by hand, its endings, and a controller that reaches every target."""

import copy

import gymnasium
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers)
from habilis.api import default_config
from habilis.build import build_trainer
from habilis.core.errors import ConfigError, EnvError
from habilis.core.specs import DiscreteAction
from habilis.envs.checker import check_env
from habilis.envs.make import make_vec_env
from habilis.tasks.point_reach import ACCELERATIONS, EPISODE_STEPS

ID, DISCRETE_ID = "habilis/PointReach-v0", "habilis/PointReachDiscrete-v0"
GOAL_ID = "habilis/PointReachGoal-v0"


def put(env, position, velocity, target, row=0):
    env._rows[row] = np.concatenate([position, velocity, target])


def test_a_step_by_hand():
    env = make_vec_env(ID, 2)
    put(env, (0.1, 0.2, 0.3), (0.45, -0.45, 0.0), (1.0, 0.0, 0.0), 0)
    put(env, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, -1.0), 1)
    step = env.step(torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, -7.0]]))
    # 0.45 + 0.1 is cut at 0.5; -7 counts as -1
    assert step.obs["policy"][0].tolist() == pytest.approx([0.15, 0.15, 0.305, 0.5, -0.5, 0.05, 1, 0, 0])
    assert step.obs["policy"][1].tolist() == pytest.approx([0, 0, -0.01, 0, 0, -0.1, 0, 0, -1])
    distance = np.sqrt(0.85**2 + 0.15**2 + 0.305**2)
    assert step.reward.tolist() == pytest.approx([-distance, -0.99])
    assert step.info["distance"].tolist() == pytest.approx([distance, 0.99])
    assert not step.done.any()


def test_reaching_pays_ten_and_terminates():
    env = make_vec_env(ID, 2, seed=1)
    put(env, (0.16, 0, 0), (-0.5, 0, 0), (0.0, 0, 0), 0)
    put(env, (0.199, 0, 0), (-0.5, 0, 0), (0.0, 0, 0), 1)
    step = env.step(torch.zeros(2, 3))
    assert step.terminated.tolist() == [False, False]  # 0.11 m and 0.15 m away
    step = env.step(torch.zeros(2, 3))
    assert step.terminated.tolist() == step.info["success"].tolist() == [True, True]
    assert step.reward.tolist() == pytest.approx([10 - 0.06, 10 - 0.099], abs=1e-6)
    assert step.next_obs["policy"][0, :3].tolist() == pytest.approx([0.06, 0, 0], abs=1e-6)
    assert step.obs["policy"][:, 3:6].abs().max() == 0  # the next episode is at rest elsewhere
    assert not torch.equal(step.obs["policy"], step.next_obs["policy"])


def test_a_hundred_steps_truncate():
    env = make_vec_env(ID, 3)
    env._rows[:, :3], env._rows[:, 6:] = 1.0, -1.0
    for count in range(1, EPISODE_STEPS + 1):
        step = env.step(torch.zeros(3, 3))
        assert step.truncated.tolist() == [count == EPISODE_STEPS] * 3
    assert not step.terminated.any()
    assert not step.info["success"].any()
    env._elapsed[:] = EPISODE_STEPS - 1
    put(env, (0, 0, 0), (0, 0, 0), (0, 0, 0.05), 1)  # reached at the last moment
    step = env.step(torch.zeros(3, 3))
    assert step.terminated.tolist() == [False, True, False]
    assert step.truncated.tolist() == [True, False, True]


def test_starts_and_targets_fill_the_cube():
    rows = make_vec_env(ID, 2000).reset(0)["policy"]
    places = rows[:, [0, 1, 2, 6, 7, 8]]
    assert places.abs().max() <= 1
    assert (places.amin(0) < -0.99).all()
    assert (places.amax(0) > 0.99).all()
    assert rows[:, 3:6].abs().max() == 0


@pytest.mark.parametrize("id", [ID, DISCRETE_ID])
def test_a_plain_controller_reaches_every_target(id):
    env = make_vec_env(id, 500, seed=2)
    rows = env.reset()["policy"]
    done, success = torch.zeros(2, 500, dtype=torch.bool)
    steps = 0
    while not done.all():
        wanted = (2.0 * (rows[:, 6:] - rows[:, :3])).clamp(-0.5, 0.5)
        action = ((wanted - rows[:, 3:6]) / 0.1).clamp(-1, 1)
        if id == DISCRETE_ID:
            action = ((action.round() + 1) @ torch.tensor([9.0, 3.0, 1.0])).long()
        step = env.step(action)
        success |= step.info["success"] & ~done
        done |= step.done
        rows, steps = step.obs["policy"], steps + 1
    assert success.all()
    assert steps < 60


def test_a_discrete_action_is_one_of_27_accelerations():
    discrete, continuous = make_vec_env(DISCRETE_ID, 27, seed=3), make_vec_env(ID, 27, seed=3)
    assert discrete.spec.action == DiscreteAction(27)
    assert len(np.unique(ACCELERATIONS, axis=0)) == 27
    assert torch.equal(discrete.reset()["policy"], continuous.reset()["policy"])
    one, two = discrete.step(torch.arange(27)), continuous.step(torch.from_numpy(ACCELERATIONS))
    assert torch.equal(one.obs["policy"], two.obs["policy"])
    assert torch.equal(one.reward, two.reward)
    assert one.obs["policy"][26, 3:6].tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_saved_and_restored_it_goes_on_bit_for_bit():
    env = make_vec_env(ID, 5, seed=1)
    actions = [2 * torch.rand(5, 3, generator=torch.Generator().manual_seed(i)) - 1 for i in range(250)]
    for action in actions[:120]:
        env.step(action)
    saved = copy.deepcopy(env.state_dict())
    expected = [env.step(action) for action in actions[120:]]
    assert any(step.done.any() for step in expected)
    other = make_vec_env(ID, 5, seed=9)
    other.load_state_dict(saved)
    for action, step in zip(actions[120:], expected, strict=True):
        assert torch.equal(other.step(action).obs["policy"], step.obs["policy"])


def test_a_picture_shows_the_point_and_its_target_in_both_views():
    env = make_vec_env(ID, 1)
    put(env, (0.5, -0.5, 0.8), (0, 0, 0), (-0.5, 0.5, 0.1))
    picture = env.render().astype(int)
    assert picture.shape == (240, 480, 3)
    point, target = np.array([245, 115, 25]), np.array([92, 168, 120])

    def middle(colour, view):
        rows, columns = np.nonzero(np.abs(picture[:, 240 * view : 240 * (view + 1)] - colour).sum(2) < 10)
        return 1.25 * (2 * (columns.mean() + 0.5) / 240 - 1), -1.25 * (2 * (rows.mean() + 0.5) / 240 - 1)

    for view, axis in ((0, 1), (1, 2)):
        assert middle(point, view) == pytest.approx(env._rows[0, [0, axis]], abs=0.01)
        assert middle(target, view) == pytest.approx(env._rows[0, [6, 6 + axis]], abs=0.01)
    put(env, (9, 9, 9), (0, 0, 0), (0, 0, 0))
    assert (env.render()[0, 239] == point).all()  # far away it stays at the edge


@pytest.mark.parametrize("id", [ID, DISCRETE_ID])
def test_the_checker_finds_nothing_and_shapes_are_asked_for(id):
    env = make_vec_env(id, 3)
    assert {finding.level for finding in check_env(env, 110)} == {"ok"}
    with pytest.raises(EnvError, match=r"shape .*\[?2, 5"):
        env.step(torch.zeros(2, 5))


def test_there_are_27_accelerations():
    env = make_vec_env(DISCRETE_ID, 2)
    for wrong in (-1, 27):
        with pytest.raises(EnvError, match=f"from 0 to 26 .*got {wrong}"):
            env.step(torch.tensor([26, wrong]))


@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value")
@pytest.mark.parametrize("id", [ID, DISCRETE_ID])
def test_gymnasium_gets_an_ordinary_environment(id):
    from gymnasium.utils.env_checker import check_env as check

    env = gymnasium.make(id, render_mode="rgb_array")
    check(env.unwrapped)
    assert env.metadata["render_fps"] == 10
    env.close()


class TestGoal:
    """The point with its target as a goal."""

    def test_the_same_point_with_another_reward(self):
        plain, env = make_vec_env(ID, 3, seed=4), make_vec_env(GOAL_ID, 3, seed=4)
        one, other = plain.reset(1), env.reset(1)
        for k in range(EPISODE_STEPS):
            rows = one["policy"]
            assert torch.equal(other["policy"], rows[:, :6])
            assert torch.equal(other["achieved_goal"], rows[:, :3])
            assert torch.equal(other["desired_goal"], rows[:, 6:])
            action = torch.full((3, 3), 0.1 * (k % 5) - 0.2)
            step, same = env.step(action), plain.step(action)
            assert torch.equal(step.info["distance"], same.info["distance"])
            assert torch.equal(step.reward, torch.where(same.info["distance"] <= 0.1, 0.0, -1.0))
            assert not step.terminated.any()
            one, other = same.obs, step.obs
            if same.done.any():
                break
        assert k > 50
        assert step.truncated.all()

    def test_reaching_the_goal_ends_nothing(self):
        env = make_vec_env(GOAL_ID, 1)
        put(env, (0.0, 0, 0), (0, 0, 0), (0.05, 0, 0))
        step = env.step(torch.zeros(1, 3))
        assert step.reward.tolist() == [0.0]
        assert step.info["success"].tolist() == [True]
        assert not step.done.any()

    def test_it_keeps_the_contract(self):
        assert [finding for finding in check_env(make_vec_env(GOAL_ID, 3)) if finding.level == "error"] == []

    def test_with_gymnasium(self):
        env = gymnasium.make(f"habilis.tasks:{GOAL_ID}")
        obs, _ = env.reset(seed=1)
        assert env.observation_space.contains(obs)
        assert set(obs) == {"observation", "achieved_goal", "desired_goal"}
        obs, reward, _, _, info = env.step(np.ones(3, np.float32))
        assert reward == env.unwrapped.compute_reward(obs["achieved_goal"], obs["desired_goal"], info)
        assert env.unwrapped.compute_reward(np.zeros((2, 3)), np.array([[0, 0, 0.05], [0, 0, 1]]), {}).tolist() == [
            0,
            -1,
        ]
        vec = make_vec_env(GOAL_ID, 2, backend="gymnasium")
        assert vec.spec.obs == make_vec_env(GOAL_ID, 2).spec.obs
        assert vec.compute_reward(torch.zeros(2, 3), torch.tensor([[0, 0, 0.05], [0, 0, 1]])).tolist() == [0, -1]

    def test_without_a_goal_there_is_no_reward_of_one(self):
        env = gymnasium.make(f"habilis.tasks:{ID}")
        with pytest.raises(EnvError, match="has no goals"):
            env.unwrapped.compute_reward(np.zeros(3), np.zeros(3))


def test_a_kin_is_named_where_an_argument_would_choose_it():
    with pytest.raises(ConfigError, match=r"no argument 'discrete'.*habilis/PointReachDiscrete-v0 and "):
        make_vec_env("habilis/PointReach-v0", discrete=True)


@pytest.mark.parametrize(
    ("algorithm", "id", "what"),
    [
        ("dqn", ID, f"use sac, td3 or ppo, or take the environment {DISCRETE_ID}"),
        ("sac", DISCRETE_ID, f"use dqn, discrete_sac or ppo, or take the environment {ID}"),
        ("dqn", GOAL_ID, "use sac, td3 or ppo"),
    ],
)
def test_a_kin_with_the_wanted_actions_is_named(algorithm, id, what):
    with pytest.raises(ConfigError, match=f"{what}$"):
        build_trainer(default_config(algorithm, id, num_envs=1))
