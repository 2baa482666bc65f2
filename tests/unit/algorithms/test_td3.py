"""TD3: targets by a loop, an independent formula, delayed steps that each move their own parameters."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from habilis.algorithms.td3 import TD3Config
from habilis.core.errors import ConfigError
from habilis.core.recording import RECORD_AFTER, SideBySide
from habilis.functional import losses
from habilis.functional.losses import q_target
from habilis.nn.mlp import EnsembleLinear
from habilis.nn.optimizer import Optimizer


@pytest.fixture
def targets(monkeypatch):
    """What the critics are told, at every update."""
    seen = []

    def spy(*args):
        seen.append(q_target(*args))
        return seen[-1]

    monkeypatch.setattr(losses, "q_target", spy)
    return seen


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def make(lab, obs=None, **config):
    env = lab.env(lab.VECTOR if obs is None else obs)
    td3 = lab.td3(env, **config)
    buffer = lab.replay(td3, env, n_steps=config.get("n_steps", 1), gamma=config.get("gamma", 0.99))
    return td3, buffer.sample(64)


def apart(td3):
    """Move the targets away from the networks, which they equal at the start."""
    td3._policy_target.mul_(1.5)
    td3._critic_target.mul_(0.7)


def q_by_loops(critics, row):
    """Q of one row `[in]` by every critic, layer by layer."""
    answers = []
    for k in range(critics.q.copies):
        x = row
        for layer in (*critics.q.hidden, critics.q.out):
            x = x @ layer.weight[k] + layer.bias[k, 0] if isinstance(layer, EnsembleLinear) else torch.relu(x)
        answers.append(float(x))
    return answers


@pytest.mark.parametrize("n_steps", [1, 3])
def test_target_against_a_loop_truncation_bootstraps_and_termination_does_not(lab, targets, n_steps):
    td3, batch = make(lab, n_steps=n_steps, gamma=0.9, n_critics=3, target_policy_noise=0.4, target_noise_clip=0.3)
    assert batch.terminated.any()
    apart(td3)
    generator = torch.Generator().set_state(td3.state.noise.get_state())
    policy, critics = copy.deepcopy(td3.state.target_policy), copy.deepcopy(td3.state.target_critics)
    td3.update(batch)
    (target,) = targets
    noise = torch.randn(64, 2, generator=generator)
    assert (noise.abs() * 0.4 > 0.3).any()
    for b in range(64):
        with torch.no_grad():
            action = policy.action({"policy": batch.next_obs["policy"][b : b + 1]})[0]
            smoothed = [
                max(-1.0, min(1.0, float(a) + max(-0.3, min(0.3, 0.4 * float(n)))))
                for a, n in zip(action, noise[b], strict=True)
            ]
            q = min(q_by_loops(critics, torch.cat([batch.next_obs["policy"][b], torch.tensor(smoothed)])))
        expected = float(batch.reward[b])
        if not batch.terminated[b]:
            expected += float(batch.discount[b]) * q
        assert float(target[b, 0]) == pytest.approx(expected, abs=2e-3)


def test_ddpg_by_an_independent_formula(lab):
    """One critic, no delay, no target noise: losses written anew with PyTorch's own Adam give the same parameters."""
    ddpg, batch = make(lab, n_critics=1, policy_delay=1, target_policy_noise=0.0, learning_rate=1e-3)
    apart(ddpg)
    s = ddpg.state
    policy, critics, target_policy, target_critics = (
        copy.deepcopy(m) for m in (s.policy, s.critics, s.target_policy, s.target_critics)
    )
    before = flat(target_policy), flat(target_critics)
    with torch.no_grad():
        following = target_critics(batch.next_obs, target_policy.action(batch.next_obs))[0, :, 0]
        target = batch.reward + 0.99 * torch.where(batch.terminated, 0.0, 1.0) * following
    # the policy looks at the critic before its step
    adam = torch.optim.Adam(policy.parameters(), lr=1e-3)
    (-critics(batch.obs, policy.action(batch.obs))[0].mean()).backward()
    adam.step()
    adam = torch.optim.Adam(critics.parameters(), lr=1e-3)
    adam.zero_grad()
    (0.5 * nn.functional.mse_loss(critics(batch.obs, batch.action)[0, :, 0], target)).backward()
    adam.step()
    metrics = ddpg.update(batch)
    assert {"critic_loss", "policy_loss", "q_mean", "critic_grad_norm", "policy_grad_norm"} == set(metrics)
    torch.testing.assert_close(flat(s.critics), flat(critics), atol=2e-6, rtol=0)
    torch.testing.assert_close(flat(s.policy), flat(policy), atol=2e-6, rtol=0)
    # the targets went 0.005 of the way
    for target, network, old in zip((s.target_policy, s.target_critics), (s.policy, s.critics), before, strict=True):
        torch.testing.assert_close(flat(target), old + 0.005 * (flat(network) - old), atol=1e-6, rtol=0)


