"""The hyperbolic tangent, however it is computed."""

from __future__ import annotations

import pytest
import torch

from habilis.nn.activations import Tanh


@pytest.mark.parametrize("rows", [2, 100])
def test_the_tangent_and_its_first_two_derivatives_whether_few_values_or_many(rows):
    x = torch.linspace(-12, 12, rows * 64).view(rows, 64).requires_grad_()
    exact = x.detach().double().tanh()
    y = Tanh()(x)
    torch.testing.assert_close(y.double(), exact, atol=2e-7, rtol=0)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(slope.double(), 1 - exact.square(), atol=1e-6, rtol=0)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(curvature.double(), -2 * exact * (1 - exact.square()), atol=2e-6, rtol=0)


def test_the_tangent_of_what_has_no_bounds_and_is_no_number():
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0]).repeat(2048)
    assert Tanh()(x)[:2].tolist() == [-1.0, 1.0]
    assert Tanh()(x)[2].isnan()
    assert Tanh()(x)[3] == 0


def test_the_tangent_under_functional_transforms_and_in_half_precision():
    x = torch.linspace(-3, 3, 2 * 8192).view(2, 8192)
    slope = 1 - x.tanh().square()
    torch.testing.assert_close(torch.func.grad(lambda x: Tanh()(x).sum())(x), slope, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.func.jvp(Tanh(), (x,), (torch.ones_like(x),))[1], slope, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.vmap(Tanh())(x), x.tanh(), atol=2e-7, rtol=0)
    assert torch.equal(Tanh()(x.bfloat16()), x.bfloat16().tanh())
