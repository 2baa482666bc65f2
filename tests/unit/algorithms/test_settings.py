"""What is set reaches what it sets: statistics, scales, penalties, schedules and thresholds, in every algorithm."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import habilis.algorithms.ppo as ppo_module
from habilis.core import recording
from habilis.functional.policy_losses import ppo_clip
from habilis.nn.memory import MemoryConfig
from habilis.nn.normalizer import RewardNorm
from habilis.policies.smoothness import SmoothnessConfig

ON_POLICY = ("ppo", "a2c", "trpo", "reinforce")
TEMPORAL = SmoothnessConfig(temporal=1e3)


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def rollout(lab, name, env, **kwargs):
    """A rollout of a fresh agent, with steps that are not valid."""
    batch = lab.rollout(getattr(lab, name)(env), env, **kwargs)
    assert bool((~batch.valid).any())
    return batch


@pytest.mark.parametrize("name", ON_POLICY)
def test_normalisers_take_in_the_observations_acted_on_where_steps_are_valid(lab, name):
    env = lab.env(lab.ASYMMETRIC, invalid=0.3)
    batch, algorithm = rollout(lab, name, env), getattr(lab, name)(env, normalize_obs=True)
    algorithm.update(batch)
    for encoder, group in ((algorithm.policy.encoder, "policy"), (algorithm.state.critic.encoder, "critic")):
        seen = batch.obs[group][:-1][batch.valid].double()
        statistics = encoder.normalizers[group]
        assert float(statistics.count) == len(seen)
        torch.testing.assert_close(statistics.mean, seen.mean(0))
        torch.testing.assert_close(statistics.var, seen.var(0, correction=0))


@pytest.mark.parametrize(("name", "baseline"), [*((name, True) for name in ON_POLICY), ("reinforce", False)])
def test_normalised_rewards_are_divided_by_the_deviation_of_their_discounted_returns(lab, name, baseline):
    env, config = lab.env(), {} if baseline else {"baseline": False}
    batch = rollout(lab, name, env)
    one, twin = (
        getattr(lab, name)(env, gamma=0.8, normalize_reward=normalized, **config) for normalized in (True, False)
    )
    scaled = RewardNorm(env.num_envs, 0.8).learn(batch)
    assert not torch.equal(scaled, batch.rewards)
    one.update(batch)
    twin.update(dataclasses.replace(batch, rewards=scaled))
    assert torch.equal(flat(one.policy), flat(twin.policy))
    if baseline:
        assert torch.equal(flat(one.state.critic), flat(twin.state.critic))


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3"])
def test_a_large_penalty_brings_the_actions_of_successive_observations_together(lab, name):
    env = lab.env(ends=0, invalid=0)
    algorithm = getattr(lab, name)(env, smoothness=TEMPORAL, learning_rate=1e-3, normalize_obs=True)
    with torch.no_grad():  # away from the tiny first actions
        for p in algorithm.policy.head.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    if name in ON_POLICY:
        batches = itertools.repeat(lab.rollout(algorithm, env))
    else:
        replay = lab.replay(algorithm, env)
        batches = iter(lambda: replay.sample(32), None)

    def distance():
        obs = [env.observe() for _ in range(2)]
        one, other = (algorithm.policy.act(o, deterministic=True).action for o in obs)
        return float((one - other).square().mean())

    def mean_distance():
        env.g.manual_seed(7)
        return sum(distance() for _ in range(20))

    algorithm.update(next(batches))  # observations are normalised from here on
    assert float(algorithm.update(next(batches))["smoothness_loss"]) > 0  # TD3's policy learns in every second update
    other = getattr(lab, name)(env)
    assert all("smoothness_loss" not in other.update(next(batches)) for _ in range(2))
    before = mean_distance()
    for _, batch in zip(range(60), batches, strict=False):
        algorithm.update(batch)
    assert mean_distance() < 0.5 * before


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_the_penalty_leaves_out_steps_that_are_not_valid(lab, name):
    """An action after an observation that nothing else reads: the last one of an episode whose last step is invalid."""
    env = lab.env(ends=0.4, invalid=0.4)
    batch = rollout(lab, name, env)
    wrong = ~batch.valid[batch.final_index]
    assert bool(wrong.any() & (~wrong).any())
    results = []
    for rows in (torch.zeros_like(wrong), wrong, ~wrong):
        final = torch.where(rows.unsqueeze(-1), 1e2, batch.final_obs["policy"])
        algorithm = getattr(lab, name)(env, smoothness=TEMPORAL, gamma=1e-9)
        algorithm.update(dataclasses.replace(batch, final_obs={"policy": final}))
        results.append(flat(algorithm.policy))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_ppo_clips_at_the_range_of_the_moment(lab, monkeypatch):
    monkeypatch.setattr(recording, "RECORD_AFTER", 10**9)
    ranges = []

    def spy(log_prob, old_log_prob, advantages, clip_range, weight):
        ranges.append(float(clip_range))
        return ppo_clip(log_prob, old_log_prob, advantages, clip_range, weight)

    monkeypatch.setattr(ppo_module, "ppo_clip", spy)
    env = lab.env()
    ppo = lab.ppo(env, clip_range=0.2, clip_range_schedule="linear")
    for progress in (0.0, 0.5):
        ppo.set_progress(progress, 0)
        ppo.update(lab.rollout(ppo, env))
    assert ranges[0] == pytest.approx(0.2)
    assert ranges[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("share", "epochs"), [(1.4, 5), (1.6, 1)])
def test_ppo_stops_at_one_and_a_half_times_the_divergence_it_aims_at(lab, share, epochs):
    env = lab.env(invalid=0)
    ppo = lab.ppo(env, target_kl=0.02, n_epochs=5)
    minibatch = ppo._minibatch
    ppo._minibatch = lambda data: minibatch(data) | {"approx_kl": torch.tensor(share * 0.02)}
    ppo.update(lab.rollout(ppo, env))
    assert ppo.gradient_steps == 8 * epochs  # 64 transitions in eights


@pytest.mark.parametrize(("share", "factor"), [(0.4, 1.5), (0.6, 1.0), (1.9, 1.0), (2.1, 1 / 1.5)])
def test_ppo_adapts_its_rate_outside_half_and_twice_the_divergence(lab, share, factor):
    ppo = lab.ppo(lab.env(), learning_rate_schedule="adaptive", learning_rate=1e-3, desired_kl=0.01)
    ppo._adapt_learning_rate(torch.tensor(share * 0.01))
    assert float(ppo.state.optimizer.learning_rate) == pytest.approx(factor * 1e-3)


def test_trpo_has_schedules(lab):
    trpo = lab.trpo(lab.env(), learning_rate=4e-3, learning_rate_schedule="linear", std_type="annealed", final_std=0.25)
    trpo.set_progress(0.5, 0)
    assert float(trpo.state.critic_optimizer.learning_rate) == pytest.approx(2e-3)
    distribution = trpo.policy.distribution({"policy": torch.zeros(1, 3)})
    assert distribution.log_std.exp().tolist() == pytest.approx([0.5, 0.5])


def test_reinforce_anneals_its_deviation(lab):
    reinforce = lab.reinforce(lab.env(), std_type="annealed", final_std=0.25)
    reinforce.set_progress(0.5, 0)
    distribution = reinforce.policy.distribution({"policy": torch.zeros(1, 3)})
    assert distribution.log_std.exp().tolist() == pytest.approx([0.5, 0.5])


def test_every_optimiser_of_discrete_sac_has_its_rate_and_schedule(lab):
    config = {"learning_rate": 1e-3, "critic_learning_rate": 4e-3, "learning_rate_schedule": "linear"}
    sac = lab.discrete_sac(lab.env(action="choice"), **config)
    s = sac.state
    for progress in (0.0, 0.25):
        sac.set_progress(progress, 0)
        for optimizer, rate in ((s.policy_optimizer, 1e-3), (s.critic_optimizer, 4e-3), (s.alpha_optimizer, 1e-3)):
            assert float(optimizer.learning_rate) == pytest.approx(rate * (1 - progress))


def test_sac_gives_every_optimiser_its_first_moment(lab):
    s = lab.sac(lab.env(), adam_beta1=0.5).state
    assert [o.beta1 for o in (s.policy_optimizer, s.critic_optimizer, s.alpha_optimizer)] == [0.5, 0.5, 0.5]


def test_the_targets_of_discrete_sac_see_what_its_critics_see(lab):
    env = lab.env(lab.ASYMMETRIC, "choice")
    sac = lab.discrete_sac(env, normalize_obs=True)
    sac.update_normalizers(env.observe(), torch.ones(env.num_envs, dtype=torch.bool))
    critics, targets = sac.state.critics.encoder, sac.state.target_critics.encoder
    assert float(critics.normalizers["critic"].count) == env.num_envs
    for one, two in zip(critics.buffers(), targets.buffers(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_value_that_is_asked_for_knows_no_episode_under_way(lab, name):
    env = lab.env()
    algorithm = getattr(lab, name)(env, memory=MemoryConfig(kind="gru", size=8, window=4))
    fresh = algorithm.value(env.obs)
    algorithm.state.critic.memory.fill_(1.0)
    assert torch.equal(algorithm.value(env.obs), fresh)
