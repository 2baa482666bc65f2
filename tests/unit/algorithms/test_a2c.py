"""A2C: one step by an independent formula, the two endings of an episode, and what its options do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.core.errors import ConfigError


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def successor_value(algorithm, batch, t, n):
    final = {(int(a), int(b)): k for k, (a, b) in enumerate(zip(*batch.final_index, strict=True))}
    if (t, n) in final:
        obs = {k: v[final[t, n]][None] for k, v in batch.final_obs.items()}
    else:
        obs = {k: v[t + 1, n][None] for k, v in batch.obs.items()}
    return float(algorithm.value(obs))


def advantages_by_loops(algorithm, batch):
    c, values = algorithm.config, algorithm.value(batch.obs)
    steps, envs = batch.rewards.shape
    advantages = torch.zeros(steps, envs)
    for n in range(envs):
        advantage = 0.0
        for t in reversed(range(steps)):
            target = float(batch.rewards[t, n])
            if not batch.terminated[t, n]:
                target += c.gamma * successor_value(algorithm, batch, t, n)
            delta = target - float(values[t, n])
            done = bool(batch.terminated[t, n] | batch.truncated[t, n])
            carried = 0.0 if done else c.gamma * c.gae_lambda * advantage
            advantage = delta + carried if batch.valid[t, n] else 0.0
            advantages[t, n] = advantage
    return advantages


@pytest.mark.parametrize("share_trunk", [False, True])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_one_step_by_an_independent_formula(lab, optimizer, share_trunk):
    env = lab.env(ends=0.3, invalid=0.15)
    rmsprop = optimizer == "rmsprop"
    options = {"ent_coef": 0.02, "vf_coef": 0.7, "max_grad_norm": 0.3, "gae_lambda": 0.8, "normalize_reward": False}
    options |= {"use_rms_prop": rmsprop, "share_trunk": share_trunk}
    a2c, twin = lab.a2c(env, **options), lab.a2c(env, **options)
    batch = lab.rollout(a2c, env, n_steps=5)
    assert bool(batch.terminated[batch.valid].any() & batch.truncated[batch.valid].any() & (~batch.valid).any())
    advantages, values = advantages_by_loops(twin, batch), twin.value(batch.obs)[:-1]
    valid, returns = batch.valid, advantages + values
    policy, critic = twin.policy, twin.state.critic
    obs = {"policy": batch.obs["policy"][:-1]}
    normal = policy.distribution(obs)
    spread = torch.distributions.Normal(normal.mean, normal.log_std.exp())
    log_prob, entropy = spread.log_prob(batch.actions).sum(-1)[valid], spread.entropy().sum(-1)[valid]
    new_values = critic(critic.encoder.normalize(obs))[valid]
    value_error = 0.5 * (new_values - returns[valid]).square().mean()
    loss = -(log_prob * advantages[valid]).mean() + 0.7 * value_error - 0.02 * entropy.mean()
    parameters = list(dict.fromkeys([*policy.parameters(), *critic.parameters()]))
    maker = torch.optim.RMSprop if rmsprop else torch.optim.Adam
    step = maker(parameters, lr=7e-4, eps=1e-5)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.3)
    step.step()
    metrics = a2c.update(batch)
    assert float(metrics["value_loss"]) == pytest.approx(float(value_error.detach()), rel=1e-4)
    torch.testing.assert_close(flat(a2c.policy), flat(policy), atol=2e-6, rtol=0)
    torch.testing.assert_close(flat(a2c.state.critic), flat(critic), atol=2e-6, rtol=0)
    assert a2c.gradient_steps == 1


def test_one_step_of_one_environment_is_the_one_step_error(lab):
    env = lab.env(num_envs=1, ends=0, invalid=0)
    a2c = lab.a2c(env, normalize_reward=False, gae_lambda=0.0, vf_coef=1.0)
    batch = lab.rollout(a2c, env, n_steps=1)
    values = a2c.value(batch.obs)
    error = float(batch.rewards[0, 0] + 0.99 * values[1, 0] - values[0, 0])
    assert float(a2c.update(batch)["value_loss"]) == pytest.approx(0.5 * error**2, rel=1e-5)


def test_invalid_steps_are_not_learnt_from(lab):
    env = lab.env(invalid=0.5)
    batch = lab.rollout(lab.a2c(env), env)
    poisoned = batch.actions.clone()
    poisoned[~batch.valid] = 1e3
    results = []
    for actions in (batch.actions, poisoned):
        a2c = lab.a2c(env, normalize_advantage=True)
        a2c.update(dataclasses.replace(batch, actions=actions))
        results.append(flat(a2c.policy))
    assert torch.equal(*results)


def test_a_rollout_without_valid_steps_changes_nothing(lab):
    env = lab.env(invalid=1.1)
    a2c = lab.a2c(env)
    before = flat(a2c.policy)
    metrics = a2c.update(lab.rollout(a2c, env, n_steps=1))
    assert torch.equal(flat(a2c.policy), before)
    assert all(bool(x.isfinite()) for x in metrics.values())


def test_standardised_advantages_do_not_know_the_scale_of_rewards(lab):
    """But for the value's part, which is left out here: rewards of ten times the size move the policy as far."""
    moved = []
    for scale in (1.0, 10.0):
        env = lab.env(invalid=0)
        a2c = lab.a2c(env, normalize_advantage=True, normalize_reward=False, vf_coef=0.0, max_grad_norm=1e9)
        for p in a2c.state.critic.head.parameters():
            p.data.zero_()
        batch = lab.rollout(a2c, env)
        before = flat(a2c.policy)
        a2c.update(dataclasses.replace(batch, rewards=batch.rewards * scale))
        moved.append(flat(a2c.policy) - before)
    torch.testing.assert_close(moved[0], moved[1], atol=1e-6, rtol=1e-3)