def test_the_policy_follows_the_first_critic_alone(lab):
    td3, batch = make(lab, policy_delay=1)
    expected = -td3.state.critics(batch.obs, td3.policy.action(batch.obs))[0].mean()
    assert float(td3.update(batch)["policy_loss"]) == pytest.approx(expected.item())


def test_distributions_against_a_loop(lab):
    """Of the critics whose mean is least, shifted and shrunk atom by atom, split between neighbours, cross-entropy."""
    atoms = [-20.0 + 10 * k for k in range(7)]
    settings = {"n_atoms": 7, "v_min": atoms[0], "v_max": atoms[-1], "n_critics": 3, "target_policy_noise": 0.0}
    td3, batch = make(lab, **settings, policy_delay=1, normalize_obs=True)
    assert batch.terminated.any()
    td3.update_normalizers(batch.obs, torch.ones(64, dtype=torch.bool))
    td3._critic_target.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
    s = td3.state
    with torch.no_grad():
        following = s.target_critics(batch.next_obs, s.target_policy.action(batch.next_obs)).softmax(-1).tolist()
        now = s.critics(batch.obs, batch.action).log_softmax(-1).tolist()
        acting = s.critics(batch.obs, s.policy.action(batch.obs))[0].softmax(-1).tolist()

    def mean(probs):
        return sum(p * z for p, z in zip(probs, atoms, strict=True))

    loss, chosen = 0.0, set()
    for b in range(64):
        least = min(range(3), key=lambda k: mean(following[k][b]))
        chosen.add(least)
        target = [0.0] * 7
        for p, z in zip(following[least][b], atoms, strict=True):
            reached = float(batch.reward[b]) + (0.0 if batch.terminated[b] else float(batch.discount[b]) * z)
            place = (max(-20.0, min(40.0, reached)) + 20) / 10
            below = min(int(place), 5)
            target[below] += p * (below + 1 - place)
            target[below + 1] += p * (place - below)
        loss -= sum(t * q for k in range(3) for t, q in zip(target, now[k][b], strict=True)) / 64
    assert len(chosen) > 1
    metrics = td3.update(batch)
    assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(metrics["policy_loss"]) == pytest.approx(-sum(map(mean, acting)) / 64, rel=1e-4)
    expected = sum(mean([math.exp(x) for x in row]) for rows in now for row in rows) / (3 * 64)
    assert float(metrics["q_mean"]) == pytest.approx(expected, rel=1e-4)


