"""PPO: the first ratio is 1, truncation bootstraps and termination does not, every option does what it says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import habilis.algorithms.ppo as module
from habilis.core import recording
from habilis.core.errors import ConfigError, HabilisError
from habilis.functional.policy_losses import ppo_clip
from habilis.nn.encoder import ImpalaStage
from habilis.policies.actor_critic import evaluate_rollout

STD_TYPES = ["independent", "dependent", "fixed", "annealed"]


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def prepare(ppo, batch):
    """What `update` does first."""
    c, s = ppo.config, ppo.state
    norm = s.reward_norm if c.normalize_reward else None
    return evaluate_rollout(batch, s.policy, s.critic, norm, c.gamma, c.gae_lambda)


@pytest.fixture
def ratios(monkeypatch):
    """The probability ratios of every minibatch, in order; nothing is recorded, so that each is seen."""
    monkeypatch.setattr(recording, "RECORD_AFTER", 10**9)
    seen: list[Tensor] = []

    def spy(log_prob, old_log_prob, *others):
        seen.append((log_prob - old_log_prob).detach().exp())
        return ppo_clip(log_prob, old_log_prob, *others)

    monkeypatch.setattr(module, "ppo_clip", spy)
    return seen


@pytest.mark.parametrize("share_trunk", [False, True])
@pytest.mark.parametrize(
    ("action", "std_type"), [*(("box", s) for s in STD_TYPES), ("choice", "independent"), ("choices", "independent")]
)
def test_the_first_ratio_of_every_update_is_one(lab, ratios, action, std_type, share_trunk):
    env = lab.env(lab.VECTOR if share_trunk else lab.ASYMMETRIC, action)
    ppo = lab.ppo(env, std_type=std_type, share_trunk=share_trunk, learning_rate=1e-2)
    first = []
    for iteration in range(4):
        ppo.set_progress(iteration / 4, 0)
        batch = lab.rollout(ppo, env, seed=iteration)
        start = len(ratios)
        ppo.update(batch)
        first.append(ratios[start])
    for ratio in first:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
    # the check can fail: later ratios moved, and the normaliser is far from where it began
    assert float((ratios[-1] - 1).abs().max()) > 1e-3
    assert float(ppo.policy.encoder.normalizers["policy"].mean.mean()) > 15


def test_advantages_and_returns_against_loops_with_every_kind_of_end(lab):
    env = lab.env(lab.ASYMMETRIC, ends=0.3, invalid=0.15)
    ppo = lab.ppo(env, normalize_reward=False, gamma=0.9, gae_lambda=0.8)
    for seed in range(2):
        ppo.update(lab.rollout(ppo, env, seed=seed))
    batch = lab.rollout(ppo, env, n_steps=30, seed=9)
    data, explained = prepare(ppo, batch)
    final = {(int(t), int(n)): k for k, (t, n) in enumerate(zip(*batch.final_index, strict=True))}
    truncated_and_valid = batch.truncated & batch.valid
    assert int(truncated_and_valid.sum()) > 3
    assert int((batch.terminated & batch.valid).sum()) > 3
    values = ppo.value(batch.obs)
    for n in range(4):
        advantage = 0.0
        for t in reversed(range(30)):
            if (t, n) in final:
                successor = {k: v[final[t, n]][None] for k, v in batch.final_obs.items()}
            else:
                successor = {k: v[t + 1, n][None] for k, v in batch.obs.items()}
            target = float(batch.rewards[t, n])
            if not batch.terminated[t, n]:
                target += 0.9 * float(ppo.value(successor))  # gamma * V(true successor), truncated or not
            done = bool(batch.terminated[t, n] | batch.truncated[t, n])
            delta = target - float(values[t, n])
            advantage = (delta + (0.0 if done else 0.9 * 0.8 * advantage)) if batch.valid[t, n] else 0.0
            row = t * 4 + n
            assert float(data["advantage"][row]) == pytest.approx(advantage, abs=1e-3)
            assert float(data["return"][row]) == pytest.approx(advantage + float(values[t, n]), abs=1e-3)
            assert float(data["value"][row]) == pytest.approx(float(values[t, n]), abs=1e-5)
    returns, told = (data[name][batch.valid.flatten()] for name in ("return", "value"))
    assert float(explained) == pytest.approx(float(1 - (returns - told).var() / returns.var()), abs=1e-3)


def test_invalid_steps_are_not_learnt_from(lab):
    env = lab.env(invalid=0.5)
    batch = lab.rollout(lab.ppo(env), env)
    poisoned = batch.actions.clone()
    poisoned[~batch.valid] = 1e3
    results = []
    for actions in (batch.actions, poisoned):
        ppo = lab.ppo(env)
        ppo.update(dataclasses.replace(batch, actions=actions))
        results.append(flat(ppo.policy))
    assert torch.equal(*results)


def test_a_rollout_without_valid_steps_is_refused(lab):
    env = lab.env(invalid=1.1)
    ppo = lab.ppo(env)
    with pytest.raises(HabilisError, match="two valid steps"):
        ppo.update(lab.rollout(ppo, env))


def test_one_gradient_step_by_an_independent_formula(lab):
    """The first step's loss, written anew without the library's losses, gives the parameters that `update` gives."""
    env = lab.env()
    options = {"batch_size": 1000, "n_epochs": 1, "ent_coef": 0.01, "vf_coef": 0.7, "max_grad_norm": 0.3}
    ppo, twin = lab.ppo(env, **options), lab.ppo(env, **options)
    batch = lab.rollout(ppo, env)
    data, _ = prepare(twin, batch)
    rows = batch.valid.flatten()
    advantages = data["advantage"][rows]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    obs = {"policy": batch.obs["policy"][:-1].flatten(0, 1)[rows]}
    normal = twin.policy.distribution(obs)
    spread = torch.distributions.Normal(normal.mean, normal.log_std.exp())
    ratio = (spread.log_prob(data["action"][rows]).sum(-1) - data["log_prob"][rows]).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    critic = twin.state.critic
    values = critic(critic.encoder.normalize(obs))
    value_error = 0.5 * (values - data["return"][rows]).square().mean()
    loss = -surrogate + 0.7 * value_error - 0.01 * spread.entropy().sum(-1).mean()
    parameters = [*twin.policy.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(parameters, lr=3e-4, eps=1e-5)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.3)
    adam.step()
    metrics = ppo.update(batch)
    assert float(metrics["value_loss"]) == pytest.approx(float(value_error.detach()), rel=1e-4)
    torch.testing.assert_close(flat(ppo.policy), flat(twin.policy), atol=2e-6, rtol=0)
    torch.testing.assert_close(flat(ppo.state.critic), flat(critic), atol=2e-6, rtol=0)


def test_value_clipping_reaches_the_loss(lab):
    env = lab.env()
    results = []
    for clip in (None, 1e-6, 1e6):
        ppo = lab.ppo(env, clip_range_vf=clip, learning_rate=1e-2, n_epochs=4)
        ppo.update(lab.rollout(ppo, lab.env()))
        results.append(flat(ppo.state.critic))
    torch.testing.assert_close(results[0], results[2], atol=1e-4, rtol=0)
    assert float((results[0] - results[1]).abs().max()) > 1e-2


def test_target_kl_stops_the_epochs(lab):
    env = lab.env(invalid=0)
    steps = []
    for target in (None, 1e-9, 1e9):
        ppo = lab.ppo(env, target_kl=target, n_epochs=5, learning_rate=1e-2)
        ppo.update(lab.rollout(ppo, lab.env(invalid=0)))
        steps.append(ppo.gradient_steps)
    assert steps == [40, 8, 40]  # 64 transitions in eights: one epoch is 8 steps


def test_adaptive_learning_rate(lab):
    env = lab.env()

    def rate(iterations=1, **config):
        ppo = lab.ppo(env, learning_rate_schedule="adaptive", learning_rate=1e-3, **config)
        for _ in range(iterations):
            told = float(ppo.update(lab.rollout(ppo, lab.env()))["learning_rate"])
        return told, float(ppo.state.optimizer.learning_rate)

    # one minibatch of an unmoved policy: the divergence is 0, below half of what is desired; the steps were by the rate
    assert rate(n_epochs=1, batch_size=1000) == pytest.approx((1e-3, 1.5e-3))
    assert rate(n_epochs=20, desired_kl=1e3) == pytest.approx((1e-3, 1.5e-3))  # once, however many minibatches
    assert rate(iterations=7, desired_kl=1e3)[1] == pytest.approx(1e-2)  # as high as it goes
    assert rate(iterations=14, desired_kl=1e-12)[1] == pytest.approx(1e-5)  # as low


@pytest.mark.parametrize("first", [1e-2, 1e-5])
def test_the_adaptive_rate_holds_the_divergence_of_an_iteration(lab, first):
    env, last = lab.env(invalid=0), []
    ppo = lab.ppo(env, learning_rate_schedule="adaptive", learning_rate=first, desired_kl=0.02, n_epochs=8)
    minibatch = ppo._minibatch

    def remembered(data):
        last.append(minibatch(data))
        return last[-1]

    ppo._minibatch = remembered
    held = []
    for _ in range(40):
        ppo.update(lab.rollout(ppo, env))
        held.append(float(torch.stack([x["approx_kl"] for x in last[-8:]]).mean()))  # 64 transitions in eights
    assert 0.01 < sum(held[-15:]) / 15 < 0.04


def test_schedules(lab):
    ppo = lab.ppo(
        lab.env(),
        learning_rate=1e-2,
        learning_rate_schedule="linear",
        clip_range_schedule="linear",
        std_type="annealed",
        init_std=1.0,
        final_std=0.25,
    )
    for progress, rate, clip, std in [(0.0, 1e-2, 0.2, 1.0), (0.5, 5e-3, 0.1, 0.5), (1.0, 0.0, 0.0, 0.25)]:
        ppo.set_progress(progress, 0)
        assert float(ppo.state.optimizer.learning_rate) == pytest.approx(rate)
        assert float(ppo.state.clip_range) == pytest.approx(clip)
        distribution = ppo.policy.distribution({"policy": torch.zeros(1, 3)})
        assert distribution.log_std.exp().tolist() == pytest.approx([std, std])


@pytest.mark.parametrize("std_type", STD_TYPES)
def test_which_deviations_are_learnt(lab, std_type):
    env = lab.env()
    ppo = lab.ppo(env, std_type=std_type, learning_rate=1e-2, init_std=0.7)
    obs = {"policy": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 5 + 20}
    ppo.update(lab.rollout(ppo, env))
    metrics = ppo.update(lab.rollout(ppo, env))
    std = ppo.policy.distribution(obs).log_std.detach().exp().expand(5, 2)
    learnt = std_type in ("independent", "dependent")
    assert bool((std - 0.7).abs().max() > 1e-4) == learnt
    assert bool((std[0] - std[1]).abs().max() > 1e-6) == (std_type == "dependent")
    assert (abs(float(metrics["std"]) - 0.7) > 1e-5) == learnt


def test_entropy_bonus_widens(lab):
    env = lab.env()
    stds = []
    for coefficient in (0.0, 10.0):
        ppo = lab.ppo(env, ent_coef=coefficient, learning_rate=1e-2)
        stds.append(float(ppo.update(lab.rollout(ppo, lab.env()))["std"]))
    assert stds[1] > stds[0]


def test_asymmetric_critic_reads_its_own_group_and_the_policy_does_not(lab):
    env = lab.env(lab.ASYMMETRIC)
    ppo = lab.ppo(env)
    ppo.update(lab.rollout(ppo, env))  # normalised, the units are not saturated
    one, other = env.observe(), env.observe()
    by_policy, by_critic = one | {"policy": other["policy"]}, one | {"critic": other["critic"]}
    assert torch.equal(ppo.value(one), ppo.value(by_policy))
    assert not torch.equal(ppo.value(one), ppo.value(by_critic))
    assert torch.equal(ppo.policy(one)[0], ppo.policy(by_critic)[0])
    assert not torch.equal(ppo.policy(one)[0], ppo.policy(by_policy)[0])
    before = flat(ppo.state.critic)
    ppo.update(lab.rollout(ppo, env))
    assert not torch.equal(flat(ppo.state.critic), before)
    assert float(ppo.state.critic.encoder.normalizers["critic"].count) > 0
    sized = lab.ppo(env, hidden=(8,), critic_hidden=(16, 12))
    assert (sized.policy.trunk.out_dim, sized.state.critic.trunk.out_dim) == (8, 12)


def test_shared_trunk_is_one_trunk(lab):
    env = lab.env()
    ppo = lab.ppo(env, share_trunk=True)
    critic = ppo.state.critic
    assert critic.trunk is ppo.policy.trunk
    count = sum(p.numel() for p in ppo.policy.parameters()) + sum(p.numel() for p in critic.head.parameters())
    assert len(ppo.state.optimizer.flat) == count
    batch = lab.rollout(ppo, env)
    ppo.update(batch)
    assert float(ppo.policy.encoder.normalizers["policy"].count) == int(batch.valid.sum())  # once, not twice
    # the value loss alone moves the trunk
    trunk = flat(ppo.policy.trunk)
    alone = lab.ppo(env, share_trunk=True, normalize_advantage=False)
    batch = lab.rollout(alone, env)
    alone.update(dataclasses.replace(batch, log_probs=torch.full_like(batch.log_probs, 50.0)))  # ratio 0
    assert not torch.equal(flat(alone.policy.trunk), trunk)


@pytest.mark.parametrize("share_trunk", [False, True])
def test_images(lab, share_trunk):
    env = lab.env(lab.IMAGES, "choice")
    ppo = lab.ppo(env, share_trunk=share_trunk, batch_size=32, n_epochs=1)
    convolutions = ppo.policy.encoder.images["policy"].convolutions
    before = flat(convolutions)
    batch = lab.rollout(ppo, env, n_steps=8)
    assert batch.obs["policy"].dtype == torch.uint8
    metrics = ppo.update(batch)
    assert all(bool(v.isfinite()) for v in metrics.values())
    assert not torch.equal(flat(convolutions), before)


def test_image_policy_with_a_vector_critic(lab):
    env = lab.env({"policy": lab.IMAGES["policy"], "critic": lab.VECTOR["policy"]})
    ppo = lab.ppo(env, batch_size=32, n_epochs=1)
    assert ppo.state.critic.encoder.names == ("critic",)
    assert math.isfinite(float(ppo.update(lab.rollout(ppo, env, n_steps=8))["value_loss"]))


def test_a_shared_trunk_reads_nothing_that_the_policy_may_not(lab):
    with pytest.raises(ConfigError, match="and not critic: leave it out"):
        lab.ppo(lab.env(lab.ASYMMETRIC), share_trunk=True)


@pytest.mark.parametrize("make", ["ppo", "a2c", "trpo", "reinforce"])
def test_the_network_for_images_is_a_choice(lab, make):
    algorithm = getattr(lab, make)(lab.env(lab.IMAGES), image_encoder="impala")
    for encoder in (algorithm.policy.encoder, algorithm.state.critic.encoder):
        assert isinstance(encoder.images["policy"].convolutions[0], ImpalaStage)


def test_reward_scale_is_that_of_the_return(lab):
    env = lab.env()
    ppo = lab.ppo(env)
    batch = lab.rollout(ppo, env)
    data, _ = prepare(ppo, batch)
    norm = ppo.state.reward_norm
    twin = lab.ppo(env, normalize_reward=False)
    scaled = dataclasses.replace(batch, rewards=norm(batch.rewards))
    expected, _ = prepare(twin, scaled)
    torch.testing.assert_close(data["return"], expected["return"])
    assert float(norm.returns.count) == int(batch.valid.sum())


def test_the_value_of_endless_reward_is_learnt_through_truncations(lab):
    """Reward 1 at every step, always truncated, never terminated: V = 1 / (1 - gamma) = 5, at the last step too."""
    env = lab.env(ends=0.5, invalid=0)

    def step(env_action, inner=env.step):
        s = inner(env_action)
        ones = torch.ones(4)
        return dataclasses.replace(s, reward=ones, truncated=s.done, terminated=torch.zeros_like(s.done))

    env.step = step
    ppo = lab.ppo(env, gamma=0.8, normalize_reward=False, learning_rate=1e-2, n_epochs=5, batch_size=32)
    for seed in range(25):
        ppo.update(lab.rollout(ppo, env, seed=seed))
    assert ppo.value(env.obs).tolist() == pytest.approx([5.0] * 4, abs=0.4)