def test_one_step_is_not_standardised(lab):
    """Its advantage would be 0, and nothing learnt."""
    one, two = lab.env(num_envs=1), lab.env(num_envs=2)
    with pytest.raises(ConfigError, match="normalize_advantage needs two steps in a rollout and this has one"):
        lab.a2c(one, n_steps=1, normalize_advantage=True)
    for env, config in ((one, {"n_steps": 2}), (two, {"n_steps": 1}), (one, {"n_steps": 1})):
        lab.a2c(env, **config, normalize_advantage=env is two or config["n_steps"] > 1)
    for algorithm, num_envs in (("actor_critic", 1), ("a3c", 2)):  # of which each has a rollout of its own
        settings = {"num_envs": num_envs, "algo.n_steps": 1, "algo.normalize_advantage": True}
        with pytest.raises(ConfigError, match="normalize_advantage needs two steps in a rollout"):
            build_trainer(default_config(algorithm, "probe/Identity-v0", **settings))


def test_schedules(lab):
    a2c = lab.a2c(lab.env(), learning_rate=1e-2, learning_rate_schedule="linear", std_type="annealed", final_std=0.25)
    for progress, rate, std in [(0.0, 1e-2, 1.0), (0.5, 5e-3, 0.5), (1.0, 0.0, 0.25)]:
        a2c.set_progress(progress, 0)
        assert float(a2c.state.optimizer.learning_rate) == pytest.approx(rate)
        distribution = a2c.policy.distribution({"policy": torch.zeros(1, 3)})
        assert distribution.log_std.exp().tolist() == pytest.approx([std, std])


@pytest.mark.parametrize("action", ["box", "choice", "choices"])
def test_every_kind_of_action_is_learnt(lab, action):
    env = lab.env(lab.ASYMMETRIC, action)
    a2c = lab.a2c(env, ent_coef=0.01)
    before = flat(a2c.policy)
    for seed in range(3):
        metrics = a2c.update(lab.rollout(a2c, env, seed=seed))
    assert all(bool(x.isfinite()) for x in metrics.values())
    assert not torch.equal(flat(a2c.policy), before)
    assert ("std" in metrics) == (action == "box")