def test_weights_decay_in_policy_and_critics(lab):
    """Where both are multiplied by the step size, the first step differs by as much of every parameter."""
    plain, batch = make(lab, policy_delay=1, learning_rate=0.01)
    fast, _ = make(lab, policy_delay=1, learning_rate=0.01, weight_decay=0.5)
    before = [flat(n) for n in (plain.state.policy, plain.state.critics)]
    plain.update(batch)
    fast.update(batch)
    for one, two, old in zip(
        (plain.state.policy, plain.state.critics), (fast.state.policy, fast.state.critics), before, strict=True
    ):
        torch.testing.assert_close(flat(one) - flat(two), 0.005 * old, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_atoms": 0}, "n_atoms must be positive, got 0"),
        ({"v_min": 5.0, "v_max": 5.0}, "v_min must be less than v_max, got 5.0 and 5.0"),
        ({"action_noise_std_min": 0.0}, "action_noise_std_min must be positive, got 0.0"),
        ({"action_noise_std_min": 0.3}, "action_noise_std_min must be at most 0.1, got 0.3"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        TD3Config(**config)


def test_policy_and_targets_wait_and_each_step_moves_only_its_own_parameters(lab, monkeypatch):
    td3, batch = make(lab, lab.ASYMMETRIC, policy_delay=3, normalize_obs=True)
    s = td3.state
    modules = {
        "policy": s.policy,
        "critics": s.critics,
        "target policy": s.target_policy,
        "target critics": s.target_critics,
    }
    moved = []

    def parts():
        return {name: flat(m) for name, m in modules.items()}

    inner = Optimizer.step

    def spy(self, *gradient):
        before = parts()
        inner(self, *gradient)
        after = parts()
        moved.append({name for name in before if not torch.equal(before[name], after[name])})

    monkeypatch.setattr(Optimizer, "step", spy)
    changed = []
    for _ in range(6):
        before = parts()
        td3.update(batch)
        changed.append({name for name, value in parts().items() if not torch.equal(value, before[name])})
    assert changed == [{"critics"}, {"critics"}, set(modules)] * 2
    assert moved == [{"critics"}, {"critics"}, {"critics"}, {"policy"}] * 2


def test_learning_rate_schedule_holds_for_both(lab):
    td3, _ = make(lab, learning_rate=1e-3, critic_learning_rate=1e-2, learning_rate_schedule="linear")
    td3.set_progress(0.75, 0)
    rates = [float(o.learning_rate) for o in (td3.state.policy_optimizer, td3.state.critic_optimizer)]
    assert rates == pytest.approx([2.5e-4, 2.5e-3])


def test_asymmetric_critics_and_normalisers(lab):
    td3, batch = make(lab, lab.ASYMMETRIC, normalize_obs=True)
    by_policy = dict(batch.obs) | {"policy": torch.zeros_like(batch.obs["policy"])}
    assert torch.equal(td3.state.critics(batch.obs, batch.action), td3.state.critics(by_policy, batch.action))
    valid = torch.ones(64, dtype=torch.bool)
    valid[:10] = False
    td3.update_normalizers(batch.obs, valid)
    s = td3.state
    for network, target in ((s.policy, s.target_policy), (s.critics, s.target_critics)):
        for one, two in zip(network.encoder.buffers(), target.encoder.buffers(), strict=True):
            assert torch.equal(one, two)
    mean = batch.obs["policy"][10:].double().mean(0)
    torch.testing.assert_close(s.policy.encoder.normalizers["policy"].mean, mean)


def test_images(lab):
    td3, batch = make(lab, lab.IMAGES, policy_delay=1)
    before = [flat(m.encoder.images) for m in (td3.policy, td3.state.critics)]
    metrics = td3.update(batch)
    assert all(bool(v.isfinite()) for v in metrics.values())
    after = [flat(m.encoder.images) for m in (td3.policy, td3.state.critics)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_choices_are_refused(lab):
    with pytest.raises(ConfigError, match="TD3 needs real-valued actions and toy has one choice"):
        lab.td3(lab.env(action="choice"))


def test_side_by_side_gives_the_bits_of_one_after_the_other(lab):
    one, batch = make(lab)
    two, _ = make(lab)
    two._side_by_side = SideBySide(2)
    for _ in range(2 * RECORD_AFTER + 10):
        first, second = one.update(batch), two.update(batch)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(flat(one.state.policy), flat(two.state.policy))
    assert torch.equal(flat(one.state.critics), flat(two.state.critics))


def test_both_targets_move_by_tau(lab):
    td3, batch = make(lab, tau=0.25, policy_delay=1)
    s = td3.state
    targets, networks = (td3._policy_target, td3._critic_target), (s.policy_optimizer.flat, s.critic_optimizer.flat)
    before = [target.clone() for target in targets]
    td3.update(batch)
    for target, old, network in zip(targets, before, networks, strict=True):
        assert not torch.equal(network, old)
        torch.testing.assert_close(target, old + 0.25 * (network - old))


def test_weights_of_simba_v2_stay_on_their_spheres(lab):
    td3, batch = make(lab, network="simba_v2", normalize_obs=True, hidden=(16,), learning_rate=1e-2, policy_delay=1)
    for _ in range(3):
        td3.update(batch)
    for network in (td3.policy.trunk, td3.state.critics.q):
        for layer in network.on_spheres:
            torch.testing.assert_close(layer.weight.norm(dim=-2), torch.ones_like(layer.weight[..., 0, :]))
