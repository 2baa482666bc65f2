"""Catch: what falls where, what is seen, and that the optimal return is ten from everywhere."""

import copy

import gymnasium
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers)
from habilis.core.errors import EnvError
from habilis.core.specs import DiscreteAction
from habilis.envs.checker import check_env
from habilis.envs.make import make_vec_env
from habilis.tasks.catch import BALL, BALLS, BOTTOM, EPISODE_STEPS, OPTIMAL_RETURN, PADDLE, SIZE

ID = "habilis/Catch-v0"
LEFT, STAY, RIGHT = range(3)


def put(env, paddle, column, drift, row=0):
    """Set every environment."""
    for name, value in (("paddle", paddle), ("column", column), ("drift", drift), ("row", row), ("elapsed", 0)):
        getattr(env, f"_{name}")[:] = value


def seen(screen):
    """Read (paddle, ball row, ball column) from a screen `[10, 10, 1]`, and check that nothing else is on it."""
    picture = screen[:, :, 0].numpy()
    (row,), (column,) = np.nonzero(picture == BALL)
    bar = np.flatnonzero(picture[BOTTOM])
    assert np.isin(picture, (0, BALL, PADDLE)).all()
    assert (picture > 0).sum() == (picture[BOTTOM] > 0).sum() + (row != BOTTOM)
    paddle = int(np.flatnonzero(picture[BOTTOM] == PADDLE).mean().round()) if row != BOTTOM else None
    assert row == BOTTOM or len(bar) == 3
    return paddle, row, column


def landing(column, drift, steps):
    """Where a ball is after `steps`: the unfolded way between two mirrors."""
    way = (column + drift * steps) % (2 * SIZE - 2)
    return np.where(way < SIZE, way, 2 * SIZE - 2 - way)


def test_a_ball_falls_drifts_and_bounces():
    env = make_vec_env(ID, 3)
    put(env, 5, np.array([8, 1, 5]), np.array([1, -1, 0]))
    columns = []
    for _ in range(4):
        step = env.step(torch.tensor([LEFT, STAY, RIGHT]))
        columns.append([seen(screen)[2] for screen in step.obs["policy"]])
    assert np.array(columns).T.tolist() == [[9, 8, 7, 6], [0, 1, 2, 3], [5, 5, 5, 5]]
    assert [seen(screen)[:2] for screen in step.obs["policy"]] == [(1, 4), (5, 4), (8, 4)]
    assert step.reward.tolist() == [0, 0, 0]


def test_the_paddle_stays_on_the_screen():
    env = make_vec_env(ID, 2)
    put(env, np.array([2, 7]), 5, 0)
    for _ in range(4):
        step = env.step(torch.tensor([LEFT, RIGHT]))
    assert [seen(screen)[0] for screen in step.obs["policy"]] == [1, 8]


def test_a_catch_pays_and_a_miss_ends_the_episode():
    env = make_vec_env(ID, 4)
    put(env, 5, np.array([4, 6, 3, 7]), 0, row=BOTTOM - 1)
    step = env.step(torch.full((4,), STAY))
    assert step.reward.tolist() == [1, 1, -1, -1]
    assert step.terminated.tolist() == [False, False, True, True]
    assert not step.truncated.any()
    assert [seen(screen)[1] for screen in step.next_obs["policy"]] == [0, 0, BOTTOM, BOTTOM]
    assert [seen(screen)[1] for screen in step.obs["policy"]] == [0, 0, 0, 0]
    assert torch.equal(step.obs["policy"][:2], step.next_obs["policy"][:2])


def test_a_miss_at_the_last_moment_terminates_and_does_not_truncate():
    env = make_vec_env(ID, 2)
    put(env, 5, np.array([5, 1]), 0, row=BOTTOM - 1)
    env._elapsed[:] = EPISODE_STEPS - 1
    step = env.step(torch.full((2,), STAY))
    assert step.truncated.tolist() == step.info["success"].tolist() == [True, False]
    assert step.terminated.tolist() == [False, True]


