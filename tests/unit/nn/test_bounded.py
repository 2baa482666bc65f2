"""Bounded and hybrid distributions and their heads: by hand, against torch.distributions, by integration, by counting.

Samples are held to their own densities: what has been drawn must fall into equal shares of probability equally often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch.fx.experimental.proxy_tensor import make_fx

from habilis.core.acceleration import configure
from habilis.core.errors import ConfigError
from habilis.core.specs import BoxAction, DiscreteAction, HybridAction, MultiDiscreteAction
from habilis.nn.distributions import Beta, Categorical, Gaussian, Hybrid, MultiCategorical, SquashedGaussian, deviation
from habilis.nn.heads import (
    BetaHead,
    CategoricalHead,
    GaussianHead,
    HybridHead,
    SquashedGaussianHead,
    StateDependentNoise,
    make_head,
    require_head,
)

BOX = BoxAction(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
HYBRID = HybridAction(BOX, MultiDiscreteAction((3, 2)))
CONCENTRATIONS = [(1.01, 1.3), (2.0, 5.0), (40.0, 3.0), (500.0, 900.0)]


@dataclass(frozen=True)
class Config:
    distribution: str = "gaussian"
    std_type: str = "independent"
    init_std: float = 0.5
    final_std: float = 0.1
    use_sde: bool = False
    sde_sample_freq: int = -1


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def beta_noise(rows, dim, generator):
    shape = (rows, dim, *Beta.NOISE[:-1])
    return torch.stack([torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)], -1)


def beta(a, b):
    """Return the Beta distribution of parameters, which may well be known by no more than them here."""
    return Beta(a - 1, b - 1)


def test_squashed_density_and_entropy_by_hand():
    """At u = log(3) / 2, whose tangent is 1/2 with slope 3/4; a narrow normal there has the entropy of its line."""
    u = math.log(3) / 2
    d = Gaussian(torch.tensor([0.0]), torch.tensor([0.0]), squashed=True)
    expected = -0.5 * u * u - 0.5 * math.log(2 * math.pi) - math.log(0.75)
    assert float(d.log_prob(torch.tensor([u]))) == pytest.approx(expected, rel=1e-6)
    narrow = Gaussian(torch.tensor([u]), torch.tensor([-7.0]), squashed=True)
    line = -7.0 + 0.5 + 0.5 * math.log(2 * math.pi) + math.log(0.75)
    assert float(narrow.entropy()) == pytest.approx(line, abs=1e-5)
    assert float(narrow.mode()) == pytest.approx(u)


def test_squashed_is_the_change_of_variables(generator):
    """The twin takes the action after the tangent; away from saturation both say the same."""
    mean, log_std = torch.randn(50, 3, generator=generator), torch.randn(50, 3, generator=generator) * 0.3
    noise = torch.randn(50, 3, generator=generator) * 0.5
    ours, twin = Gaussian(mean, log_std, squashed=True), SquashedGaussian(mean, log_std)
    action, log_prob = ours.sample(noise)
    torch.testing.assert_close(log_prob, ours.log_prob(action), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_prob, twin.sample(noise)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(action.tanh(), twin.sample(noise)[0])
    theirs = td.Independent(td.TransformedDistribution(td.Normal(mean, log_std.exp()), td.TanhTransform()), 1)
    torch.testing.assert_close(log_prob, theirs.log_prob(action.tanh()), atol=1e-3, rtol=1e-3)


def test_squashed_density_of_a_saturated_action_is_exact():
    """Where the tangent is 1 in float32 the density still tells 12 from 13."""
    d = Gaussian(torch.tensor([12.0]), torch.tensor([0.0]), squashed=True)
    twelve, thirteen = (float(d.log_prob(torch.tensor([u]))) for u in (12.0, 13.0))
    # the slope is 4 exp(-2 u): one more is 2 of its logarithm, less a half for the distance from the mean
    assert thirteen - twelve == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0])
def test_squashed_entropy_by_integration(mean, std):
    u = torch.linspace(mean - 10 * std, mean + 10 * std, 200_001, dtype=torch.float64)
    d = Gaussian(torch.tensor([mean]).double(), torch.tensor([std]).double().log(), squashed=True)
    log_prob = d.log_prob(u.unsqueeze(-1))
    normal = td.Normal(mean, std).log_prob(u).exp() * (u[1] - u[0])
    assert float(d.entropy()) == pytest.approx(float(-(normal * log_prob).sum()), abs=4e-3)
    # over the tangent the density is one: dx = slope du
    slope = 1 - u.tanh().square()
    assert float((log_prob.exp() * slope).sum() * (u[1] - u[0])) == pytest.approx(1.0, abs=1e-6)


def test_squashing_leaves_divergence_and_information_alone(generator):
    parameters = torch.randn(2, 6, 3, generator=generator), torch.randn(2, 6, 3, generator=generator) * 0.2
    plain, squashed = ([Gaussian(m, s, squashed=q) for m, s in zip(*parameters, strict=True)] for q in (False, True))
    assert torch.equal(squashed[1].kl_from(squashed[0].parameters()), plain[1].kl_from(plain[0].parameters()))
    # estimated from densities of samples it is the same, the slopes cancelling
    noise = torch.randn(100_000, 6, 3, generator=generator)
    action, log_prob = squashed[0].sample(noise)
    estimate = (log_prob - squashed[1].log_prob(action)).mean(0)
    torch.testing.assert_close(estimate, squashed[1].kl_from(squashed[0].parameters()), rtol=0.03, atol=0.03)


def test_beta_by_hand():
    """Beta(2, 3) has the density 12 x (1 - x)^2 on [0, 1], half of that on [-1, 1]; its peak is at 1/3."""
    d = Beta(torch.tensor([1.0]), torch.tensor([2.0]))
    assert float(d.log_prob(torch.tensor([-0.5]))) == pytest.approx(math.log(6 * 0.25 * 0.75**2), rel=1e-5)
    assert float(d.mode()) == pytest.approx(2 / 3 - 1)
    # the variance is 6 / (25 * 6)
    assert float(d.std()) == pytest.approx(2 * math.sqrt(0.04))


@pytest.mark.parametrize("outputs", [(-13.0, -13.7), (-12.0, -9.0), (-5.0, -8.0), (0.5, -13.0), (8.0, 9.0)], ids=str)
def test_the_peak_of_a_nearly_uniform_beta_is_exact(outputs, generator):
    """Of small outputs of a head, 1 more and then 1 less is one of a few multiples of float32's rounding."""
    head = BetaHead(3, 1, 0.4, generator)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.copy_(torch.tensor(outputs))
        d = head(torch.zeros(1, 3))
    up, down = (math.log1p(math.exp(x)) for x in outputs)
    up, down = max(up, 1e-6), max(down, 1e-6)  # what a head gives at least
    assert d.mode().item() == pytest.approx((up - down) / (up + down), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), CONCENTRATIONS)
