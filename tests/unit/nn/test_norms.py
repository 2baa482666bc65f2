"""Normalisation within a network: slow twins, first and second derivatives, one network and an ensemble."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from habilis.nn.norms import LayerNorm


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
