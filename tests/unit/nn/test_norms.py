"""Normalisation within a network: slow twins, first and second derivatives, one network and an ensemble."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from habilis.nn.norms import BatchRenorm, LayerNorm


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def scatter(module, generator):
    """Give every parameter a value of its own, so that gains of 1 and biases of 0 hide nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def test_layer_norm_is_pytorchs(generator):
    norm, x = scatter(LayerNorm(7), generator), torch.randn(4, 5, 7, generator=generator) * 3 + 1
    torch.testing.assert_close(norm(x), F.layer_norm(x, (7,), norm.weight, norm.bias))


def test_layer_norm_of_an_ensemble_has_gains_and_biases_for_each_copy(generator):
    norm, x = scatter(LayerNorm(3, 1, 7), generator), torch.randn(3, 5, 7, generator=generator)
    for k in range(3):
        expected = F.layer_norm(x[k], (7,), norm.weight[k, 0], norm.bias[k, 0])
        torch.testing.assert_close(norm(x)[k], expected)


def test_layer_norm_can_be_differentiated_twice(generator):
    norm = scatter(LayerNorm(2, 1, 5).double(), generator)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


def test_layer_norm_of_less_precise_input_is_computed_in_full_precision(generator):
    norm, x = scatter(LayerNorm(64), generator), torch.randn(4, 64, generator=generator).bfloat16()
    assert norm(x).dtype == torch.float32
    assert torch.equal(norm(x), norm(x.float()))


def renorm(x, norm, mean, var, r_max, d_max):
    """Batch renormalisation as in algorithm 1 of the paper, by automatic differentiation."""
    batch_mean, batch_std = x.mean(-2, keepdim=True), (x.var(-2, correction=0, keepdim=True) + 1e-3).sqrt()
    std = (var + 1e-3).sqrt()
    r = (batch_std / std).clamp(1 / r_max, r_max).detach()
    d = ((batch_mean - mean) / std).clamp(-d_max, d_max).detach()
    return norm.weight * ((x - batch_mean) / batch_std * r + d) + norm.bias


def spread(norm, generator):
    """Give the running statistics values near and far, on either side of what may be corrected."""
    mean, var = norm.running.chunk(2, -1)
    mean.copy_(torch.randn(mean.shape, generator=generator) * 10)
    var.copy_(torch.logspace(-2, 2, var.numel()).view(var.shape))
    return mean.clone(), var.clone()


@pytest.mark.parametrize("shape", [(9,), (2, 1, 9)])
@pytest.mark.parametrize(("updates", "r_max", "d_max"), [(9, 1, 0), (10, 3, 5), (11, 3, 5)])
def test_batch_renorm_is_that_of_the_paper(generator, shape, updates, r_max, d_max):
    norm = scatter(BatchRenorm(*shape, warmup=10), generator).double()
    mean, var = spread(norm, generator)
    norm.updates.fill_(updates)
    x = torch.randn(*shape[:-2], 6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    result, statistics = norm.learn(x)
    expected = renorm(x, norm, mean, var, r_max, d_max)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(statistics[..., :9].reshape(-1), x.mean(-2).reshape(-1))
    torch.testing.assert_close(statistics[..., 9:].reshape(-1), x.var(-2, correction=0).reshape(-1))
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    inputs = [x, norm.weight, norm.bias]
    for ours, twin in zip(
        torch.autograd.grad((result * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, twin)
    # nothing has changed by looking
    torch.testing.assert_close(norm.running, torch.cat([mean, var], -1))
    assert norm.updates == updates


def test_renormalised_batch_is_what_running_statistics_give_where_the_correction_is_free(generator):
    norm = scatter(BatchRenorm(4, warmup=0), generator)
    x = torch.randn(64, 4, generator=generator) * torch.tensor([0.5, 1.0, 1.5, 2.0]) + 1
    torch.testing.assert_close(norm.learn(x)[0], norm(x), rtol=1e-4, atol=1e-4)
    # while plain batch normalisation is something else
    norm.warmup = 10
    assert not torch.allclose(norm.learn(x)[0], norm(x), atol=0.1)


def test_running_statistics_approach_those_of_the_data(generator):
    norm = BatchRenorm(3, warmup=5)
    draw = lambda: torch.randn(256, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.1]) + torch.tensor([0.0, 5, -1])  # noqa: E731
    first = norm.learn(draw())[1]
    norm.update(first)
    # one update moves them by a hundredth of the way
    torch.testing.assert_close(norm.running, torch.tensor([0.0, 0, 0, 1, 1, 1]).lerp(first, 0.01))
    for _ in range(1000):
        norm.update(norm.learn(draw())[1])
    assert norm.updates == 1001
    expected = torch.tensor([0.0, 5, -1, 1, 4, 0.01])
    torch.testing.assert_close(norm.running, expected, rtol=0.05, atol=0.05)
    normalized = norm(draw())
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), atol=0.2, rtol=0)


def test_a_batch_that_is_not_finite_does_not_spoil_the_running_statistics(generator):
    norm = BatchRenorm(2, warmup=5)
    x = torch.randn(8, 2, generator=generator)
    x[3, 0] = float("nan")
    norm.update(norm.learn(x)[1])
    assert norm.running.isfinite().all()
    assert norm.running[0] == 0
    assert norm.running[1] != 0


def test_batch_renorm_of_large_offsets_keeps_its_precision(generator):
    norm, x = BatchRenorm(2, warmup=5), torch.randn(256, 2, generator=generator)
    torch.testing.assert_close(norm.learn(x + 1000)[0], norm.learn(x)[0], atol=1e-3, rtol=0)