def test_beta_against_torch(a, b, generator):
    ours, theirs = beta(torch.tensor([[a]]), torch.tensor([[b]])), td.Beta(torch.tensor([a]), torch.tensor([b]))
    share = theirs.mean + torch.linspace(-2, 2, 9).unsqueeze(-1) * theirs.stddev
    share = share.clamp(0.01, 0.99)
    torch.testing.assert_close(
        ours.log_prob(2 * share - 1), (theirs.log_prob(share) - math.log(2))[:, 0], atol=2e-3, rtol=1e-3
    )
    assert float(ours.entropy()) == pytest.approx(float(theirs.entropy()) + math.log(2), abs=1e-3)
    assert float(ours.std()) == pytest.approx(2 * float(theirs.stddev), rel=1e-5)
    double = beta(torch.tensor([[a]]).double(), torch.tensor([[b]]).double())
    x = torch.linspace(-1, 1, 400_001, dtype=torch.float64).unsqueeze(-1)
    assert float(double.log_prob(x).exp().sum() * (x[1] - x[0])) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("a", "b"), CONCENTRATIONS)
def test_beta_draws_fall_where_the_density_says(a, b, generator):
    n = 100_000
    d = beta(torch.tensor([a]).expand(n, 1), torch.tensor([b]).expand(n, 1))
    action, log_prob = d.sample(beta_noise(n, 1, generator))
    assert torch.equal(log_prob, d.log_prob(action))
    assert bool((action.abs() < 1).all())
    x = np.linspace(1e-9, 1 - 1e-9, 200_001)
    density = td.Beta(torch.tensor(a).double(), torch.tensor(b).double()).log_prob(torch.from_numpy(x)).exp().numpy()
    cumulative = np.cumsum(density) / density.sum()
    ranks = np.interp((action[:, 0].double().numpy() + 1) / 2, x, cumulative)
    counts, _ = np.histogram(ranks, 20, (0, 1))
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 43.8  # exceeded once in a thousand with 19 degrees of freedom


