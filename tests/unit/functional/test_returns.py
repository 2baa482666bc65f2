"""Returns and advantages: by hand, and against loops that follow the definition step by step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis.functional.n_step import n_step_return
from habilis.functional.returns import (
    explained_variance,
    generalized_advantage,
    terminating_episodes,
)


def column(*values):
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool).unsqueeze(1)


def gae(next_values=(20, 30, 40), terminated=(0, 0, 0), truncated=(0, 0, 0), valid=(1, 1, 1)):
    """Rewards 1, 2, 3 and values 10, 20, 30 under gamma = lambda = 1/2."""
    terminated, truncated = flags(*terminated), flags(*truncated)
    rewards, values = column(1, 2, 3), column(10, 20, 30)
    done = terminated | truncated
    advantages = generalized_advantage(
        rewards, values, column(*next_values), terminated, done, flags(*valid), gamma=0.5, gae_lambda=0.5
    )
    return advantages.squeeze(1).tolist()


def test_gae_by_hand():
    # deltas: 1 + 20/2 - 10 = 1; 2 + 30/2 - 20 = -3; 3 + 40/2 - 30 = -7; decay 1/4
    # A2 = -7; A1 = -3 - 7/4 = -4.75; A0 = 1 - 4.75/4 = -0.1875
    assert gae() == [-0.1875, -4.75, -7]


def test_gae_at_a_termination_has_no_bootstrap():
    # delta1 = 2 - 20 = -18, whatever the value of the last observation; A0 = 1 - 18/4 = -3.5; step 2 is another episode
    for last in (30, 1e6, math.nan):
        assert gae(next_values=(20, last, 40), terminated=(0, 1, 0)) == [-3.5, -18, -7]


def test_gae_at_a_truncation_bootstraps_from_the_true_successor():
    # V(final) = 100: delta1 = 2 + 50 - 20 = 32; A0 = 1 + 32/4 = 9; nothing of step 2 enters
    assert gae(next_values=(20, 100, 40), truncated=(0, 1, 0)) == [9, 32, -7]


def test_gae_at_an_invalid_step_is_zero_and_the_step_before_bootstraps():
    # step 1 is nothing: A1 = 0, A0 = delta0 = 1
    assert gae(valid=(1, 0, 1)) == [1, 0, -7]


def slow_gae(rewards, values, next_values, terminated, done, valid, gamma, lam):
    """Sum (gamma lambda)^k delta_{t+k} for each step on its own, by the definition."""
    steps, envs = rewards.shape
    out = torch.zeros(steps, envs, dtype=torch.float64)
    for n in range(envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                if not valid[k, n]:
                    break
                bootstrap = 0.0 if terminated[k, n] else gamma * float(next_values[k, n])
                out[t, n] += weight * (float(rewards[k, n]) + bootstrap - float(values[k, n]))
                if done[k, n]:
                    break
                weight *= gamma * lam
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae_against_loops(gamma, lam):
    g = torch.Generator().manual_seed(1)
    shape = (40, 7)
    rewards, values, next_values = (torch.randn(shape, generator=g) for _ in range(3))
    end = torch.rand(shape, generator=g)
    terminated, truncated = end < 0.1, end > 0.9
    valid = torch.rand(shape, generator=g) < 0.9
    done = terminated | truncated
    fast = generalized_advantage(rewards, values, next_values, terminated, done, valid, gamma, lam)
    slow = slow_gae(rewards, values, next_values, terminated, done, valid, gamma, lam)
    torch.testing.assert_close(fast.double(), slow, atol=1e-4, rtol=1e-5)


def test_gae_of_the_right_value_is_zero_when_every_episode_is_truncated():
    # reward 1 for ever: V = 1 / (1 - 0.9) = 10 and 1 + 0.9 * 10 - 10 = 0
    ten = torch.full((20, 3), 10.0)
    truncated = torch.zeros(20, 3, dtype=torch.bool)
    truncated[4::5] = True
    never, always = torch.zeros_like(truncated), torch.ones_like(truncated)
    advantages = generalized_advantage(torch.ones(20, 3), ten, ten, never, truncated, always, 0.9, 0.95)
    torch.testing.assert_close(advantages, torch.zeros(20, 3), atol=1e-5, rtol=0)


def test_n_step_by_hand():
    # gamma 1/2, rewards 1, 2, 4
    rewards = torch.tensor([[1.0] * 4, [2.0] * 4, [4.0] * 4])
    never = [0, 0, 0]
    terminated = torch.tensor([never, [0, 1, 0], never, never], dtype=torch.bool).T
    cut = torch.tensor([never, never, [1, 0, 0], [0, 0, 1]], dtype=torch.bool).T
    returns, discount, last, ended = n_step_return(rewards, terminated, terminated | cut, 0.5)
    # whole window: 1 + 2/2 + 4/4 = 3; to the second step: 1 + 2/2 = 2; the first: 1; an end at the last changes nothing
    assert returns.tolist() == [3, 2, 1, 3]
    assert discount.tolist() == [0.125, 0.25, 0.5, 0.125]
    assert last.tolist() == [2, 1, 0, 2]
    assert ended.tolist() == [False, True, False, False]


def test_n_step_takes_nothing_from_beyond_the_end():
    rewards = torch.tensor([[1.0], [math.nan]])
    done = torch.tensor([[True], [False]])
    returns, *_ = n_step_return(rewards, torch.zeros_like(done), done, 0.9)
    assert returns.tolist() == [1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.sampled_from(["go", "end", "cut"])), min_size=1, max_size=6),
    st.sampled_from([0.5, 0.99, 1.0]),
)
def test_n_step_against_loops(steps, gamma):
    rewards = torch.tensor([[float(r)] for r, _ in steps])
    terminated = torch.tensor([[kind == "end"] for _, kind in steps])
    done = torch.tensor([[kind != "go"] for _, kind in steps])
    total, k = 0.0, 0
    while True:
        total += gamma**k * steps[k][0]
        if steps[k][1] != "go" or k == len(steps) - 1:
            break
        k += 1
    returns, discount, last, ended = n_step_return(rewards, terminated, done, gamma)
    assert float(returns) == pytest.approx(total, abs=1e-4)
    assert float(discount) == pytest.approx(gamma ** (k + 1))
    assert (int(last), bool(ended)) == (k, steps[k][1] == "end")


def test_explained_variance_by_hand():
    returns = torch.tensor([0.0, 2.0, 4.0])
    # residuals 0, 1, 2 have variance 1, the returns 4: 1 - 1/4
    assert float(explained_variance(torch.tensor([0.0, 1.0, 2.0]), returns)) == pytest.approx(0.75)
    assert float(explained_variance(returns, returns)) == 1
    assert float(explained_variance(torch.zeros(3), returns)) == 0


def test_which_episodes_terminate_by_hand():
    terminated, truncated = flags(0, 1, 0, 0, 0, 1, 0, 0), flags(0, 0, 0, 1, 0, 0, 0, 0)
    valid = flags(1, 1, 1, 1, 0, 1, 1, 1)
    ends = terminating_episodes(terminated, terminated | truncated, valid)
    # terminated; truncated; a step that is not valid, then an episode of one step; one that goes on beyond
    assert ends.squeeze(1).tolist() == [True, True, False, False, False, True, False, False]
    # an episode cut off by a step that is not valid does not terminate
    assert not terminating_episodes(flags(0, 0, 1), flags(0, 0, 1), flags(1, 0, 1))[0]
