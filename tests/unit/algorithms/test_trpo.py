"""TRPO: no accepted step leaves the trust region, every one is an improvement, and NPG's step is its formula's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from habilis.core.errors import HabilisError
from habilis.nn.distributions import Beta, Gaussian, Hybrid
from habilis.policies.actor_critic import evaluate_rollout


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def spread_of(found):
    """A policy's distribution as independent ones of PyTorch's, each with what picks its part of an action.

    What squashes actions changes neither divergences nor by how much their densities change.
    """
    if isinstance(found, Hybrid):
        count = len(found.choices.nvec)
        real = [(spread, lambda a, pick=pick: pick(a[:, :-count])) for spread, pick in spread_of(found.real)]
        choices = enumerate(found.choices.parts, -count)
        return real + [(Categorical(logits=part.log_probs), lambda a, k=k: a[:, k]) for k, part in choices]
    if isinstance(found, Beta):
        return [(Independent(torch.distributions.Beta(found.alpha, found.beta), 1), lambda a: (a + 1) / 2)]
    if isinstance(found, Gaussian):
        return [(Independent(Normal(found.mean, found.log_std.exp()), 1), lambda a: a)]
    return [(Categorical(logits=found.log_probs), lambda a: a)]


def density_of(spread, actions):
    return sum(part.log_prob(pick(actions)) for part, pick in spread).detach()


def rows_of(batch):
    return {k: v[:-1][batch.valid] for k, v in batch.obs.items()}


@pytest.mark.parametrize(
    ("action", "config"),
    [
        *(("box", {"std_type": kind}) for kind in ("independent", "dependent", "fixed")),
        ("box", {"distribution": "squashed"}),
        ("box", {"distribution": "beta"}),
        ("box", {"use_sde": True}),
        ("choice", {}),
        ("hybrid", {}),
        ("hybrid", {"distribution": "beta"}),
    ],
    ids=str,
)
def test_no_accepted_step_exceeds_the_bound_and_every_one_improves(lab, action, config):
    """Over many updates on random rollouts, with PyTorch's own divergence, at a bound that full steps often exceed."""
    env = lab.env(action=action)
    trpo = lab.trpo(env, target_kl=0.03, cg_max_steps=10, cg_damping=1e-3, normalize_obs=False, **config)
    shares = []
    for seed in range(40):
        batch = lab.rollout(trpo, env, seed=seed)
        obs, actions = rows_of(batch), batch.actions[batch.valid]
        before, parameters = spread_of(trpo.policy.distribution(obs)), flat(trpo.policy)
        old_log_prob = density_of(before, actions)
        metrics = trpo.update(batch)
        after = spread_of(trpo.policy.distribution(obs))
        pairs = zip(before, after, strict=True)
        divergence = sum(kl_divergence(one, other) for (one, _), (other, _) in pairs).mean().detach()
        assert float(divergence) <= 0.03 * (1 + 1e-4)
        assert float(divergence) == pytest.approx(float(metrics["kl"]), abs=1e-5)
        share = float(metrics["step_share"])
        shares.append(share)
        if share > 0:
            assert float(metrics["objective_gain"]) > 0
            assert float((density_of(after, actions) - old_log_prob).abs().max()) > 0
        else:
            assert torch.equal(flat(trpo.policy), parameters)
    # the test can fail: some full steps were too long, and some were not
    assert any(0 < share < 1 for share in shares)
    assert 1.0 in shares


def dense_step(trpo, batch, obs):
    """sqrt(2 delta / (g F^-1 g)) F^-1 g with the Fisher information written down from the scores of every choice."""
    c, policy = trpo.config, trpo.policy
    parameters = list(policy.parameters())
    log_probs = policy.distribution(obs).log_probs
    rows, choices = log_probs.shape
    fisher = c.cg_damping * torch.eye(len(flat(policy)))
    for row in range(rows):
        for choice in range(choices):
            score = torch.autograd.grad(log_probs[row, choice], parameters, retain_graph=True)
            vector = torch.cat([x.reshape(-1) for x in score])
            fisher += log_probs[row, choice].detach().exp() * torch.outer(vector, vector) / rows
    return fisher


def test_the_natural_gradients_step_equals_its_formula(lab):
    env = lab.env(action="choice", invalid=0)
    options = {"line_search": False, "cg_max_steps": 80, "cg_damping": 0.05, "hidden": (4,), "normalize_reward": False}
    npg, twin = lab.trpo(env, **options), lab.trpo(env, **options)
    batch = lab.rollout(npg, env)
    obs, actions = rows_of(batch), batch.actions[batch.valid]
    fisher = dense_step(twin, batch, obs)
    data, _ = evaluate_rollout(batch, twin.policy, twin.state.critic, None, 0.99, 0.95)
    advantages = data["advantage"]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    objective = (twin.policy.distribution(obs).log_prob(actions) * advantages).mean()  # its gradient at ratio 1
    gradient = torch.cat([x.reshape(-1) for x in torch.autograd.grad(objective, list(twin.policy.parameters()))])
    direction = torch.linalg.solve(fisher, gradient)
    expected = (2 * 0.01 / (gradient @ direction)).sqrt() * direction
    before = flat(npg.policy)
    metrics = npg.update(batch)
    torch.testing.assert_close(flat(npg.policy) - before, expected, atol=2e-4, rtol=2e-3)
    assert float(metrics["step_share"]) == 1.0