def test_every_ball_can_be_caught_from_everywhere_by_what_two_frames_show():
    grid = np.meshgrid(np.arange(1, SIZE - 1), np.arange(SIZE), (-1, 0, 1), indexing="ij")
    paddle, column, drift = (values.ravel() for values in grid)
    env = make_vec_env(ID, len(paddle))
    put(env, paddle, column, drift)
    step = env.step(torch.full((len(paddle),), STAY))  # the first frame does not show the drift
    goal = np.clip(landing(column, drift, BOTTOM), 1, SIZE - 2)
    for _ in range(BOTTOM - 1):
        assert not step.done.any()
        step = env.step(torch.from_numpy(np.sign(goal - env._paddle) + 1))
    assert (step.reward == 1).all()


def test_the_optimal_return_is_ten_and_then_time_is_up():
    env = make_vec_env(ID, 50, seed=4)
    env.reset()
    total = np.zeros(50)
    for count in range(1, EPISODE_STEPS + 1):
        goal = np.clip(landing(env._column, env._drift, BOTTOM - env._row), 1, SIZE - 2)
        step = env.step(torch.from_numpy(np.sign(goal - env._paddle) + 1))
        total += step.reward.numpy()
        assert step.truncated.tolist() == [count == EPISODE_STEPS] * 50
    assert (total == OPTIMAL_RETURN).all()
    assert OPTIMAL_RETURN == BALLS
    assert step.info["success"].all()
    assert not step.terminated.any()
    # the last catch is answered by the next ball, which a bootstrap is taken from, and then the episode is another
    assert not torch.equal(step.obs["policy"], step.next_obs["policy"])
    assert all(seen(screen)[1] == 0 for screen in step.next_obs["policy"])
    assert not env.step(torch.ones(50, dtype=torch.int64)).done.any()


def test_starts_are_anywhere():
    env = make_vec_env(ID, 3000)
    env.reset(0)
    assert (np.unique(env._paddle) == np.arange(1, SIZE - 1)).all()
    assert (np.unique(env._column) == np.arange(SIZE)).all()
    assert np.bincount(env._drift + 1) == pytest.approx(np.full(3, 1000), abs=150)


def test_saved_and_restored_it_goes_on_bit_for_bit():
    env = make_vec_env(ID, 5, seed=1)
    actions = [torch.randint(3, (5,), generator=torch.Generator().manual_seed(i)) for i in range(120)]
    for action in actions[:50]:
        env.step(action)
    saved = copy.deepcopy(env.state_dict())
    expected = [env.step(action) for action in actions[50:]]
    assert any(step.done.any() for step in expected)
    other = make_vec_env(ID, 5, seed=9)
    other.load_state_dict(saved)
    for action, step in zip(actions[50:], expected, strict=True):
        assert torch.equal(other.step(action).obs["policy"], step.obs["policy"])


def test_the_checker_finds_nothing_and_shapes_are_asked_for():
    env = make_vec_env(ID, 3)
    assert env.spec.action == DiscreteAction(3)
    assert env.spec.obs["policy"].is_image
    assert env.spec.obs["policy"].channel_axis == -1
    assert {finding.level for finding in check_env(env, 160)} == {"ok"}
    with pytest.raises(EnvError, match=r"an action from 0 to 2 for each environment, `\[3\]`, got the shape \[3, 1\]"):
        env.step(torch.zeros(3, 1, dtype=torch.int64))
    for wrong in (-1, 3):
        with pytest.raises(EnvError, match=f"got {wrong}"):
            env.step(torch.tensor([0, 1, wrong]))


def test_gymnasium_gets_an_ordinary_environment():
    from gymnasium.utils.env_checker import check_env as check

    env = gymnasium.make(ID, render_mode="rgb_array")
    check(env.unwrapped)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (320, 320, 3)
    assert (picture == (245, 115, 25)).all(2).sum() == 32**2  # the ball is one pixel, enlarged
    env.close()