def test_beta_draws_are_finite_where_no_proposal_is_accepted():
    """Both gamma variates are at their floor then, which must not itself be a number that counts as 0."""
    configure(threads=1, precision="highest")  # from where on tiny numbers do
    tenth = torch.full((1, 1), 0.1)
    noise = torch.full((1, 1, *Beta.NOISE), -10.0)
    action, log_prob = Beta(tenth, tenth).sample(noise)
    assert action.item() == 0
    assert log_prob.isfinite().all()


def test_beta_divergence_and_information(generator):
    a, b, c, d = torch.rand(4, 5, 2, generator=generator).double() * 20 + 1.01
    p, q = beta(a, b), beta(c, d)
    expected = td.kl_divergence(td.Beta(a, b), td.Beta(c, d)).sum(-1)
    torch.testing.assert_close(q.kl_from(p.parameters()), expected)
    # the information is the curvature of the divergence where both are the same
    flat = torch.stack([a, b]).requires_grad_()
    tangents = torch.randn(2, 5, 2, generator=generator).double()
    kl = beta(*flat).kl_from((a, b)).sum()
    (slope,) = torch.autograd.grad(kl, flat, create_graph=True)
    (curvature,) = torch.autograd.grad((slope * tangents).sum(), flat)
    torch.testing.assert_close(torch.stack(p.fisher(tangents.unbind())), curvature)


def test_beta_gradient_of_the_density_against_torch(generator):
    a, b = (torch.rand(7, 2, generator=generator) * 5 + 1.1).requires_grad_(), torch.full((7, 2), 3.0).requires_grad_()
    action = torch.rand(7, 2, generator=generator) * 1.8 - 0.9
    ours = torch.autograd.grad((beta(a, b).log_prob(action) + 0.1 * beta(a, b).entropy()).sum(), (a, b))
    theirs = td.Beta(a, b)
    loss = (theirs.log_prob((action + 1) / 2) + 0.1 * theirs.entropy()).sum()
    for one, other in zip(ours, torch.autograd.grad(loss, (a, b)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_beta_sampling_is_straight_line_code(generator):
    """Recorded with one noise it answers to another: no branch on what was drawn."""
    a, b = torch.full((300, 2), 1.1), torch.full((300, 2), 2.0)
    first, second = beta_noise(300, 2, generator), beta_noise(300, 2, generator)
    recording = make_fx(lambda a, b, noise: beta(a, b).sample(noise))(a, b, first)
    assert torch.equal(recording(a, b, second)[0], beta(a, b).sample(second)[0])


def make_hybrid(generator, kind="gaussian"):
    features = torch.randn(4, 5, generator=generator)
    return make_head(HYBRID, 5, Config(kind), generator), features


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "beta"])
def test_hybrid_is_its_parts_side_by_side(generator, kind):
    head, features = make_hybrid(generator, kind)
    d = head(features)
    assert isinstance(head, HybridHead)
    assert head.squashed == (kind == "squashed")
    noise = head.noise(4, generator)
    action, log_prob = d.sample(noise)
    assert action.shape == (4, 4)
    assert action.dtype == torch.float32
    real, choices = action[:, :2], action[:, 2:].long()
    assert torch.equal(action[:, 2:], choices.float())
    torch.testing.assert_close(log_prob, d.log_prob(action), atol=1e-5, rtol=1e-5)
    first, second = (td.Categorical(logits=x) for x in head.choices.logits(features).split([3, 2], -1))
    of_choices = first.log_prob(choices[:, 0]) + second.log_prob(choices[:, 1])
    torch.testing.assert_close(d.log_prob(action), d.real.log_prob(real) + of_choices)
    torch.testing.assert_close(d.entropy(), d.real.entropy() + first.entropy() + second.entropy())
    assert torch.equal(d.mode()[:, :2], d.real.mode())
    other = make_hybrid(torch.Generator().manual_seed(1), kind)[0](features)
    kl = other.real.kl_from(d.real.parameters()) + other.choices.kl_from(d.choices.parameters())
    torch.testing.assert_close(other.kl_from(d.parameters()), kl)
    assert float(d.kl_from(d.parameters()).detach().abs().max()) < 1e-6
    tangents = [torch.randn(x.shape, generator=generator) for x in d.parameters()]
    expected = (*d.real.fisher(tangents[:2]), *d.choices.fisher(tangents[2:]))
    for one, wanted in zip(d.fisher(tangents), expected, strict=True):
        assert torch.equal(one, wanted)


