"""The evaluator: fair shares, its own seeds and streams, memory by environment, and nothing left changed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from habilis.build import ALGORITHMS
from habilis.core.errors import ConfigError, EnvError, NonFiniteError
from habilis.core.specs import (
    BoxAction,
    DiscreteAction,
    EnvSpec,
    HybridAction,
    MultiDiscreteAction,
    ObsGroup,
    require_fit,
)
from habilis.core.types import PolicyStep, Step
from habilis.envs.make import make_vec_env
from habilis.evaluation.evaluator import EvaluationResult, evaluate, evaluation_seed, rollout


class Countdown:
    """Episodes of fixed length, different in each environment; the reward is the action, the observation the time.

    With `dummy`, an environment resets one step late, at a step that is not valid.
    """

    def __init__(self, lengths, *, dummy=False, reward=1.0):
        self.num_envs = len(lengths)
        self.spec = EnvSpec("Countdown-v0", {"policy": ObsGroup((1,))}, BoxAction(np.array([-1.0]), np.array([1.0])))
        self.lengths = torch.tensor(lengths)
        self.dummy = dummy
        self.scale = reward
        self.seeds = []

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.time = torch.zeros(self.num_envs, dtype=torch.int64)
        return {"policy": self.time[:, None].float()}

    def step(self, action):
        late = self.time == self.lengths
        self.time = torch.where(late, 0, self.time + 1)
        done = self.time == self.lengths
        now = {"policy": self.time[:, None].float()}
        if not self.dummy:
            self.time = torch.where(done, 0, self.time)
        return Step(
            obs={"policy": self.time[:, None].float()},
            next_obs=now,
            reward=torch.where(late, 1000.0, action[:, 0] * self.scale),
            terminated=done,
            truncated=torch.zeros_like(done),
            valid=~late,
            info={"success": self.lengths > 2, "tracking_error": self.lengths / 10},
        )


class Counter(nn.Module):
    """Acts with the number of steps that its memory has counted, plus noise where it is asked to draw."""

    def __init__(self, memory=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.counts = memory

    def act(self, obs, memory=None, *, deterministic=False, generator=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        time = obs["policy"][:, 0]
        if self.counts:
            time = torch.zeros(len(time)) if memory is None else memory["steps"]
        noise = 0.0 if deterministic else torch.rand(len(time), generator=generator)
        action = (self.dropout(time + 1.0) + noise)[:, None] * self.weight
        return PolicyStep(action, action, None, {"steps": time + 1} if self.counts else None)


def test_every_environment_gives_its_share_however_short_its_episodes():
    result = evaluate(Counter(False), Countdown([1, 2, 5]), episodes=7, seed=0)
    assert result.lengths.tolist() == [1, 2, 5, 1, 2, 5, 1]
    assert result.returns.tolist() == [1, 3, 15, 1, 3, 15, 1]
    assert result.successes.tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert result.terms["tracking_error"] == pytest.approx([0.1, 0.2, 0.5, 0.1, 0.2, 0.5, 0.1])


def test_an_episode_that_does_not_tell_its_success_did_not_succeed():
    """And a term that it does not tell is not known, rather than 0."""

    class Reserved(Countdown):
        def step(self, action):
            told = torch.where(self.lengths > 2, 1.0, torch.nan)
            late = {"height": told} if int(self.time[0]) == 2 else {}
            return dataclasses.replace(super().step(action), info={"success": told, **late})

    result = evaluate(Counter(False), Reserved([3, 2]), episodes=2, seed=0)
    assert result.successes.tolist() == [1, 0]
    np.testing.assert_array_equal(result.terms["height"], [1, np.nan])


def test_fewer_episodes_than_environments():
    assert evaluate(Counter(False), Countdown([4, 3, 1]), episodes=2, seed=0).lengths.tolist() == [4, 3]


@pytest.mark.parametrize("dummy", [False, True])
def test_memory_starts_anew_with_every_episode(dummy):
    """The action counts from 1 in every episode: 1 + 2 + 3 and 1 + 2; a dummy step is not counted and not paid."""
    result = evaluate(Counter(), Countdown([3, 2], dummy=dummy), episodes=6, seed=0)
    assert result.returns.tolist() == [6, 3, 6, 3, 6, 3]
    assert result.lengths.tolist() == [3, 2, 3, 2, 3, 2]


def test_seeds_are_its_own_and_the_same_seed_gives_the_same_result():
    env = Countdown([3])
    results = [evaluate(Counter(), env, episodes=5, seed=seed, deterministic=False).returns for seed in (1, 1, 2)]
    assert env.seeds == [evaluation_seed(1), evaluation_seed(1), evaluation_seed(2)]
    assert 1 not in env.seeds
    assert results[0].tolist() == results[1].tolist() != results[2].tolist()


def test_policy_and_global_random_state_are_left_as_they_were():
    policy = Counter()
    policy.train()
    policy.dropout.eval()  # frozen on purpose; must stay so
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    evaluate(policy, Countdown([3]), episodes=2, seed=0, deterministic=False)
    assert policy.training
    assert not policy.dropout.training
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    steps = rollout(policy, Countdown([3]), seed=0)
    next(steps)
    assert not policy.training
    steps.close()
    assert policy.training


def test_result_says_what_follows_from_the_episodes():
    result = EvaluationResult(
        returns=np.array([0.0, 10.0, 20.0, 90.0]),
        lengths=np.array([1, 2, 3, 4]),
        successes=np.array([1.0, 0.0, 1.0, 1.0]),
    )
    assert (result.mean, result.median, result.iqm) == (30.0, 15.0, 15.0)
    assert result.std == pytest.approx(35.35534)
    assert result.mean_length == 2.5
    assert result.success_rate == 0.75
    assert result.success_interval == pytest.approx((0.30064, 0.95441), abs=1e-5)
    assert 0 <= result.interval[0] < 30 < result.interval[1] <= 90
    assert result.interval == result.interval


def test_one_episode_has_no_interval():
    result = EvaluationResult(returns=np.array([5.0]), lengths=np.array([3]), successes=None)
    assert result.interval is None
    assert json.loads(json.dumps(result.to_dict()))["interval"] is None
    assert "95%" not in str(result)


def test_result_survives_json():
    result = evaluate(Counter(), Countdown([3, 2]), episodes=20, seed=3, deterministic=False)
    result.terms["gap"] = np.array([np.nan, *range(19)])
    tree = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    twin = EvaluationResult.from_dict(tree)
    for name in ("mean", "median", "iqm", "std", "mean_length", "success_rate"):
        assert tree[name] == getattr(result, name)
    assert tree["interval"] == list(result.interval) == list(twin.interval)
    assert tree["success_interval"] == list(result.success_interval)
    np.testing.assert_array_equal(twin.returns, result.returns)
    np.testing.assert_array_equal(twin.lengths, result.lengths)
    np.testing.assert_array_equal(twin.successes, result.successes)
    np.testing.assert_array_equal(twin.terms["gap"], result.terms["gap"])
    assert (twin.seed, twin.deterministic, str(twin)) == (3, False, str(result))


def test_result_reads_as_a_table():
    result = evaluate(Counter(False), Countdown([3, 2]), episodes=4, seed=3)
    result.terms["gap"] = np.array([1.0, np.nan, 2.0, 3.0])
    lines = [" ".join(line.split()) for line in str(result).splitlines()]
    assert lines[0] == "4 episodes, deterministic, seed 3"
    assert lines[1].startswith("return 4.50 95% [3.00, ")
    assert "std 1.50 min 3.00, max 6.00" in lines
    assert "success 50.0% 95% [15.0%, 85.0%]" in lines
    assert "tracking_error 0.25" in lines
    assert "gap 2" in lines  # of the episodes that told it


def test_episodes_that_never_end_are_reported():
    with pytest.raises(EnvError, match="environment 1 of Countdown-v0 ended 0 episodes in 10 steps where 1"):
        evaluate(Counter(), Countdown([3, 1000]), episodes=2, seed=0, longest_episode=10)
    assert evaluate(Counter(), Countdown([3]), episodes=5, seed=0, longest_episode=10).lengths.sum() == 15


def test_a_return_that_is_not_finite_is_reported():
    with pytest.raises(NonFiniteError, match="environment 0 of Countdown-v0 returned inf"):
        evaluate(Counter(), Countdown([3], reward=float("inf")), episodes=1, seed=0)


def test_a_policy_must_fit_the_environment():
    """Not a network deep inside says so, but what the policy was made for."""
    learnt = make_vec_env("CartPole-v1", 1).spec
    policy = ALGORITHMS["dqn"].make_policy(learnt, ALGORITHMS["dqn"].config(), torch.Generator())
    with pytest.raises(ConfigError, match=r"reads .*'policy' of shape \(4,\), and Acrobot-v1 has \(6,\)"):
        evaluate(policy, make_vec_env("Acrobot-v1", 1), episodes=1, seed=0)
    swing = dataclasses.replace(learnt, id="Swing-v0", action=DiscreteAction(3))
    with pytest.raises(ConfigError, match=r"gives choices among \(2,\), and Swing-v0 takes choices among \(3,\)"):
        require_fit(learnt, swing)
    hybrid = HybridAction(BoxAction(np.zeros(2), np.ones(2)), MultiDiscreteAction((3,)))
    with pytest.raises(ConfigError, match=r"gives 2 values and choices among \(3,\), and CartPole-v1 takes"):
        require_fit(dataclasses.replace(learnt, action=hybrid), learnt)
    with pytest.raises(ConfigError, match="has no such group"):
        require_fit(learnt, dataclasses.replace(learnt, obs={"camera": learnt.obs["policy"]}))
    require_fit(learnt, dataclasses.replace(learnt, id="Other-v0"))


def test_no_episodes_are_refused():
    with pytest.raises(ConfigError, match="at least one episode"):
        evaluate(Counter(), Countdown([3]), episodes=0, seed=0)
