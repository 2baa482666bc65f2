"""PPO and A2C with memory: their gradient is that of steps taken one after the other, episode by episode."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import habilis.algorithms.ppo as ppo_module
from habilis.core import recording
from habilis.core.errors import ConfigError
from habilis.core.tree import zero_rows
from habilis.data.rollout import RolloutBuffer
from habilis.functional.policy_losses import ppo_clip
from habilis.nn.memory import MemoryConfig
from habilis.policies.actor_critic import evaluate_rollout

KINDS = ("gru", "lstm", "transformer")
W = 4


def remember(kind):
    return MemoryConfig(kind=kind, size=8, window=W, heads=2)


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


class Player:
    """Makes one rollout after another, remembering from each to the next."""

    def __init__(self, env, seed=0):
        self.env, self.memory, self.g = env, None, torch.Generator().manual_seed(seed)

    def rollout(self, algorithm, n_steps=16):
        buffer = RolloutBuffer(n_steps)
        buffer.start(self.env.obs, self.memory)
        for _ in range(n_steps):
            acted = algorithm.policy.act(self.env.obs, self.memory, generator=self.g)
            step = self.env.step(acted.env_action)
            self.memory = zero_rows(acted.memory, step.done | ~step.valid)
            buffer.add(acted, step)
        return buffer.batch()


def follow(network, batch, before, parts):
    """Return what a network makes of every step [T + 1, N] and of final ones, one step of one environment at a time.

    `parts` are the steps at which gradients end.
    """
    final = {(int(t), int(n)): k for k, (t, n) in enumerate(zip(*batch.final_index, strict=True))}
    steps, envs = batch.rewards.shape
    features = [[None] * envs for _ in range(steps + 1)]
    of_final = [None] * len(final)
    for n in range(envs):
        memory = before[n : n + 1]
        for t in range(steps + 1):
            if t in parts:
                memory = memory.detach()
            x, memory = network.encoder.step({k: v[t, n][None] for k, v in batch.obs.items()}, memory)
            features[t][n] = network.trunk(x)[0]
            if (t, n) in final:
                k = final[t, n]
                x, _ = network.encoder.step({key: v[k][None] for key, v in batch.final_obs.items()}, memory)
                of_final[k] = network.trunk(x)[0]
            if t < steps and (batch.terminated[t, n] or batch.truncated[t, n] or not batch.valid[t, n]):
                memory = torch.zeros_like(memory)
    return torch.stack([torch.stack(row) for row in features]), of_final, final


def advantages_by_loops(critic, batch, features, of_final, final, gamma, gae_lambda):
    values = critic.from_features(features).detach()
    advantages = torch.zeros(batch.rewards.shape)
    for n in range(values.shape[1]):
        advantage = 0.0
        for t in reversed(range(len(advantages))):
            target = float(batch.rewards[t, n])
            if not batch.terminated[t, n]:
                then = critic.from_features(of_final[final[t, n]]) if (t, n) in final else values[t + 1, n]
                target += gamma * float(then.detach())
            done = bool(batch.terminated[t, n] | batch.truncated[t, n])
            carried = 0.0 if done else gamma * gae_lambda * advantage
            advantage = target - float(values[t, n]) + carried if batch.valid[t, n] else 0.0
            advantages[t, n] = advantage
    return advantages, values[:-1]


def prepared(lab, make, kind, group, **options):
    """Return an algorithm and its twin after the same two rollouts, and a third one that both can learn from."""
    env = lab.env(lab.ASYMMETRIC if group == "critic" else lab.VECTOR, ends=0.15, invalid=0.05)
    algorithm, twin = (getattr(lab, make)(env, memory=remember(kind), normalize_reward=False, **options) for _ in "ab")
    player = Player(env)
    for _ in range(2):
        batch = player.rollout(algorithm)
        algorithm.update(batch)
        twin.update(batch)
    with torch.no_grad():  # values that tell memories apart
        for each in (algorithm, twin):
            each.state.critic.head.weight.mul_(20)
    batch = player.rollout(algorithm)
    batch = dataclasses.replace(batch, rewards=batch.rewards - batch.rewards.mean())
    assert bool((batch.terminated & batch.valid).any() & (batch.truncated & batch.valid).any() & (~batch.valid).any())
    assert batch.memory["network"].any(1).sum() >= 2  # episodes go on from the rollout before
    return algorithm, twin, batch


@pytest.mark.parametrize("share_trunk", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ["ppo", "a2c"])
def test_one_gradient_step_against_steps_in_turn(lab, monkeypatch, make, kind, share_trunk):
    of_ppo = {"batch_size": 1000, "n_epochs": 1} if make == "ppo" else {}
    options = {"ent_coef": 0.02, "vf_coef": 0.7, "gae_lambda": 0.8, "gamma": 0.9, "normalize_advantage": True}
    options |= of_ppo | {"share_trunk": share_trunk, "max_grad_norm": 1e9, "learning_rate": 1e-2}
    options["std_type"] = "dependent"  # entropies that differ from row to row
    algorithm, twin, batch = prepared(lab, make, kind, "policy" if share_trunk else "critic", **options)
    policy, critic, parts = twin.policy, twin.state.critic, range(0, 17, W)
    features, of_final, final = follow(policy, batch, batch.memory["network"], parts)
    of_critic = features
    if not share_trunk:
        of_critic, of_final, final = follow(critic, batch, critic.memory.clone(), parts)
    advantages, old = advantages_by_loops(critic, batch, of_critic, of_final, final, 0.9, 0.8)
    valid = batch.valid
    returns, advantages = (advantages + old)[valid], advantages[valid]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    normal = policy.head(features[:-1])
    spread = torch.distributions.Normal(normal.mean, normal.log_std.exp().expand_as(normal.mean))
    log_prob = spread.log_prob(batch.actions).sum(-1)[valid]
    if make == "ppo":
        ratio = (log_prob - batch.log_probs[valid]).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
        gain = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    else:
        gain = (log_prob * advantages).mean()
    value_error = 0.5 * (critic.from_features(of_critic[:-1])[valid] - returns).square().mean()
    loss = -gain + 0.7 * value_error - 0.02 * spread.entropy().sum(-1)[valid].mean()
    parameters = list(dict.fromkeys([*policy.parameters(), *critic.parameters()]))
    expected = torch.autograd.grad(loss, parameters)
    taken = []
    monkeypatch.setattr(algorithm.state.optimizer, "step", lambda gradient, norm: taken.append(gradient))
    metrics = algorithm.update(batch)
    assert float(metrics["value_loss"]) == pytest.approx(float(value_error.detach()), rel=1e-3)
    torch.testing.assert_close(taken, [torch.cat([g.flatten() for g in expected])], atol=1e-5, rtol=1e-3)
    assert (taken[0] != 0).float().mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_of_every_update_is_one(lab, monkeypatch, kind):
    monkeypatch.setattr(recording, "RECORD_AFTER", 10**9)
    seen = []

    def spy(log_prob, old_log_prob, advantages, clip_range, weight):
        seen.append((log_prob - old_log_prob).detach().exp()[weight > 0])
        return ppo_clip(log_prob, old_log_prob, advantages, clip_range, weight)

    monkeypatch.setattr(ppo_module, "ppo_clip", spy)
    env = lab.env(lab.ASYMMETRIC)
    ppo, player, first = lab.ppo(env, memory=remember(kind), learning_rate=1e-2), Player(env), []
    for _ in range(4):
        batch, start = player.rollout(ppo), len(seen)
        ppo.update(batch)
        first.append(seen[start])
    for ratio in first:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
    assert float((seen[-1] - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("make", ["ppo", "a2c"])
def test_invalid_steps_are_not_learnt_from(lab, make):
    env = lab.env(invalid=0.5)
    batch = Player(env).rollout(getattr(lab, make)(env, memory=remember("gru")))
    results = []
    for poison in (0.0, 1e3):
        algorithm = getattr(lab, make)(env, memory=remember("gru"), normalize_advantage=True)
        actions = torch.where(batch.valid.unsqueeze(-1), batch.actions, poison)
        rewards = torch.where(batch.valid, batch.rewards, poison)
        algorithm.update(dataclasses.replace(batch, actions=actions, rewards=rewards))
        results.append(flat(algorithm.policy))
    assert torch.equal(*results)


def test_chunks_hold_the_rollout(lab):
    env = lab.env(lab.ASYMMETRIC)
    ppo = lab.ppo(env, memory=remember("gru"), normalize_reward=False)
    batch = Player(env).rollout(ppo)
    s = ppo.state
    chunks, _ = evaluate_rollout(batch, s.policy, s.critic, None, 0.9, 0.8, W)
    assert chunks["action"].shape == (16, W, 2)
    for k in range(4):
        for n in range(4):
            chunk, part = k * 4 + n, slice(k * W, (k + 1) * W)
            assert torch.equal(chunks["action"][chunk], batch.actions[part, n])
            assert torch.equal(chunks["valid"][chunk], batch.valid[part, n])
            ended = (batch.terminated | batch.truncated | ~batch.valid)[:, n]
            start = [bool(ended[t - 1]) if t > 0 else False for t in range(k * W, (k + 1) * W)]
            assert chunks["start"][chunk].tolist() == start
    assert not chunks["policy_memory"][:4].any()
    assert not chunks["critic_memory"][:4].any()


def test_the_critic_remembers_what_goes_on_and_forgets_what_has_ended(lab):
    env = lab.env(lab.ASYMMETRIC, ends=0.3, invalid=0.1)
    ppo = lab.ppo(env, memory=remember("gru"))
    player, ends = Player(env), []
    for _ in range(4):
        batch, critic = player.rollout(ppo), ppo.state.critic
        memory = critic.memory.clone()
        for t in range(16):
            _, memory = critic.encoder.step({name: x[t] for name, x in batch.obs.items()}, memory)
            memory = torch.where(batch.start[t + 1].unsqueeze(-1), 0.0, memory)
        ppo.update(batch)
        torch.testing.assert_close(critic.memory, memory)
        ends += batch.start[-1].tolist()
    assert 0 < sum(ends) < len(ends)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ["ppo", "a2c"])
def test_a_rollout_may_hold_no_end_of_an_episode(lab, make, kind):
    env = lab.env(ends=0, invalid=0)
    algorithm = getattr(lab, make)(env, memory=remember(kind))
    before = flat(algorithm.policy)
    metrics = algorithm.update(Player(env).rollout(algorithm))
    assert all(bool(value.isfinite()) for value in metrics.values())
    assert not torch.equal(flat(algorithm.policy), before)


def test_fresh_episodes_are_not_mistaken_for_those_before(lab):
    env = lab.env(ends=0, invalid=0)
    ppo = lab.ppo(env, memory=remember("gru"))
    player = Player(env)
    ppo.update(player.rollout(ppo))
    assert ppo.state.critic.memory.any(1).all()
    player.memory = None
    batch, memories = player.rollout(ppo), []
    for memory in (ppo.state.critic.memory, torch.zeros_like(ppo.state.critic.memory)):
        ppo.state.critic.memory.copy_(memory)
        s = ppo.state
        memories.append(evaluate_rollout(batch, s.policy, s.critic, None, 0.9, 0.8, W)[0]["critic_memory"])
    assert torch.equal(*memories)


def test_images_are_remembered(lab):
    env = lab.env(lab.IMAGES, "choice")
    ppo = lab.ppo(env, memory=remember("transformer"), n_epochs=1)
    convolutions = ppo.policy.encoder.encoder.images["policy"].convolutions
    before = flat(convolutions)
    assert all(bool(v.isfinite()) for v in ppo.update(Player(env).rollout(ppo, 8)).values())
    assert not torch.equal(flat(convolutions), before)


def test_what_does_not_fit_is_refused(lab):
    env = lab.env()
    with pytest.raises(ConfigError, match=r"n_steps and batch_size must be multiples of memory\.window, which is 4"):
        lab.ppo(env, memory=remember("gru"), n_steps=18)
    with pytest.raises(ConfigError, match="multiples of"):
        lab.ppo(env, memory=remember("gru"), batch_size=10)
    with pytest.raises(ConfigError, match="burn_in is for windows out of a replay buffer"):
        lab.a2c(env, memory=MemoryConfig(kind="gru", burn_in=1))