def test_deviation_is_a_scalar_of_real_values_alone(generator):
    logits = torch.zeros(3, 4)
    assert deviation(Categorical(logits)) == deviation(MultiCategorical(logits, (2, 2))) == {}
    gaussian = Gaussian(torch.zeros(3, 2), torch.tensor([0.2, 0.4]).log())
    assert float(deviation(gaussian)["std"]) == pytest.approx(0.3)
    assert float(deviation(Hybrid(gaussian, MultiCategorical(logits, (2, 2))))["std"]) == pytest.approx(0.3)


def test_heads_by_configuration(generator):
    features = torch.randn(6, 5, generator=generator)
    heads = {kind: make_head(BOX, 5, Config(kind), generator) for kind in ("gaussian", "squashed", "beta")}
    assert [type(h) for h in heads.values()] == [GaussianHead, GaussianHead, BetaHead]
    assert [h.squashed for h in heads.values()] == [False, True, False]
    assert isinstance(heads["squashed"](features), Gaussian)
    assert heads["squashed"](features).squashed
    assert isinstance(make_head(DiscreteAction(3), 5, Config(init_std=1.0), generator), CategoricalHead)
    assert make_head(BOX, 5, Config(), generator).sde is None
    unbounded = BoxAction(np.array([-1, -np.inf], np.float32), np.array([1, 1], np.float32))
    for kind in ("squashed", "beta"):
        with pytest.raises(ConfigError, match=f"'{kind}' needs bounds"):
            make_head(unbounded, 5, Config(kind), generator)
    make_head(unbounded, 5, Config(), generator)
    for action in (HYBRID, DiscreteAction(3)):
        with pytest.raises(ConfigError, match="use_sde is for real-valued actions"):
            make_head(action, 5, Config(use_sde=True), generator)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init_std": 0.0}, "init_std must be positive, got 0.0"),
        ({"sde_sample_freq": 0}, "sde_sample_freq must be positive"),
        ({"distribution": "beta", "std_type": "dependent"}, "a Beta has no deviation of its own"),
        ({"use_sde": True, "std_type": "fixed"}, "the noise's own"),
        ({"use_sde": True, "distribution": "beta"}, "of which a Beta is not made"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        require_head(Config(**wrong))
    require_head(Config())


@pytest.mark.parametrize(("init_std", "first"), [(0.3, 0.3), (0.05, 0.05), (1.0, 0.478)])
def test_a_beta_head_begins_with_its_deviation_in_the_middle(generator, init_std, first):
    """Of Beta(1 + log 2, 1 + log 2) it is 0.478: the widest that it begins with."""
    d = BetaHead(5, 2, init_std, generator)(torch.zeros(3, 5))
    assert float(d.mode().detach().abs().max()) < 1e-5
    torch.testing.assert_close(d.std(), torch.full((3, 2), first), rtol=1e-3, atol=1e-3)


def test_a_beta_head_stays_finite(generator):
    head = BetaHead(5, 2, 0.3, generator)
    with torch.no_grad():
        head.out.weight.normal_(generator=generator)
    d = head(torch.randn(100, 5, generator=generator) * 1e6)
    action, log_prob = d.sample(head.noise(100, generator))
    for x in (action, log_prob, d.entropy(), d.mode(), d.std(), d.log_prob(torch.ones(100, 2)), *d.parameters()):
        assert x.isfinite().all()
    (gradient,) = torch.autograd.grad((d.log_prob(action) + d.entropy()).sum(), head.out.weight)
    assert gradient.isfinite().all()


def test_state_dependent_noise_by_hand():
    """Features (3, 4), deviations (1, 2) of the first action: variance 9 + 64; the noise is linear in the features."""
    sde = StateDependentNoise(2, 2, 1.0, -1)
    # where every feature is 1 or -1, as from a saturated tangent, the first deviation is what was asked for
    torch.testing.assert_close(sde(torch.tensor([[1.0, -1.0]])).exp(), torch.ones(1, 2))
    sde.log_std.data.copy_(torch.tensor([[1.0, 0.5], [2.0, 0.25]]).log())
    features = torch.tensor([[3.0, 4.0], [-6.0, -8.0]])
    torch.testing.assert_close(sde(features).exp()[0], torch.tensor([math.sqrt(73), math.sqrt(2.25 + 1)]))
    matrix = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]]).expand(2, 2, 2)
    standard = sde.standard(features, matrix)
    # 3 * 1 * 1 + 4 * 2 * 0.5 and 3 * 0.5 * -1 + 4 * 0.25 * 2
    torch.testing.assert_close((standard * sde(features).exp())[0], torch.tensor([7.0, 0.5]))
    torch.testing.assert_close(standard[1], -standard[0], atol=1e-5, rtol=1e-5)


