"""Action distributions: by hand, against torch.distributions, by integration, and by counting draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td

from habilis.nn.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_gaussian_by_hand():
    # mean 0, deviation 1, at 0, twice: -log(2 pi); entropy 1 + log(2 pi)
    d = Gaussian(torch.zeros(2), torch.zeros(2))
    assert float(d.log_prob(torch.zeros(2))) == pytest.approx(-math.log(2 * math.pi))
    assert float(d.entropy()) == pytest.approx(1 + math.log(2 * math.pi))


@pytest.mark.parametrize("per_state", [False, True])
def test_gaussian_against_torch(generator, per_state):
    mean, action = torch.randn(5, 4, 3, generator=generator), torch.randn(5, 4, 3, generator=generator)
    log_std = torch.randn(5, 4, 3, generator=generator) if per_state else torch.randn(3, generator=generator)
    ours, theirs = Gaussian(mean, log_std), td.Independent(td.Normal(mean, log_std.exp().expand(5, 4, 3)), 1)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert ours.entropy().shape == (5, 4)
    assert ours.mode() is mean


def test_gaussian_samples_have_its_moments(generator):
    d = Gaussian(torch.tensor([1.0, -2.0]).expand(200_000, 2), torch.tensor([0.5, 2.0]).log())
    sample, log_prob = d.sample(torch.randn(200_000, 2, generator=generator))
    torch.testing.assert_close(log_prob, d.log_prob(sample), atol=1e-5, rtol=1e-5)
    # standard errors: 2 / sqrt(200,000) = 0.0045 and 2 / sqrt(400,000) = 0.0032
    torch.testing.assert_close(sample.mean(0), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(sample.std(0), torch.tensor([0.5, 2.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.3), (-0.5, 0.8)])
def test_squashed_density_integrates_to_one(mean, std):
    d = SquashedGaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([math.log(std)], dtype=torch.float64))
    edges = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    total = d.log_prob(middle.unsqueeze(-1)).exp().sum() * (edges[1] - edges[0])
    assert float(total) == pytest.approx(1, abs=1e-4)


def test_squashed_log_prob_by_hand():
    # at 0, standard normal: -log sqrt(2 pi), and the tangent has slope 1 there
    d = SquashedGaussian(torch.zeros(1), torch.zeros(1))
    assert float(d.log_prob(torch.zeros(1))) == pytest.approx(-0.5 * math.log(2 * math.pi))
    # at a = 1/2: u = atanh(1/2) = log(3) / 2, slope 1 - 1/4
    u = math.log(3) / 2
    expected = -0.5 * u * u - 0.5 * math.log(2 * math.pi) - math.log(0.75)
    assert float(d.log_prob(torch.tensor([0.5]))) == pytest.approx(expected, rel=1e-6)


def test_squashed_against_torch(generator):
    mean, log_std = torch.randn(50, 3, generator=generator), torch.randn(50, 3, generator=generator) * 0.3
    theirs = td.Independent(td.TransformedDistribution(td.Normal(mean, log_std.exp()), td.TanhTransform()), 1)
    ours = SquashedGaussian(mean, log_std)
    action = torch.tanh(torch.randn(50, 3, generator=generator))
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.mode(), torch.tanh(mean))


def test_squashed_sample_agrees_with_its_log_prob(generator):
    d = SquashedGaussian(torch.randn(100, 2, generator=generator), torch.full((100, 2), -0.7))
    again = torch.Generator().set_state(generator.get_state())
    action, log_prob = d.sample(torch.randn(100, 2, generator=generator))
    torch.testing.assert_close(log_prob, d.log_prob(action), atol=1e-3, rtol=1e-3)
    assert torch.equal(action, d.sample(torch.randn(100, 2, generator=again))[0])


def test_squashed_log_prob_of_saturated_samples_is_exact(generator):
    mean, log_std = torch.tensor([[9.0, -12.0]]), torch.tensor([[0.0, 0.0]])
    noise = torch.randn(1, 2, generator=generator)
    action, log_prob = SquashedGaussian(mean, log_std).sample(noise)
    u = mean.double() + noise.double()
    exact = td.Normal(mean.double(), 1.0).log_prob(u) - torch.log1p(-torch.tanh(u).square())
    assert (action.abs() > 1 - 1e-6).all()
    torch.testing.assert_close(log_prob.double(), exact.sum(-1), atol=1e-2, rtol=1e-4)
    assert SquashedGaussian(mean, log_std).log_prob(torch.tensor([[1.0, -1.0]])).isfinite().all()


def test_squashed_samples_carry_gradients(generator):
    mean, log_std = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    noise = torch.randn(4, 2, generator=generator)
    action, log_prob = SquashedGaussian(mean, log_std).sample(noise)
    by_mean, by_std = torch.autograd.grad(action.sum(), (mean, log_std), retain_graph=True)
    # da/dmean = 1 - a^2; da/dlog_std = (1 - a^2) std noise
    torch.testing.assert_close(by_mean, 1 - action.detach().square())
    torch.testing.assert_close(by_std, (1 - action.detach().square()) * noise)
    # dlog_prob/dmean = 2 tanh(u): the density falls by the slope alone, the noise is given
    torch.testing.assert_close(torch.autograd.grad(log_prob.sum(), mean)[0], 2 * action.detach())


def test_categorical_by_hand():
    d = Categorical(torch.tensor([0.0, math.log(3.0)]))
    assert float(d.log_prob(torch.tensor(1))) == pytest.approx(math.log(0.75))
    assert float(d.entropy()) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert int(d.mode()) == 1


def test_categorical_against_torch(generator):
    logits = torch.randn(6, 5, 4, generator=generator) * 3
    action = torch.randint(4, (6, 5), generator=generator)
    ours, theirs = Categorical(logits), td.Categorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_gumbel_draws_have_the_right_frequencies(generator):
    p = torch.tensor([0.5, 0.3, 0.15, 0.049, 0.001])
    n = 200_000
    choices, log_prob = Categorical(p.log().expand(n, 5)).sample(torch.rand(n, 5, generator=generator))
    counts = torch.bincount(choices, minlength=5)
    torch.testing.assert_close(log_prob, p.log()[choices])
    chi_square = float(((counts - n * p).square() / (n * p)).sum())
    assert chi_square < 18.5  # exceeded once in a thousand with four degrees of freedom


def test_multi_categorical_is_its_parts_side_by_side(generator):
    logits = torch.randn(3, 6, generator=generator)
    d = MultiCategorical(logits, (2, 4))
    first, second = td.Categorical(logits=logits[:, :2]), td.Categorical(logits=logits[:, 2:])
    action, log_prob = d.sample(torch.rand(3, 6, generator=generator))
    assert action.shape == (3, 2)
    torch.testing.assert_close(log_prob, d.log_prob(action))
    torch.testing.assert_close(d.log_prob(action), first.log_prob(action[:, 0]) + second.log_prob(action[:, 1]))
    torch.testing.assert_close(d.entropy(), first.entropy() + second.entropy())
    assert torch.equal(d.mode(), torch.stack([logits[:, :2].argmax(-1), logits[:, 2:].argmax(-1)], -1))


def test_divergence_of_gaussians_by_hand_and_against_torch(generator):
    one = Gaussian(torch.tensor([1.0]), torch.tensor([0.0]))
    other = Gaussian(torch.tensor([0.0]), torch.tensor([math.log(2.0)]))
    # KL(N(0, 2) | N(1, 1)) = log(1/2) + (4 + 1) / 2 - 1/2
    assert float(one.kl_from(other.parameters())) == pytest.approx(math.log(0.5) + 2.0)
    p, q = (Gaussian(*torch.randn(2, 6, 3, generator=generator)) for _ in range(2))
    expected = td.kl_divergence(*(td.Normal(x.mean, x.log_std.exp()) for x in (p, q))).sum(-1)
    torch.testing.assert_close(q.kl_from(p.parameters()), expected)
    assert float(p.kl_from(p.parameters()).abs().max()) < 1e-6


def test_divergence_of_choices_against_torch(generator):
    p, q = (torch.randn(6, 5, generator=generator) for _ in range(2))
    expected = td.kl_divergence(td.Categorical(logits=p), td.Categorical(logits=q))
    torch.testing.assert_close(Categorical(q).kl_from(Categorical(p).parameters()), expected)
    parts = [
        td.kl_divergence(td.Categorical(logits=a), td.Categorical(logits=b))
        for a, b in zip(p.split([3, 2], -1), q.split([3, 2], -1), strict=True)
    ]
    several = MultiCategorical(q, (3, 2)).kl_from(MultiCategorical(p, (3, 2)).parameters())
    torch.testing.assert_close(several, parts[0] + parts[1])
