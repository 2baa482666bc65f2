"""Running statistics against NumPy on all data at once, and the scale of rewards against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis.nn.normalizer import RewardNorm, RunningNorm


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.sampled_from([0.0, 1e4]), st.integers(0, 99))
def test_moments_are_those_of_all_data(sizes, offset, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset, 3.0, (n, 2)).astype(np.float32) for n in sizes]
    norm = RunningNorm((2,))
    for batch in batches:
        norm.update(torch.from_numpy(batch))
    everything = np.concatenate(batches).astype(np.float64)
    assert float(norm.count) == len(everything)
    if len(everything):
        np.testing.assert_allclose(norm.mean, everything.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(norm.var, everything.var(0), rtol=1e-6, atol=1e-9)


def test_normalises_by_hand_and_clips():
    norm = RunningNorm((1,), clip=2.0)
    norm.update(torch.tensor([[1.0], [3.0]]))  # mean 2, variance 1
    assert norm(torch.tensor([[2.5], [100.0], [-100.0]])).squeeze(1).tolist() == pytest.approx([0.5, 2, -2])
    assert norm.scale_only(torch.tensor([1.5])).tolist() == pytest.approx([1.5])


def test_before_data_it_only_clips_and_reading_changes_nothing():
    norm = RunningNorm((2,))
    x = torch.tensor([[0.25, -11.0]])
    assert norm(x).tolist() == [[0.25, -10.0]]
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    norm.train()(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


def test_rows_that_are_not_finite_are_left_out():
    norm = RunningNorm((2,))
    norm.update(torch.tensor([[1.0, 1.0], [math.nan, 5.0], [3.0, 5.0], [1.0, math.inf]]))
    assert norm.mean.tolist() == [2, 3]
    assert float(norm.count) == 2


def test_constant_data_gives_zero_not_nan():
    norm = RunningNorm((1,))
    norm.update(torch.full((5, 1), 7.0))
    assert norm(torch.full((2, 1), 7.0)).tolist() == [[0.0], [0.0]]


def test_what_hardly_moved_is_not_blown_up():
    norm = RunningNorm((2,))
    norm.update(torch.tensor([[0.42, 0.0], [0.42, 0.002]]))  # deviations of 0 and 0.001
    assert norm(torch.tensor([[0.422, 0.002]])).tolist() == [pytest.approx([0.2, 0.1], rel=1e-4)]
    norm.update(torch.tensor([[2.42, 0.041]]))  # from 0.01 on it is the deviation that counts
    seen = np.array([0.0, 0.002, 0.041])
    expected = [0.0, (0.041 - seen.mean()) / seen.std()]
    assert norm(torch.tensor([[0.42 + 2 / 3, 0.041]])).tolist() == [pytest.approx(expected, abs=1e-5)]


def test_small_rewards_are_divided_by_their_own_deviation():
    norm, no = RewardNorm(1, 0.5), torch.zeros(2, 1, dtype=torch.bool)
    norm.update(torch.tensor([[0.0], [0.002]]), no, ~no)
    assert float(norm(torch.tensor(0.002))) == pytest.approx(2, rel=1e-3)


def test_reward_scale_against_a_loop():
    g = torch.Generator().manual_seed(0)
    norm = RewardNorm(3, 0.9)
    running, seen = [0.0] * 3, []
    for _ in range(4):
        rewards = torch.randn(10, 3, generator=g) * 5
        done = torch.rand(10, 3, generator=g) < 0.2
        valid = torch.rand(10, 3, generator=g) < 0.9
        norm.update(rewards, done, valid)
        for t in range(10):
            for n in range(3):
                running[n] = 0.9 * running[n] + float(rewards[t, n])
                if valid[t, n]:
                    seen.append(running[n])
                if done[t, n] or not valid[t, n]:
                    running[n] = 0.0
    assert norm.running_return.tolist() == pytest.approx(running, abs=1e-4)
    assert float(norm(torch.tensor(2.0))) == pytest.approx(2 / np.std(seen), rel=1e-4)


def test_rewards_are_divided_so_that_no_return_exceeds_the_bound():
    norm, no = RewardNorm(1, 0.5, bound=10.0), torch.zeros(100, 1, dtype=torch.bool)
    norm.update(torch.zeros(100, 1), no, ~no)
    assert norm(torch.tensor([1.0, -0.001])).tolist() == [1.0, pytest.approx(-0.001)]  # nothing but zeros was seen
    rewards = torch.zeros(100, 1)
    rewards[50] = -100.0  # once in two hundred steps: the deviation is 8, and 100 / 8 more than 10
    norm.update(rewards, no, ~no)
    assert float(norm.greatest) == 100
    assert norm(torch.tensor([-100.0, 1.0])).tolist() == pytest.approx([-10.0, 0.1])
    rewards[50:] = 30.0  # returns of up to 60 are usual now
    norm.update(rewards, no, ~no)
    returns = [0.0]
    for reward in [0.0] * 150 + [-100.0] + [0.0] * 99 + [30.0] * 50:
        returns.append(0.5 * returns[-1] + reward)
    assert float(norm(torch.tensor(1.0))) == pytest.approx(1 / np.std(returns[1:]), rel=1e-4)


def test_reward_scale_survives_an_invalid_reward():
    norm = RewardNorm(1, 0.9)
    rewards = torch.tensor([[1.0], [math.nan], [2.0]])
    norm.update(rewards, torch.zeros(3, 1, dtype=torch.bool), torch.tensor([[True], [False], [True]]))
    # returns seen: 1 and, after the break, 2
    assert (norm.running_return.tolist(), float(norm.returns.mean)) == ([2.0], 1.5)


def test_moments_seen_since_then_are_those_of_the_rows_since_then():
    rng = np.random.default_rng(0)
    first, second = (torch.as_tensor(rng.normal(c, 2.0, (n, 3))) for c, n in ((50.0, 40), (-3.0, 7)))
    norm, other = RunningNorm((3,)), RunningNorm((3,))
    for start in (False, True):
        then = [x.clone() for x in (norm.mean, norm.var, norm.count)]
        rows = second if start else first
        norm.update(rows)
        mean, var, count = norm.since(*then)
        torch.testing.assert_close(mean, rows.mean(0))
        torch.testing.assert_close(var, rows.var(0, correction=0))
        assert float(count) == len(rows)
        other.merge(mean, var, count)
    torch.testing.assert_close(other.state_dict(), norm.state_dict())
