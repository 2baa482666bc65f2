"""SAC: targets by hand, three steps that each move their own parameters, a temperature that goes the right way."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from habilis.algorithms.sac import SACConfig
from habilis.core import acceleration
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
    sac = lab.sac(env, **config)
    buffer = lab.replay(sac, env, n_steps=config.get("n_steps", 1), gamma=config.get("gamma", 0.99))
    return sac, buffer.sample(64)


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
    sac, batch = make(lab, n_steps=n_steps, gamma=0.9, n_critics=3, init_ent_coef=0.3)
    assert batch.terminated.any()
    noise = torch.Generator().set_state(sac.state.noise.get_state())
    normal = sac.policy.distribution(batch.next_obs)
    sac._target.mul_(1.5)  # at the start they are the critics
    before = copy.deepcopy(sac.state.target_critics)
    normal.mean, normal.log_std = normal.mean.detach(), normal.log_std.detach()
    sac.update(batch)
    (target,) = targets
    _, draw = torch.randn(2, 64, 2, generator=noise)
    for b in range(64):
        u = normal.mean[b] + normal.log_std[b].exp() * draw[b]
        action = torch.tanh(u)
        spread = torch.distributions.Normal(normal.mean[b], normal.log_std[b].exp())
        log_prob = float((spread.log_prob(u) - torch.log1p(-action.square())).sum())
        with torch.no_grad():
            q = min(q_by_loops(before, torch.cat([batch.next_obs["policy"][b], action])))
        expected = float(batch.reward[b])
        if not batch.terminated[b]:
            expected += float(batch.discount[b]) * (q - 0.3 * log_prob)
        assert float(target[b, 0]) == pytest.approx(expected, abs=2e-3)
    allowed = {round(0.9**k, 4) for k in range(1, n_steps + 1)}
    assert {round(d, 4) for d in batch.discount.tolist()} == allowed


def test_a_truncated_step_is_not_terminated_and_keeps_its_true_successor(lab, targets):
    env = lab.env(ends=1.0, invalid=0)
    sac = lab.sac(env)
    inner = env.step
    finals = []

    def step(env_action):
        s = inner(env_action)
        finals.append(s.next_obs["policy"])
        return dataclasses.replace(s, truncated=s.done, terminated=torch.zeros_like(s.done))

    env.step = step
    batch = lab.replay(sac, env, steps=20).sample(200)
    assert not batch.terminated.any()
    known = {tuple(row) for row in torch.cat(finals).tolist()}
    assert {tuple(row) for row in batch.next_obs["policy"].tolist()} <= known
    sac.update(dataclasses.replace(batch, reward=torch.ones(200)))
    assert bool(((targets[0] - 1).abs() > 1e-6).all())  # more than the reward everywhere


@pytest.mark.parametrize("config", [{}, {"ent_coef": 0.1}, {"normalize_obs": True, "n_critics": 4}])
def test_each_step_moves_only_its_own_parameters(lab, monkeypatch, config):
    sac, batch = make(lab, lab.ASYMMETRIC, **config)
    s = sac.state
    moved = []

    def parts():
        modules = {"policy": s.policy, "critics": s.critics, "targets": s.target_critics}
        tensors = {
            name: torch.cat([v.double().reshape(-1) for v in m.state_dict().values()]) for name, m in modules.items()
        }
        return tensors | {"alpha": s.log_alpha.detach().clone()}

    inner = Optimizer.step

    def spy(self, *gradient):
        before = parts()
        inner(self, *gradient)
        after = parts()
        moved.append({name for name in before if not torch.equal(before[name], after[name])})

    monkeypatch.setattr(Optimizer, "step", spy)
    before = parts()["targets"]
    sac.update(batch)
    assert moved == [{"critics"}, {"policy"}] + ([] if "ent_coef" in config else [{"alpha"}])
    assert not torch.equal(parts()["targets"], before)
    assert all(p.grad is None for p in [*s.policy.parameters(), *s.critics.parameters()])


def test_one_update_by_an_independent_formula(lab):
    """Losses written anew with one small network per critic and PyTorch's own Adam give the same parameters."""
    sac, batch = make(lab)
    s = sac.state
    sac._target.mul_(1.5)  # at the start they are the critics
    twin = copy.deepcopy
    policy, critics, targets = twin(s.policy), twin(s.critics), twin(s.target_critics)
    log_alpha = s.log_alpha.detach().clone().requires_grad_()
    noise, next_noise = torch.randn(2, 64, 2, generator=torch.Generator().set_state(s.noise.get_state()))

    def draw(obs, noise):
        d = policy.distribution(obs)
        normal = torch.distributions.Normal(d.mean, d.log_std.exp())
        u = d.mean + d.log_std.exp() * noise
        return torch.tanh(u), (normal.log_prob(u) - torch.log1p(-torch.tanh(u).square())).sum(-1)

    alpha = log_alpha.detach().exp()
    with torch.no_grad():
        next_action, next_log_prob = draw(batch.next_obs, next_noise)
        soft = targets(batch.next_obs, next_action).squeeze(-1).min(0).values - alpha * next_log_prob
        target = batch.reward + 0.99 * torch.where(batch.terminated, 0.0, 1.0) * soft
    # the policy looks at the critics before their step
    adam = torch.optim.Adam(policy.parameters(), lr=3e-4)
    action, log_prob = draw(batch.obs, noise)
    policy_loss = (alpha * log_prob - critics(batch.obs, action).squeeze(-1).min(0).values).mean()
    policy_loss.backward()
    adam.step()
    adam = torch.optim.Adam(critics.parameters(), lr=3e-4)
    adam.zero_grad()
    sum(0.5 * nn.functional.mse_loss(q, target) for q in critics(batch.obs, batch.action).squeeze(-1)).backward()
    adam.step()
    adam = torch.optim.Adam([log_alpha], lr=3e-4)
    (-log_alpha.exp() * (log_prob.detach() - 2.0)).mean().backward()  # two action values: the target entropy is -2
    adam.step()
    before = flat(targets)
    metrics = sac.update(batch)
    torch.testing.assert_close(metrics["policy_loss"], policy_loss.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(flat(s.critics), flat(critics), atol=2e-6, rtol=0)
    torch.testing.assert_close(flat(s.policy), flat(policy), atol=2e-6, rtol=0)
    torch.testing.assert_close(s.log_alpha.detach(), log_alpha.detach(), atol=1e-6, rtol=0)
    # the targets went 0.005 of the way
    expected = before + 0.005 * (flat(s.critics) - before)
    torch.testing.assert_close(flat(s.target_critics), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("target_entropy", "direction"), [(5.0, 1), (-20.0, -1)])
def test_temperature_goes_the_right_way(lab, target_entropy, direction):
    sac, batch = make(lab, target_entropy=target_entropy, learning_rate=1e-2)
    values = [float(sac.update(batch)["ent_coef"]) for _ in range(20)]
    assert values[0] == 1
    assert all((b - a) * direction > 0 for a, b in pairwise(values))


def test_target_entropy_is_computed_not_zero(lab):
    assert lab.sac(lab.env()).target_entropy == -2


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_fixed_temperature_stays(lab, coefficient):
    sac, batch = make(lab, ent_coef=coefficient)
    for _ in range(3):
        metrics = sac.update(batch)
    assert float(metrics["ent_coef"]) == pytest.approx(coefficient)
    assert all(bool(v.isfinite()) for v in metrics.values())
    assert bool(flat(sac.policy).isfinite().all())


def test_critics_start_apart_and_targets_start_equal(lab):
    sac, batch = make(lab, n_critics=3)
    q = sac.state.critics(batch.obs, batch.action)
    assert q.shape == (3, 64, 1)
    assert not torch.equal(q[0], q[1])
    assert torch.equal(q, sac.state.target_critics(batch.obs, batch.action))


def test_critic_learning_rate_is_its_own(lab):
    sac, _ = make(lab, learning_rate=1e-3, critic_learning_rate=1e-2)
    s = sac.state
    rates = [float(o.learning_rate) for o in (s.policy_optimizer, s.critic_optimizer, s.alpha_optimizer)]
    assert rates == pytest.approx([1e-3, 1e-2, 1e-3])


def test_learning_rate_schedule_holds_for_everything_that_is_learnt(lab):
    sac, _ = make(lab, learning_rate=1e-3, critic_learning_rate=1e-2, learning_rate_schedule="linear")
    sac.set_progress(0.75, 0)
    s = sac.state
    rates = [float(o.learning_rate) for o in (s.policy_optimizer, s.alpha_optimizer, s.critic_optimizer)]
    assert rates == pytest.approx([2.5e-4, 2.5e-4, 2.5e-3])


def test_asymmetric_critics(lab):
    sac, batch = make(lab, lab.ASYMMETRIC, normalize_obs=True)
    zeros = {name: torch.zeros_like(v) for name, v in batch.obs.items()}
    by_policy = dict(batch.obs) | {"policy": zeros["policy"]}
    by_critic = dict(batch.obs) | {"critic": zeros["critic"]}
    q = sac.state.critics(batch.obs, batch.action)
    assert torch.equal(q, sac.state.critics(by_policy, batch.action))
    assert not torch.equal(q, sac.state.critics(by_critic, batch.action))
    assert torch.equal(sac.policy(batch.obs)[0], sac.policy(by_critic)[0])


def test_normalisers_of_targets_follow_those_of_the_critics(lab):
    sac, batch = make(lab, lab.ASYMMETRIC, normalize_obs=True)
    valid = torch.ones(64, dtype=torch.bool)
    valid[:10] = False
    sac.update_normalizers(batch.obs, valid)
    s = sac.state
    for one, two in zip(s.critics.encoder.buffers(), s.target_critics.encoder.buffers(), strict=True):
        assert torch.equal(one, two)
    mean = batch.obs["policy"][10:].double().mean(0)
    torch.testing.assert_close(s.policy.encoder.normalizers["policy"].mean, mean)


def test_images(lab):
    sac, batch = make(lab, lab.IMAGES)
    before = [flat(m.encoder.images) for m in (sac.policy, sac.state.critics, sac.state.target_critics)]
    metrics = sac.update(batch)
    assert all(bool(v.isfinite()) for v in metrics.values())
    after = [flat(m.encoder.images) for m in (sac.policy, sac.state.critics, sac.state.target_critics)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_choices_are_refused(lab):
    with pytest.raises(ConfigError, match="SAC needs real-valued actions and toy has one choice"):
        lab.sac(lab.env(action="choice"))


def test_side_by_side_gives_the_bits_of_one_after_the_other(lab):
    one, batch = make(lab)
    two, _ = make(lab)
    two._side_by_side = SideBySide(2)
    for _ in range(RECORD_AFTER + 10):
        first, second = one.update(batch), two.update(batch)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(flat(one.state.policy), flat(two.state.policy))
    assert torch.equal(flat(one.state.critics), flat(two.state.critics))


def test_critics_learn_the_same_with_all_threads_for_themselves(lab):
    one, batch = make(lab, policy_delay=3)
    two, _ = make(lab, policy_delay=3)
    two._side_by_side = SideBySide(2)
    for _ in range(2):
        first, second = one.update(batch), two.update(batch)
        assert first.keys() == second.keys()
        # the norm of the gradient too: Adam's steps would not tell it from twice as much
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(flat(one.state.critics), flat(two.state.critics))


def test_reduced_precision_learns_by_nearly_the_same_gradient_and_acts_by_the_same_bits(lab, monkeypatch):
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    full, batch = make(lab, hidden=(64, 64))
    reduced, _ = make(lab, hidden=(64, 64), hidden_precision="bfloat16")
    obs = batch.obs
    assert torch.equal(full.policy(obs)[0], reduced.policy(obs)[0])
    ours, theirs = reduced.update(batch), full.update(batch)
    assert float(ours["critic_loss"]) != float(theirs["critic_loss"])
    assert float(ours["critic_loss"]) == pytest.approx(float(theirs["critic_loss"]), rel=0.02)
    assert float(ours["policy_grad_norm"]) == pytest.approx(float(theirs["policy_grad_norm"]), rel=0.05)


def test_reduced_precision_gives_the_same_bits_however_often_it_was_asked_before(lab, monkeypatch):
    """A run that was stopped and goes on must not differ from one that was not."""
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    experienced, batch = make(lab, hidden_precision="bfloat16")
    for _ in range(RECORD_AFTER + 1):
        experienced.update(batch)
    fresh, _ = make(lab, hidden_precision="bfloat16")
    fresh.load_state_dict(experienced.state_dict())
    ours, theirs = experienced.update(batch), fresh.update(batch)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(experienced.state.critic_optimizer.flat, fresh.state.critic_optimizer.flat)


def test_target_of_quantiles_is_all_but_the_highest(lab, targets):
    sac, batch = make(lab, n_critics=3, n_quantiles=5, top_quantiles_to_drop_per_net=2, ent_coef=0.0)
    sac._target.mul_(1.5)
    _, noise = torch.randn(2, 64, 2, generator=torch.Generator().set_state(sac.state.noise.get_state()))
    with torch.no_grad():
        action, _ = sac.policy.distribution(batch.next_obs).sample(noise)
        values = sac.state.target_critics(batch.next_obs, action)
    assert values.shape == (3, 64, 5)
    sac.update(batch)
    for b in range(64):
        kept = sorted(values[:, b].flatten().tolist())[:9]
        following = [0.0 if batch.terminated[b] else 0.99 * v for v in kept]
        expected = [float(batch.reward[b]) + f for f in following]
        assert targets[0][b].tolist() == pytest.approx(expected, abs=1e-3)


def test_target_of_some_critics_is_the_least_of_those_drawn(lab, targets):
    sac, batch = make(lab, n_critics=5, n_target_critics=2, ent_coef=0.0, policy_critic="mean")
    sac._target.mul_(1.5)
    generator = torch.Generator().set_state(sac.state.noise.get_state())
    _, noise = torch.randn(2, 64, 2, generator=generator)
    which = torch.randperm(5, generator=generator)[:2].tolist()
    with torch.no_grad():
        action, _ = sac.policy.distribution(batch.next_obs).sample(noise)
        values = sac.state.target_critics(batch.next_obs, action)[which, :, 0].amin(0)
    sac.update(batch)
    expected = batch.reward + torch.where(batch.terminated, 0.0, 0.99 * values)
    torch.testing.assert_close(targets[0][:, 0], expected, atol=1e-4, rtol=1e-5)
    drawn = []
    inner = sac.state.target_critics.forward
    sac.state.target_critics.forward = lambda *args: drawn.append(tuple(args[3].tolist())) or inner(*args)
    for _ in range(20):
        sac.update(batch)
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert {k for pair in drawn for k in pair} == set(range(5))


def test_asking_some_critics_is_asking_all_and_choosing(lab):
    for network in ({}, {"layer_norm": True, "dropout": 0.3}, {"network": "simba"}, {"network": "simba_v2"}):
        sac, batch = make(lab, n_critics=4, **network)
        critics = sac.state.critics
        noise = critics.q.noise(64, torch.Generator().manual_seed(0))
        some = critics(batch.obs, batch.action, noise, torch.tensor([3, 1]))
        torch.testing.assert_close(some, critics(batch.obs, batch.action, noise)[[3, 1]])


def test_the_policy_climbs_the_least_or_the_mean_of_the_critics(lab):
    for kind, reduce in (("min", torch.Tensor.amin), ("mean", torch.Tensor.mean)):
        sac, batch = make(lab, n_critics=3, ent_coef=0.0, policy_critic=kind)
        noise, _ = torch.randn(2, 64, 2, generator=torch.Generator().set_state(sac.state.noise.get_state()))
        with torch.no_grad():
            action, _ = sac.policy.distribution(batch.obs).sample(noise)
            expected = -reduce(sac.state.critics(batch.obs, action).squeeze(-1), 0).mean()
        assert float(sac.update(batch)["policy_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_policy_and_temperature_wait_and_targets_do_not(lab):
    sac, batch = make(lab, policy_delay=3)
    s = sac.state
    changed = []
    for _ in range(6):
        before = [flat(s.policy), s.log_alpha.detach().clone(), flat(s.critics), flat(s.target_critics)]
        metrics = sac.update(batch)
        after = [flat(s.policy), s.log_alpha.detach(), flat(s.critics), flat(s.target_critics)]
        changed.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
        assert ("policy_loss" in metrics) == changed[-1][0]
    assert changed == [[False, False, True, True], [False, False, True, True], [True, True, True, True]] * 2


def test_dropout_is_drawn_for_critics_targets_and_policy_apart(lab):
    sac, batch = make(lab, layer_norm=True, dropout=0.5)
    seen = {"critics": [], "targets": []}
    for name, critics in (("critics", sac.state.critics), ("targets", sac.state.target_critics)):
        inner = critics.q.hidden.forward
        critics.q.hidden.forward = lambda x, noise=None, *rest, name=name, inner=inner: (
            seen[name].append(noise) or inner(x, noise, *rest)
        )
    sac.update(batch)
    drawn = [*seen["critics"], *seen["targets"]]
    assert [noise.shape for noise in drawn] == [(2, 64, 32)] * 3
    assert all(0.4 < float((noise == 0).float().mean()) < 0.6 for noise in drawn)
    assert not any(torch.equal(a, b) for a, b in pairwise([*drawn, drawn[0]]))
    policy = make(lab, layer_norm=True, dropout=0.5)[0].policy
    assert not any("Dropout" in type(m).__name__ for m in policy.modules())


def test_without_targets_both_batches_are_normalised_together(lab, targets):
    sac, batch = make(lab, target_networks=False, batch_renorm=True, ent_coef=0.0, policy_delay=2, adam_beta1=0.5)
    s = sac.state
    assert s.target_critics is None
    assert s.critic_optimizer.beta1 == 0.5
    twin = copy.deepcopy(s.critics)
    _, noise = torch.randn(2, 64, 2, generator=torch.Generator().set_state(s.noise.get_state()))
    with torch.no_grad():
        action, _ = sac.policy.distribution(batch.next_obs).sample(noise)
        both = {k: torch.cat([batch.obs[k], batch.next_obs[k]]) for k in batch.obs}
        values, statistics = twin.learn(both, torch.cat([batch.action, action]))
    running = [r.running.clone() for r in s.critics.q.hidden.renorms]
    acting = [r.running.clone() for r in s.policy.trunk.hidden.renorms]
    sac.update(batch)
    expected = batch.reward + torch.where(batch.terminated, 0.0, 0.99 * values[:, 64:, 0].amin(0))
    torch.testing.assert_close(targets[0][:, 0], expected, atol=1e-4, rtol=1e-5)
    twin.q.after_step(statistics)
    for ours, theirs, before in zip(s.critics.q.hidden.renorms, twin.q.hidden.renorms, running, strict=True):
        assert torch.equal(ours.running, theirs.running)
        assert not torch.equal(ours.running, before)
    # the policy's statistics move with its own steps alone
    assert all(torch.equal(r.running, b) for r, b in zip(s.policy.trunk.hidden.renorms, acting, strict=True))
    sac.update(batch)
    assert not any(torch.equal(r.running, b) for r, b in zip(s.policy.trunk.hidden.renorms, acting, strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch_renorm": True}, "target_networks off"),
        ({"n_target_critics": 3}, "at most n_critics, 2, got 3"),
        ({"n_quantiles": 4, "top_quantiles_to_drop_per_net": 4}, "must be below 4, got 4"),
        ({"n_quantiles": 4, "top_quantiles_to_drop_per_net": -1}, "must not be negative, got -1"),
        ({"network": "simba_v2", "batch_renorm": True, "target_networks": False}, "choose simba"),
        ({"policy_delay": 0}, "policy_delay must be positive, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        SACConfig(**config)


def test_weights_of_simba_v2_stay_on_their_spheres(lab):
    sac, batch = make(lab, network="simba_v2", critic_hidden=(24, 24), learning_rate=1e-2)
    for _ in range(3):
        sac.update(batch)
    for network, width in ((sac.state.critics.q, 24), (sac.policy.trunk, 16)):
        assert network.on_spheres[-1].weight.shape[-1] == width
        for layer in network.on_spheres:
            torch.testing.assert_close(layer.weight.norm(dim=-2), torch.ones_like(layer.weight[..., 0, :]))


def test_targets_move_by_tau(lab):
    sac, batch = make(lab, tau=0.25)
    before = sac._target.clone()
    sac.update(batch)
    assert not torch.equal(sac.state.critic_optimizer.flat, before)
    torch.testing.assert_close(sac._target, before + 0.25 * (sac.state.critic_optimizer.flat - before))
