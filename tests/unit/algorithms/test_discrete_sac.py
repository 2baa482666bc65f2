"""SAC for choices: target, gradients and temperature against loops over the choices."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from habilis.core.errors import ConfigError


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def make(lab, obs=None, **config):
    env = lab.env(lab.VECTOR if obs is None else obs, "choice")
    algorithm = lab.discrete_sac(env, **config)
    with torch.no_grad():  # away from the tiny first logits and from equal targets
        for p in algorithm.policy.head.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    algorithm._target.mul_(1.5)
    return algorithm, lab.replay(algorithm, env, n_steps=config.get("n_steps", 1)).sample(64)


def test_one_update_by_an_independent_formula(lab):
    sac, batch = make(lab, n_steps=3, init_ent_coef=0.3, target_entropy_ratio=0.7, n_critics=3)
    assert batch.terminated.any()
    s = sac.state
    policy, critics, targets = (copy.deepcopy(m) for m in (s.policy, s.critics, s.target_critics))
    log_alpha = s.log_alpha.detach().clone().requires_grad_()
    before = flat(targets)

    def value(obs, q, b):
        """The expectation over three choices, one after the other."""
        logits = policy.distribution(obs).log_probs[b]
        return sum(logits[a].exp() * (min(q[k, b, a] for k in range(3)) - 0.3 * logits[a]) for a in range(3))

    losses = {"critics": 0.0, "policy": 0.0, "alpha": 0.0}
    q, next_q, detached = critics(batch.obs), targets(batch.next_obs).detach(), critics(batch.obs).detach()
    assert q.shape == (3, 64, 3)
    for b in range(64):
        following = 0.0 if batch.terminated[b] else float(batch.discount[b]) * value(batch.next_obs, next_q, b).item()
        target = float(batch.reward[b]) + following
        for k in range(3):
            losses["critics"] += 0.5 * (q[k, b, batch.action[b]] - target) ** 2 / 64
        losses["policy"] -= value(batch.obs, detached, b) / 64
        entropy = float(policy.distribution(batch.obs).entropy()[b].detach())
        losses["alpha"] -= log_alpha.exp() * (0.7 * math.log(3) - entropy) / 64
    for name, parameters in {
        "critics": critics.parameters(),
        "policy": policy.parameters(),
        "alpha": [log_alpha],
    }.items():
        adam = torch.optim.Adam(parameters, lr=3e-4)
        losses[name].backward()
        adam.step()
    metrics = sac.update(batch)
    assert float(metrics["critic_loss"]) == pytest.approx(losses["critics"].item(), rel=1e-4)
    assert float(metrics["policy_loss"]) == pytest.approx(losses["policy"].item(), rel=1e-4)
    torch.testing.assert_close(flat(s.critics), flat(critics), atol=5e-6, rtol=0)
    torch.testing.assert_close(flat(s.policy), flat(policy), atol=5e-6, rtol=0)
    torch.testing.assert_close(s.log_alpha.detach(), log_alpha.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(flat(s.target_critics), before + 0.005 * (flat(s.critics) - before), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ratio", "direction"), [(0.99, 1), (0.0, -1)])
def test_temperature_goes_the_right_way(lab, ratio, direction):
    sac, batch = make(lab, target_entropy_ratio=ratio, learning_rate=1e-2, critic_learning_rate=1e-6)
    first = float(sac.update(batch)["ent_coef"])
    assert (float(sac.update(batch)["ent_coef"]) - first) * direction > 0


def test_fixed_temperature_stays_and_may_be_zero(lab):
    for coefficient in (0.0, 0.3):
        sac, batch = make(lab, ent_coef=coefficient)
        for _ in range(3):
            metrics = sac.update(batch)
        assert float(metrics["ent_coef"]) == pytest.approx(coefficient)
        assert all(bool(v.isfinite()) for v in metrics.values())


def test_asymmetric_critics(lab):
    sac, batch = make(lab, lab.ASYMMETRIC)
    by_policy = dict(batch.obs) | {"policy": torch.zeros_like(batch.obs["policy"])}
    assert torch.equal(sac.state.critics(batch.obs), sac.state.critics(by_policy))


@pytest.mark.parametrize("action", ["box", "choices"])
def test_what_is_not_one_choice_is_refused(lab, action):
    with pytest.raises(ConfigError, match="discrete_sac needs one choice among several and toy has"):
        lab.discrete_sac(lab.env(action=action))


def test_a_share_of_the_entropy_is_less_than_all(lab):
    with pytest.raises(ConfigError, match="target_entropy_ratio must be at least 0 and less than 1, got 1"):
        lab.discrete_sac(lab.env(action="choice"), target_entropy_ratio=1.0)
