"""REINFORCE: returns by loops, its step by an independent formula, truncated episodes with a baseline and without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from habilis.core.errors import HabilisError
from habilis.data.whole_episodes import EpisodeBuffer


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def episodes(algorithm, env, count=6, seed=0):
    """Whole episodes of the toy environment; like the trainer, one that is done with waits."""
    buffer, g = EpisodeBuffer(env.spec, count, env.num_envs), torch.Generator().manual_seed(seed)
    buffer.start(env.obs)
    while not buffer.full:
        policy_step = algorithm.policy.act(env.obs, generator=g)
        step = env.step(policy_step.env_action)
        buffer.add(policy_step, dataclasses.replace(step, valid=step.valid & buffer.wanted))
    return buffer.batch()


def returns_by_loops(algorithm, batch, gamma, baseline):
    """`{(t, n): return}` of the steps that count: a truncated episode's end is worth its value, or it is left out."""
    found, final = {}, {(int(a), int(b)): k for k, (a, b) in enumerate(zip(*batch.final_index, strict=True))}
    for n in range(batch.rewards.shape[1]):
        following, counts = 0.0, False
        for t in reversed(range(len(batch.rewards))):
            if not batch.valid[t, n]:
                assert not baseline, "the toy has no such steps here"
                following, counts = 0.0, False
                continue
            if batch.terminated[t, n]:
                following, counts = 0.0, True
            elif batch.truncated[t, n]:
                obs = {k: v[final[t, n]][None] for k, v in batch.final_obs.items()}
                following, counts = float(algorithm.value(obs)) if baseline else 0.0, baseline
            following = float(batch.rewards[t, n]) + gamma * following
            if counts:
                found[t, n] = following
    return found


@pytest.mark.parametrize("baseline", [True, False])
def test_one_step_on_the_policy_by_an_independent_formula(lab, baseline):
    env = lab.env(num_envs=1, ends=0.3, invalid=0)
    options = {"baseline": baseline, "gamma": 0.9, "ent_coef": 0.02, "max_grad_norm": 0.3, "normalize_reward": False}
    reinforce, twin = lab.reinforce(env, **options), lab.reinforce(env, **options)
    batch = episodes(reinforce, env, 8)
    assert bool(batch.terminated.any() & batch.truncated.any())
    returns = returns_by_loops(twin, batch, 0.9, baseline)
    rows = sorted(returns)
    t, n = (torch.tensor(x) for x in zip(*rows, strict=True))
    obs = {"policy": batch.obs["policy"][t, n]}
    advantages = torch.tensor([returns[row] for row in rows])
    if baseline:
        assert len(rows) == int(batch.valid.sum())
        advantages -= twin.value(obs)
    else:
        assert len(rows) < int(batch.valid.sum())
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    normal = twin.policy.distribution(obs)
    spread = torch.distributions.Normal(normal.mean, normal.log_std.exp())
    log_prob = spread.log_prob(batch.actions[t, n]).sum(-1)
    loss = -(log_prob * advantages).mean() - 0.02 * spread.entropy().sum(-1).mean()
    adam = torch.optim.Adam(twin.policy.parameters(), lr=1e-2)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(twin.policy.parameters(), 0.3)
    adam.step()
    metrics = reinforce.update(batch)
    torch.testing.assert_close(flat(reinforce.policy), flat(twin.policy), atol=2e-5, rtol=0)
    assert float(metrics["episodes"]) == 8
    assert float(metrics["truncated_episodes"]) == int(batch.truncated.sum())
    assert float(metrics["idle_steps"]) == 0
    assert ("value_loss" in metrics) == baseline


def test_the_baseline_comes_to_expect_the_returns(lab):
    env = lab.env(ends=0.3, invalid=0)
    reinforce = lab.reinforce(env, n_critic_updates=20, normalize_reward=False, gamma=0.5)
    batch = episodes(reinforce, env, 12)
    batch = dataclasses.replace(batch, rewards=torch.ones_like(batch.rewards))
    losses = [float(reinforce.update(batch)["value_loss"]) for _ in range(5)]
    assert losses[-1] < 0.3 * losses[0]


def test_an_update_that_has_nothing_to_learn_from(lab):
    env = lab.env(ends=0.3, invalid=0)
    reinforce = lab.reinforce(env, baseline=False)
    batch = episodes(reinforce, env)
    done = batch.terminated | batch.truncated
    endless = dataclasses.replace(batch, terminated=torch.zeros_like(done), truncated=done)
    with pytest.raises(HabilisError, match="every episode of the first update was truncated"):
        reinforce.update(endless)
    alone = lab.reinforce(env)
    only = dataclasses.replace(batch, valid=torch.zeros_like(batch.valid).index_fill_(0, torch.tensor(0), True))
    only.valid[:, 1:] = False
    with pytest.raises(HabilisError, match="the first update had one step"):
        alone.update(only)
    # later on, all that succeed may be truncated: it learns nothing from them, and stays as it is
    reinforce.update(dataclasses.replace(batch, terminated=done, truncated=torch.zeros_like(done)))
    before = flat(reinforce.policy)
    metrics = reinforce.update(endless)
    assert torch.equal(flat(reinforce.policy), before)
    assert float(metrics["truncated_episodes"]) == float(metrics["episodes"]) == 6
    # with a baseline they are learnt from
    assert "policy_loss" in lab.reinforce(env).update(endless)


def test_waiting_environments_are_not_learnt_from(lab):
    env = lab.env(ends=0.3, invalid=0)
    reinforce = lab.reinforce(env)
    batch = episodes(reinforce, env, 5)
    assert bool((~batch.valid).any())
    poisoned = dataclasses.replace(
        batch,
        actions=torch.where(batch.valid.unsqueeze(-1), batch.actions, 1e3),
        rewards=torch.where(batch.valid, batch.rewards, 1e3),
    )
    results = []
    for each in (batch, poisoned):
        twin = lab.reinforce(env)
        metrics = twin.update(each)
        results.append(torch.cat([flat(twin.policy), flat(twin.state.critic)]))
    assert torch.equal(*results)
    assert float(metrics["idle_steps"]) == pytest.approx(1 - float(batch.valid.float().mean()))


def test_schedules(lab):
    reinforce = lab.reinforce(lab.env(), learning_rate_schedule="linear", critic_learning_rate=4e-3)
    reinforce.set_progress(0.25, 0)
    s = reinforce.state
    assert float(s.policy_optimizer.learning_rate) == pytest.approx(7.5e-3)
    assert float(s.critic_optimizer.learning_rate) == pytest.approx(3e-3)
