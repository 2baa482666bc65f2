"""DQN and its family: targets by hand for every part, one update by an independent formula, exploration, refusals."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from habilis.algorithms.dqn import DQNConfig
from habilis.core.errors import ConfigError
from habilis.data.priorities import Priorities
from habilis.functional.value_losses import categorical_projection
from habilis.nn.memory import MemoryConfig

HEADS = ("mean", "categorical", "quantile", "implicit_quantile")


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def make(lab, obs=None, **config):
    env = lab.env(lab.VECTOR if obs is None else obs, "choice")
    dqn = lab.dqn(env, **config)
    priorities = Priorities() if config.get("prioritized") else None
    replay = {"n_steps": config.get("n_steps", 1), "gamma": config.get("gamma", 0.99), "priorities": priorities}
    batch = lab.replay(dqn, env, **replay).sample(64)
    with torch.no_grad():  # apart from each other, as they are once something is learnt
        dqn._target.add_(torch.randn(dqn._target.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return dqn, batch


@pytest.fixture
def told(monkeypatch):
    """What the head is told of the next action: the values of it, at every update."""

    def spy(dqn):
        seen = []
        head = dqn.policy.head
        inner = head.loss

        def loss(values, next_values, backup, fractions=None):
            seen.append(
                (values.detach(), next_values, backup(next_values) if next_values.shape[1] else None, fractions)
            )
            return inner(values, next_values, backup, fractions)

        monkeypatch.setattr(head, "loss", loss)
        monkeypatch.setattr(dqn, "_gradient", dqn._compute_gradient)  # a recording calls it once
        return seen

    return spy


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("double_q", [False, True])
def test_target_against_a_loop(lab, told, double_q, n_steps):
    dqn, batch = make(lab, double_q=double_q, n_steps=n_steps, gamma=0.9)
    assert batch.terminated.any()
    seen = told(dqn)
    with torch.no_grad():
        online, target = dqn.policy.values(batch.next_obs), dqn.state.target.values(batch.next_obs)
    differ = 0
    dqn.update(batch)
    ((_, _, targets, _),) = seen
    for b in range(64):
        chooser = online if double_q else target
        best = max(range(3), key=lambda a: float(chooser[b, a, 0]))
        differ += best != max(range(3), key=lambda a: float((target if double_q else online)[b, a, 0]))
        expected = float(batch.reward[b])
        if not batch.terminated[b]:
            expected += float(batch.discount[b]) * float(target[b, best, 0])
        assert float(targets[b, 0]) == pytest.approx(expected, abs=1e-4)
    assert differ > 5  # or the test could not tell the two apart
    assert {round(d, 4) for d in batch.discount.tolist()} == {round(0.9**k, 4) for k in range(1, n_steps + 1)}


@pytest.mark.parametrize("threshold", [1.0, None])
@pytest.mark.parametrize("prioritized", [False, True])
def test_one_update_by_an_independent_formula(lab, threshold, prioritized):
    dqn, batch = make(lab, huber_threshold=threshold, prioritized=prioritized, max_grad_norm=1.0, adam_eps=1e-2)
    online, target = copy.deepcopy(dqn.policy), copy.deepcopy(dqn.state.target)
    if prioritized:
        weight = torch.rand(64, generator=torch.Generator().manual_seed(0))
        batch = dataclasses.replace(batch, weight=weight)
    q = online.values(batch.obs)[torch.arange(64), batch.action, 0]
    with torch.no_grad():
        following = target.values(batch.next_obs)[..., 0].max(1).values
    expected = batch.reward + 0.99 * torch.where(batch.terminated, 0.0, 1.0) * following
    losses = nn.SmoothL1Loss(reduction="none")(q, expected) if threshold else 0.5 * (q - expected) ** 2
    loss = (losses * batch.weight).mean() if prioritized else losses.mean()
    adam = torch.optim.Adam(online.parameters(), lr=5e-4, eps=1e-2)
    loss.backward()
    nn.utils.clip_grad_norm_(online.parameters(), 1.0)
    adam.step()
    metrics = dqn.update(batch)
    torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(flat(dqn.policy), flat(online), atol=2e-6, rtol=0)
    if prioritized:
        torch.testing.assert_close(metrics["td_error"], (q - expected).abs().detach())
    else:
        assert "td_error" not in metrics


def test_categorical_target_is_the_projected_distribution_of_the_best_action(lab):
    dqn, batch = make(lab, head="categorical", n_atoms=5, v_min=-40.0, v_max=40.0)
    atoms = torch.linspace(-40, 40, 5)
    with torch.no_grad():
        probs = dqn.state.target.values(batch.next_obs).softmax(-1)
        best = (probs * atoms).sum(-1).argmax(-1)
        bootstrap = torch.where(batch.terminated, 0.0, batch.discount).unsqueeze(1)
        goal = categorical_projection(
            atoms, batch.reward.unsqueeze(1) + bootstrap * atoms, probs[torch.arange(64), best]
        )
        logits = dqn.policy.values(batch.obs)[torch.arange(64), batch.action]
    expected = -(goal * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(dqn.update(batch)["loss"], expected)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_every_combination_learns_and_moves_only_its_own_parameters(lab, head, dueling, noisy):
    config = {"head": head, "dueling": dueling, "exploration": "noisy" if noisy else "epsilon", "double_q": dueling}
    dqn, batch = make(lab, n_atoms=11, n_quantiles=7, v_min=-100.0, v_max=100.0, learning_rate=3e-3, **config)
    before, target = flat(dqn.policy), flat(dqn.state.target)
    losses = [float(dqn.update(batch)["loss"]) for _ in range(100)]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:10])
    assert not torch.equal(flat(dqn.policy), before)
    assert torch.equal(flat(dqn.state.target), target)
    assert all(p.grad is None for p in [*dqn.policy.parameters(), *dqn.state.target.parameters()])


def rank_by_hand(network, obs, noise, head, risk):
    """What actions are ranked by, straight from the papers."""
    if head == "implicit_quantile":
        even = (torch.arange(8) + 0.5) / 8 * risk
        return network.values(obs, noise, even.expand(64, 8)).mean(-1)
    values = network.values(obs, noise)
    if head == "categorical":
        return (values.softmax(-1) * torch.linspace(-100.0, 100.0, 11)).sum(-1)
    return values[..., : math.ceil(values.shape[-1] * risk)].mean(-1) if risk < 1 else values.mean(-1)


@pytest.mark.parametrize(
    ("head", "risk"),
    [("mean", 1.0), ("categorical", 1.0), ("quantile", 1.0), ("implicit_quantile", 1.0), ("implicit_quantile", 0.25)],
)
@pytest.mark.parametrize("double_q", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_next_action_is_chosen_by_one_network_and_judged_by_the_target(lab, told, head, risk, double_q, noisy):
    torch.manual_seed(0)
    parts = {"n_atoms": 11, "v_min": -100.0, "v_max": 100.0, "n_fractions": 5, "n_acting_fractions": 8}
    exploration = "noisy" if noisy else "epsilon"
    dqn, batch = make(lab, head=head, double_q=double_q, exploration=exploration, risk_level=risk, **parts)
    batch = dataclasses.replace(batch, next_obs={"policy": torch.randn(64, 3)})
    with torch.no_grad():  # so that networks and noise that differ decide otherwise
        for p in [*dqn.policy.parameters(), *dqn.state.target.parameters()]:
            p.copy_(torch.randn(p.shape))
    drawn = dqn._draw(64)
    dqn._draw = lambda rows: drawn
    seen = told(dqn)
    noise = drawn.get("noise", (None, None, None))
    policy, target = copy.deepcopy(dqn.policy), copy.deepcopy(dqn.state.target)
    dqn.update(batch)
    ((_, next_values, *_),) = seen
    with torch.no_grad():
        following = target.values(batch.next_obs, noise[1], drawn.get("next_fractions"))
        ranked = {
            (network, k): rank_by_hand(network, batch.next_obs, noise[k], head, risk).argmax(-1)
            for network in (policy, target)
            for k in (range(3) if noisy else (0,))
        }
        best = ranked.pop(((policy, 2) if double_q else (target, 1)) if noisy else (policy if double_q else target, 0))
        torch.testing.assert_close(next_values, following[torch.arange(64), best])
    assert all((other != best).any() for other in ranked.values())  # or the test could not tell them apart


@pytest.mark.parametrize(("tau", "interval"), [(1.0, 3), (0.25, 1), (0.5, 2)])
def test_the_target_moves_when_and_as_far_as_it_should(lab, tau, interval):
    dqn, batch = make(lab, tau=tau, target_update_interval=interval)
    for count in range(1, 7):
        before = flat(dqn.state.target)
        dqn.update(batch)
        expected = before + tau * (flat(dqn.policy) - before) if count % interval == 0 else before
        torch.testing.assert_close(flat(dqn.state.target), expected, atol=1e-7, rtol=0)
        if tau == 1 and count % interval == 0:
            assert torch.equal(flat(dqn.state.target), flat(dqn.policy))


def test_noisy_networks_draw_for_each_network_and_each_update(lab, told):
    dqn, batch = make(lab, exploration="noisy", double_q=True, learning_rate=1e-30)
    seen = told(dqn)
    for _ in range(2):
        dqn.update(batch)
    (one, next_one, *_), (two, next_two, *_) = seen
    assert not torch.equal(one, two)
    assert not torch.equal(next_one, next_two)
    with torch.no_grad():
        means = dqn.policy.values(batch.obs)[torch.arange(64), batch.action]
    assert not torch.equal(one, means)


def test_implicit_quantiles_are_drawn_apart_for_each_transition(lab, told):
    dqn, batch = make(lab, head="implicit_quantile", n_fractions=5)
    seen = told(dqn)
    dqn.update(batch)
    ((values, next_values, _, fractions),) = seen
    assert values.shape == next_values.shape == fractions.shape == (64, 5)
    assert len(set(fractions.flatten().tolist())) > 300
    assert float(fractions.min()) >= 0
    assert float(fractions.max()) < 1
    with torch.no_grad():
        at = dqn.state.target.values(batch.next_obs, None, fractions)
    assert not any(torch.equal(next_values, at[torch.arange(64), a]) for a in range(3))  # the target has its own


def test_epsilon_falls_linearly_over_its_fraction(lab):
    config = {"exploration_fraction": 0.5, "exploration_initial_eps": 1.0, "exploration_final_eps": 0.2}
    dqn, _ = make(lab, **config)
    levels = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        dqn.set_progress(progress, 1000)
        levels.append(float(dqn.policy.exploration_level))
    assert levels == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_epsilon_falls_exponentially_by_episode(lab):
    config = {"exploration_schedule": "exponential", "exploration_decay": 0.9, "exploration_final_eps": 0.05}
    dqn, _ = make(lab, **config)
    levels = []
    for episodes in (0, 1, 10, 100):
        dqn.set_progress(0.99, episodes)
        levels.append(float(dqn.policy.exploration_level))
    assert levels == pytest.approx([1.0, 0.9, 0.9**10, 0.05])


def test_learning_rate_schedule(lab):
    dqn, _ = make(lab, learning_rate=1e-2, learning_rate_schedule="linear")
    dqn.set_progress(0.75, 0)
    assert float(dqn.state.optimizer.learning_rate) == pytest.approx(2.5e-3)


def actions_of(dqn, obs, count=4000, seed=0):
    rows = {"policy": obs["policy"][:1].expand(count, -1)}
    return dqn.policy.act(rows, generator=torch.Generator().manual_seed(seed)).action


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_acts_at_random_that_often(lab, epsilon):
    dqn, batch = make(lab)
    dqn.policy.exploration_level.fill_(epsilon)
    best = int(dqn.policy({"policy": batch.obs["policy"][:1]})[0])
    share = torch.bincount(actions_of(dqn, batch.obs), minlength=3) / 4000
    for action in range(3):
        expected = epsilon / 3 + (1 - epsilon) * (action == best)
        assert float(share[action]) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("head", ["categorical", "quantile", "implicit_quantile"])
def test_what_learnt_for_the_mean_acts_at_a_level_of_risk(lab, head):
    dqn, batch = make(lab, head=head)
    careful, _ = make(lab, head=head, risk_level=0.25)
    own = {name: x for name, x in careful.policy.state_dict().items() if name == "head.fractions"}
    careful.policy.load_state_dict(dqn.policy.state_dict() | own)
    before = dqn.policy.scores(batch.obs)
    scores = dqn.policy.at_risk(0.25).scores(batch.obs)
    assert torch.equal(scores, careful.policy.scores(batch.obs))
    assert bool((scores < before).any())
    assert torch.equal(dqn.policy.scores(batch.obs), before)
    assert torch.equal(careful.policy.at_risk(1.0).scores(batch.obs), before)


def test_a_mean_has_no_risk(lab):
    policy = make(lab)[0].policy
    assert policy.at_risk(1.0) is not policy
    for level, message in ((0.5, "needs a distribution"), (0.0, "at most 1, got 0"), (1.5, "at most 1, got 1.5")):
        with pytest.raises(ConfigError, match=message):
            policy.at_risk(level)


@pytest.mark.parametrize(
    ("exploration", "level"), [("epsilon", {"exploration_rate"}), ("boltzmann", {"temperature"}), ("noisy", set())]
)
def test_what_explores_is_logged_by_its_name(lab, exploration, level):
    dqn, batch = make(lab, exploration=exploration)
    assert set(dqn.update(batch)) & {"exploration_rate", "temperature"} == level


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_boltzmann_draws_in_proportion(lab, temperature):
    dqn, batch = make(lab, exploration="boltzmann")
    dqn.policy.exploration_level.fill_(temperature)
    with torch.no_grad():
        scores = dqn.policy.scores({"policy": batch.obs["policy"][:1]})[0]
    weights = [math.exp((float(s) - float(scores.max())) / temperature) for s in scores]
    share = torch.bincount(actions_of(dqn, batch.obs), minlength=3) / 4000
    assert share.tolist() == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


def test_noisy_acting_explores_apart_and_deterministic_acting_does_not(lab):
    dqn, batch = make(lab, exploration="noisy")
    with torch.no_grad():
        for name, p in dqn.policy.named_parameters():
            if "sigma" in name:
                p.mul_(20)
    assert len(set(actions_of(dqn, batch.obs, 200).tolist())) > 1
    rows = {"policy": batch.obs["policy"][:1].expand(200, -1)}
    assert len(set(dqn.policy.act(rows, deterministic=True).action.tolist())) == 1


@pytest.mark.parametrize("head", HEADS)
def test_images(lab, head):
    dqn, batch = make(lab, lab.IMAGES, head=head, n_atoms=5, n_quantiles=5)
    before = flat(dqn.policy.encoder.images)
    metrics = dqn.update(batch)
    assert all(bool(v.isfinite()) for v in metrics.values())
    assert not torch.equal(flat(dqn.policy.encoder.images), before)


def test_the_normaliser_of_the_target_follows(lab):
    dqn, batch = make(lab, normalize_obs=True)
    dqn.update_normalizers(batch.obs, torch.ones(64, dtype=torch.bool))
    buffers = [dict(p.encoder.named_buffers()) for p in (dqn.policy, dqn.state.target)]
    assert buffers[0]
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])
    torch.testing.assert_close(dqn.policy.encoder.normalizers["policy"].mean, batch.obs["policy"].double().mean(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"risk_level": 0.5}, "risk_level needs a distribution"),
        ({"risk_level": 0.0, "head": "quantile"}, "risk_level must be in"),
        ({"gamma": 1.5}, "gamma must be in .0, 1."),
        ({"huber_threshold": 0.0}, "0 is for quantiles alone"),
        ({"huber_threshold": -1.0}, "must not be negative"),
        ({"exploration": "boltzmann", "exploration_final_eps": 0.0}, "exploration_final_eps must be positive"),
        ({"huber_threshold": 0.0, "head": "categorical"}, "0 is for quantiles alone"),
        ({"exploration": "noisy", "exploration_schedule": "exponential"}, "no epsilon to change"),
        ({"exploration_final_eps": -0.1}, "exploration_final_eps must be in .0, 1."),
        ({"exploration_initial_eps": 3.0}, "exploration_initial_eps must be in .0, 1."),
        ({"learning_starts": -1}, "learning_starts must not be negative"),
        ({"adam_eps": -1.0}, "adam_eps must not be negative"),
        ({"v_min": 1.0, "v_max": 1.0}, "v_min must be less"),
        ({"n_atoms": 1}, "n_atoms"),
        ({"tau": 0.0}, "tau"),
        ({"batch_size": 64, "buffer_size": 10}, "buffer_size"),
        ({"gradient_steps": 0}, "gradient_steps"),
        ({"priority_alpha": 1.5}, "priority_alpha"),
        ({"target_update_interval": 0}, "target_update_interval"),
    ],
)
def test_what_means_nothing_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        DQNConfig(**config)


def test_implicit_quantiles_of_raw_observations_are_refused(lab):
    # multiplied with an observation of 0 every quantile would be the same
    with pytest.raises(ConfigError, match="hidden needs two layers, got"):
        lab.dqn(lab.env(action="choice"), head="implicit_quantile", hidden=(16,))
    memory = MemoryConfig(kind="gru", size=8)
    for config in ({"hidden": (16, 16)}, {"hidden": (16,), "memory": memory}, {"hidden": (16,), "head": "quantile"}):
        lab.dqn(lab.env(action="choice"), **{"head": "implicit_quantile", **config})


@pytest.mark.parametrize("action", ["box", "choices"])
def test_other_actions_than_one_choice_are_refused(lab, action):
    with pytest.raises(ConfigError, match="needs one choice among several and toy has"):
        lab.dqn(lab.env(action=action))