def test_state_dependent_noise_has_the_deviation_it_tells(generator):
    sde = StateDependentNoise(8, 3, 0.7, -1)
    sde.log_std.data.normal_(generator=generator)
    features = torch.randn(1, 8, generator=generator).expand(100_000, 8)
    matrix = sde.hold({}, 100_000, generator)[sde.MATRIX]
    standard = sde.standard(features, matrix)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(3), atol=0.01, rtol=0)


@pytest.mark.parametrize("freq", [-1, 3])
def test_matrices_are_held_until_their_time_or_the_episode_is_over(generator, freq):
    sde = StateDependentNoise(2, 1, 1.0, freq)
    memory, seen = {}, []
    for step in range(8):
        if step == 5:  # the first environment begins a new episode
            memory = {k: v.clone() for k, v in memory.items()}
            for value in memory.values():
                value[0] = 0
        memory = sde.hold(memory, 2, generator)
        seen.append(memory[sde.MATRIX])
    fresh = [[step for step in range(1, 8) if not torch.equal(seen[step][n], seen[step - 1][n])] for n in (0, 1)]
    assert fresh == ([[5], []] if freq == -1 else [[3, 5], [3, 6]])
    assert memory[sde.AGE].tolist() == [3, 8]


@pytest.mark.parametrize("make", ["gaussian", "squashed_head"])
def test_heads_with_state_dependent_noise(generator, make):
    sde = StateDependentNoise(4, 2, 0.5, -1)
    if make == "gaussian":
        head = GaussianHead(4, 2, "independent", 0.5, 0.1, generator, sde=sde)
        assert set(dict(head.named_parameters())) == {"mean.weight", "mean.bias", "sde.log_std"}
        assert not list(head.buffers())
    else:
        head = SquashedGaussianHead(4, 2, generator, sde)
        assert set(dict(head.named_parameters())) == {"out.weight", "out.bias", "sde.log_std"}
    features = torch.randn(6, 4, generator=generator).requires_grad_()
    d = head(features)
    torch.testing.assert_close(d.log_std, sde(features))
    (gradient,) = torch.autograd.grad(d.log_std.sum(), features, allow_unused=True)
    # on-policy, features are learnt for the mean alone; SAC learns them for both
    assert (gradient is None) == (make == "gaussian")