def test_the_fisher_information_of_some_rows_is_used_where_asked(lab):
    env = lab.env(invalid=0)
    steps = []
    for factor in (1, 2, 4):
        trpo = lab.trpo(env, sub_sampling_factor=factor, line_search=False)
        before = flat(trpo.policy)
        trpo.update(lab.rollout(trpo, lab.env(invalid=0)))
        steps.append(flat(trpo.policy) - before)
    assert not torch.equal(steps[0], steps[1])
    # another estimate of the same: much the same direction
    for other in steps[1:]:
        assert float(torch.cosine_similarity(steps[0], other, dim=0)) > 0.7


def test_some_rows_are_of_every_environment(lab):
    env = lab.env(invalid=0)
    trpo = lab.trpo(env, sub_sampling_factor=env.num_envs)
    batch, seen = lab.rollout(trpo, env), []
    improve = trpo._improve

    def spy(data):
        seen.append(data["action"][:: env.num_envs])
        return improve(data)

    trpo._improve = spy
    trpo.update(batch)
    of = [{tuple(row) for row in batch.actions[:, k].tolist()} for k in range(env.num_envs)]
    assert all(any(tuple(row) in rows for row in seen[0].tolist()) for rows in of)


def test_no_try_is_good_enough(lab):
    env = lab.env()
    trpo = lab.trpo(env, line_search_max_iter=1, target_kl=0.5, cg_damping=0.0)
    before = flat(trpo.policy)
    batch = lab.rollout(trpo, env)
    columns = trpo._outcome.function

    def worse(data):
        return columns(data) | {"objective": torch.tensor(-1e9)}

    trpo._outcome.function = worse
    metrics = trpo.update(batch)
    assert torch.equal(flat(trpo.policy), before)
    assert float(metrics["step_share"]) == float(metrics["kl"]) == float(metrics["objective_gain"]) == 0.0
    assert float(trpo.skipped["policy"]) == 0


def test_a_natural_gradient_that_leads_nowhere_finite_is_not_followed(lab):
    env = lab.env()
    npg = lab.trpo(env, line_search=False)
    before, outcome = flat(npg.policy), npg._outcome.function
    npg._outcome.function = lambda data: outcome(data) | {"kl": torch.tensor(torch.nan)}
    metrics = npg.update(lab.rollout(npg, env))
    assert torch.equal(flat(npg.policy), before)
    assert float(metrics["step_share"]) == 0.0
    assert float(npg.skipped["policy"]) == 1


@pytest.mark.parametrize(("name", "value"), [("kl", torch.nan), ("objective", torch.inf), ("objective", torch.nan)])
def test_a_step_of_which_no_share_leads_anywhere_finite_is_counted(lab, name, value):
    """So that the run stops by `on_nonfinite`; one finite share among them is no fault, whether it is taken or not."""
    env = lab.env()
    for finite, taken in ((0, 0.0), (2, 0.8), (2, 0.0)):  # which try has a finite outcome, and the share it stands for
        trpo, tries = lab.trpo(env, line_search_max_iter=3), []
        before, function = flat(trpo.policy), trpo._outcome.function

        def outcome(data, function=function, tries=tries, finite=finite, taken=taken):
            tries.append(None)
            if len(tries) != finite:
                return function(data) | {name: torch.tensor(value)}
            return {"kl": torch.tensor(0.0), "objective": torch.tensor(1e9 if taken else -1e9)}

        trpo._outcome.function = outcome
        state = trpo.state.skipped
        metrics = trpo.update(lab.rollout(trpo, env))
        assert float(metrics["step_share"]) == pytest.approx(taken)
        assert torch.equal(flat(trpo.policy), before) == (taken == 0)
        assert trpo.state.skipped is state  # what is saved and restored in place
        assert float(trpo.skipped["policy"]) == (finite == 0)


def test_advantages_that_are_all_alike_move_nothing(lab):
    env = lab.env(invalid=0)
    trpo = lab.trpo(env, normalize_advantage=False, normalize_reward=False, gamma=0.5, gae_lambda=0.0)
    for p in trpo.state.critic.head.parameters():
        p.data.zero_()
    batch = lab.rollout(trpo, env)
    before = flat(trpo.policy)
    metrics = trpo.update(dataclasses.replace(batch, rewards=torch.zeros_like(batch.rewards)))
    assert torch.equal(flat(trpo.policy), before)
    assert float(trpo.skipped["policy"]) == 0
    assert float(metrics["kl"]) == 0.0


def test_a_rollout_without_valid_steps_is_refused(lab):
    env = lab.env(invalid=1.1)
    trpo = lab.trpo(env)
    with pytest.raises(HabilisError, match="two valid steps"):
        trpo.update(lab.rollout(trpo, env))


def test_the_value_network_is_fitted_to_the_returns(lab):
    env = lab.env(invalid=0)
    trpo = lab.trpo(env, n_critic_updates=30, normalize_reward=False, learning_rate=1e-2, gamma=0.5)
    batch = lab.rollout(trpo, env)
    batch = dataclasses.replace(batch, rewards=torch.ones_like(batch.rewards))
    losses = [float(trpo.update(batch)["value_loss"]) for _ in range(4)]
    assert losses[-1] < 0.5 * losses[0]
    assert trpo.gradient_steps == 4 * (1 + 30 * 8)
