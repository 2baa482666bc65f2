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
