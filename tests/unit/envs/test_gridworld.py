"""The grid world: every rule by hand, its matrices against its own steps, its looks; and the chain that misleads."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers the grid world)
from habilis.core.errors import ConfigError, EnvError
from habilis.core.specs import spec_from_dict, spec_to_dict
from habilis.envs.checker import check_env
from habilis.envs.grid_drawing import AGENT, GOAL, OBSTACLE
from habilis.envs.gridworld import Grid
from habilis.envs.make import make_vec_env
from habilis.functional.planning import value_iteration

ID = "habilis/GridWorld-v0"
UP, RIGHT, DOWN, LEFT = range(4)
MAP = ["S.#.", "..#G", "...."]


def walk(env, *actions):
    """Where each action leads, what it pays and whether it ends, of the first environment."""
    env.reset(0)
    steps = [env.step(torch.full((env.num_envs,), action)) for action in actions]
    return [(int(s.next_obs["policy"][0].argmax()), round(float(s.reward[0]), 4), bool(s.terminated[0])) for s in steps]


def test_every_rule_by_hand():
    env = make_vec_env(ID, 2)
    assert env.spec.obs["policy"].one_hot == (16,)
    assert spec_from_dict(spec_to_dict(env.spec)) == env.spec
    assert walk(env, UP, LEFT) == [(0, -0.1, False)] * 2  # walls
    assert walk(env, RIGHT, DOWN, RIGHT) == [(1, -0.1, False), (1, -5.0, False), (2, -0.1, False)]  # the obstacle
    assert walk(env, RIGHT, RIGHT, RIGHT) == [(1, -0.1, False), (2, -0.1, False), (3, 10.0, True)]
    assert walk(env, DOWN, DOWN, DOWN, RIGHT)[-1] == (13, -0.1, False)


def test_an_episode_starts_anew_after_its_end():
    env = make_vec_env(ID, 2)
    env.reset(0)
    for actions in ([RIGHT, DOWN], [RIGHT, DOWN]):
        env.step(torch.tensor(actions))
    step = env.step(torch.tensor([RIGHT, DOWN]))
    assert step.obs["policy"].argmax(1).tolist() == [0, 12]
    assert step.next_obs["policy"].argmax(1).tolist() == [3, 12]
    assert step.terminated.tolist() == step.info["success"].tolist() == [True, False]


def test_the_time_limit_truncates_and_the_goal_terminates():
    env = make_vec_env(ID, 2, max_episode_steps=3)
    env.reset(0)
    env.step(torch.tensor([RIGHT, UP]))
    env.step(torch.tensor([RIGHT, UP]))
    step = env.step(torch.tensor([RIGHT, UP]))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]
    assert env.step(torch.tensor([UP, UP])).truncated.tolist() == [False, False]


@pytest.mark.parametrize("kwargs", [{}, {"slip": 0.3}, {"map": MAP, "slip": 0.5}])
def test_the_matrices_say_what_the_steps_do(kwargs):
    n = 60_000
    env = make_vec_env(ID, n, max_episode_steps=10**9, **kwargs)
    transitions, rewards = env.dynamics.transitions, env.dynamics.rewards
    states = len(transitions)
    assert torch.allclose(transitions.sum(2), torch.ones(states, 4, dtype=torch.float64))
    g = torch.Generator().manual_seed(0)
    counts, paid = torch.zeros(states, 4, states), torch.zeros(states, 4)
    obs = env.reset(1)
    for _ in range(30):
        action = torch.randint(4, (n,), generator=g)
        step = env.step(action)
        here, there = obs["policy"].argmax(1), step.next_obs["policy"].argmax(1)
        counts.index_put_((here, action, there), torch.ones(n), accumulate=True)
        paid.index_put_((here, action), step.reward, accumulate=True)
        obs = step.obs
    times = counts.sum(2)
    seen = times > 1000
    assert int(seen.sum()) >= 24
    assert torch.allclose((counts / times[..., None])[seen], transitions[seen].float(), atol=0.06)
    assert torch.allclose((paid / times)[seen], rewards[seen].float(), atol=0.35 if "slip" in kwargs else 1e-3)


def test_slipping_by_hand():
    env = make_vec_env(ID, 1, slip=0.2)
    transitions, rewards = env.dynamics.transitions, env.dynamics.rewards
    # from (0, 1) to the left: to (0, 0); slipping up is the wall, slipping down the obstacle
    assert transitions[1, LEFT, 0] == pytest.approx(0.8)
    assert transitions[1, LEFT, 1] == pytest.approx(0.2)
    assert rewards[1, LEFT] == pytest.approx(0.8 * -0.1 + 0.1 * -0.1 + 0.1 * -5)
    # nothing leads out of the goal, and nothing is paid there
    assert transitions[3, :, 3].tolist() == [1.0] * 4
    assert rewards[3].tolist() == [0.0] * 4


def test_the_best_return_is_nine_point_eight():
    env = make_vec_env(ID, 1)
    q = value_iteration(env.dynamics.transitions, env.dynamics.rewards, 1.0)
    assert float(q[0].max()) == pytest.approx(9.8)
    policy = q.argmax(1)
    paid = walk(env, *(int(policy[s]) for s in (0, 1, 2)))
    assert paid[-1][2]
    assert sum(reward for _, reward, _ in paid) == pytest.approx(9.8)


def test_maps_and_arguments():
    env = make_vec_env(ID, 1, map=MAP)
    grid = env.drawing.grid
    assert grid == Grid(3, 4, (0, 0), (1, 3), ((0, 2), (1, 2)))
    assert Grid.from_dict(grid.to_dict()) == grid
    assert env.spec.obs["policy"].shape == (12,)
    other = make_vec_env(
        ID,
        1,
        size=np.int64(5),
        start=[4, 4],
        goal=tuple(np.zeros(2, int)),
        obstacles=[[2, 2], [3, 3]],
    )
    assert walk(other, UP, LEFT, UP) == [(19, -0.1, False), (19, -5.0, False), (14, -0.1, False)]
    for kwargs, message in [
        ({"goal": (4, 0)}, "outside the grid"),
        ({"goal": (0, 0)}, "the same cell"),
        ({"goal": (1, 1)}, "an obstacle on the goal"),
        ({"obstacles": ((0, 1), (1, 0))}, "shut"),
        ({"start": [1]}, "a row and a column"),
        ({"start": 5}, "a row and a column, .0, 3. say, got 5"),
        ({"obstacles": [1, 1]}, "a row and a column"),
        ({"obstacles": 3}, "a list of cells"),
        ({"size": "four"}, "number of rows and columns"),
        ({"size": 2.5}, "number of rows and columns"),
        ({"size": 1}, "at least 2"),
        ({"slip": "a"}, "probability"),
        ({"colour": 1}, "takes no argument 'colour'"),
        ({"slip": 1.5}, "probability"),
        ({"max_episode_steps": 0}, "positive"),
        ({"map": ["S.", "G"]}, "equal length"),
        ({"map": "S.G"}, "a list of lines"),
        ({"map": ["SS", "G."]}, "one S"),
        ({"map": ["Sx", "G."]}, "one S"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make_vec_env(ID, 1, **kwargs)


@pytest.mark.parametrize(("id", "kwargs"), [(ID, {"slip": 0.4}), ("probe/MaximizationBias-v0", {})])
def test_keeps_the_contract(id, kwargs):
    findings = check_env(make_vec_env(id, 3, seed=1, **kwargs), 200)
    assert [f for f in findings if f.level == "error"] == []
    assert any("restores its state exactly" in f.what for f in findings)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_no_action_leads_into_another_row_of_the_table(wrong):
    env = make_vec_env(ID, 2)
    with pytest.raises(EnvError, match=f"from 0 to 3 .*got {wrong}"):
        env.step(torch.tensor([0, wrong]))
    with pytest.raises(EnvError, match=r"got the shape \[1\]"):
        env.step(torch.tensor([0]))


def test_picture_and_text():
    env = make_vec_env(ID, 1)
    env.reset(0)
    frame = env.render()
    assert frame.shape == (384, 384, 3)
    assert frame.dtype == np.uint8
    middle = [tuple(frame[48 + 96 * r, 48 + 96 * c]) for r, c in ((0, 0), (1, 1))]
    assert middle == [AGENT, OBSTACLE]
    assert tuple(frame[48, 3 * 96 + 10]) == GOAL
    assert env.text() == "A . . G\n. # . .\n. . . .\n. . . ."
    env.step(torch.tensor([RIGHT]))
    assert env.text() == "S A . G\n. # . .\n. . . .\n. . . ."
    assert (env.render() != frame).any()
    # the end of an episode is shown although the next one has begun
    env.step(torch.tensor([RIGHT]))
    env.step(torch.tensor([RIGHT]))
    assert env.text().splitlines()[0] == "S . . A"
    other = make_vec_env(ID, 1)
    other.step(torch.tensor([DOWN]))
    other.load_state_dict(env.state_dict())
    assert other.text().splitlines()[0] == "A . . G"  # what is loaded is shown


def test_a_policy_lies_under_the_agent():
    env = make_vec_env(ID, 1)
    env.reset(0)
    plain = env.render()
    values = torch.arange(16.0).tolist()
    actions = [RIGHT] * 8 + [DOWN] * 4 + [LEFT, UP, -1, -1]
    env.drawing.show(actions, values)
    assert env.text() == "A → → G\n→ # → →\n↓ ↓ ↓ ↓\n← ↑ . ."
    shown = env.render()
    arrow, none = (shown[r * 96 + 20 : r * 96 + 76, c * 96 + 20 : c * 96 + 76] for r, c in ((2, 0), (3, 2)))
    assert len(np.unique(none.reshape(-1, 3), axis=0)) == 1  # colour alone
    assert len(np.unique(arrow.reshape(-1, 3), axis=0)) > 1
    # the arrow down is the arrow up turned: its head is below
    ink = (arrow.astype(int) - arrow[0, 0]).any(2)
    assert ink[28:].sum() > ink[:28].sum()
    colours = [tuple(shown[r * 96 + 12, c * 96 + 48]) for r, c in ((0, 1), (3, 3))]
    assert colours[0] != colours[1]
    env.drawing.show(None)
    assert np.array_equal(env.render(), plain)


def test_gymnasium_has_it_too():
    env = gymnasium.make(ID, render_mode="ansi", slip=0.1, max_episode_steps=50)
    assert env.observation_space == gymnasium.spaces.Discrete(16)
    assert env.action_space == gymnasium.spaces.Discrete(4)
    assert env.reset(seed=0)[0] == 0
    observation, reward, terminated, truncated, info = env.step(UP)
    assert observation in (0, 1)
    assert (reward, terminated, truncated) == (pytest.approx(-0.1), False, False)
    assert info == {"success": False}
    assert env.render().startswith(("A", "S A"))
    sure = gymnasium.make(ID)
    sure.reset(seed=0)
    assert [sure.step(RIGHT)[0] for _ in range(3)] == [1, 2, 3]  # the goal, not where the next episode starts
    assert make_vec_env(ID, 2, backend="gymnasium").spec.obs["policy"].one_hot == (16,)


def test_the_chain_that_misleads():
    env = make_vec_env("probe/MaximizationBias-v0", 4000)
    q = value_iteration(env.dynamics.transitions, env.dynamics.rewards, 1.0)
    assert q[0].tolist() == pytest.approx([-0.1] * 5 + [0.0] * 5)
    assert q[1].tolist() == pytest.approx([-0.1] * 10)
    env.reset(0)
    env.step(torch.zeros(4000, dtype=torch.int64))
    step = env.step(torch.full((4000,), 3))
    assert step.terminated.all()
    assert float(step.reward.mean()) == pytest.approx(-0.1, abs=0.08)
    assert sorted(set(step.reward.tolist())) == pytest.approx([-1.1, 0.9])
    with pytest.raises(EnvError, match="no places"):
        env.render()
