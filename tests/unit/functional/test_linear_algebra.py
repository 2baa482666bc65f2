"""Conjugate gradients against dense solves, Fisher products against Hessians of the divergence."""

from __future__ import annotations

import pytest
import torch

from habilis.functional.linear_algebra import conjugate_gradient, flatten, gauss_newton_product
from habilis.nn.distributions import Categorical, Gaussian, MultiCategorical


def definite(size, seed=0, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g, dtype=torch.float64) * spread
    return root @ root.T + torch.eye(size, dtype=torch.float64), torch.randn(size, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_as_many_steps_as_unknowns_solve_exactly(size):
    matrix, b = definite(size)
    x = conjugate_gradient(lambda v: matrix @ v, b, 2 * size, tolerance=1e-24)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), atol=1e-9, rtol=1e-9)


def test_two_unknowns_by_hand():
    """The textbook's example: A = [[4, 1], [1, 3]], b = [1, 2]; one step from 0 is b (b.b / b.Ab) = b / 4."""
    matrix, b = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    assert conjugate_gradient(lambda v: matrix @ v, b, 1).tolist() == pytest.approx([0.25, 0.5])
    assert conjugate_gradient(lambda v: matrix @ v, b, 2).tolist() == pytest.approx([1 / 11, 7 / 11])


def test_fewer_steps_are_nearer_with_each():
    matrix, b = definite(30)
    exact = torch.linalg.solve(matrix, b)

    def distance(steps):
        error = conjugate_gradient(lambda v: matrix @ v, b, steps) - exact
        return float(error @ matrix @ error)

    distances = [distance(steps) for steps in range(0, 30, 3)]
    assert distances == sorted(distances, reverse=True)


def test_steps_after_the_solution_change_nothing():
    matrix, b = definite(5)
    solved = conjugate_gradient(lambda v: matrix @ v, b, 6)
    assert torch.equal(conjugate_gradient(lambda v: matrix @ v, b, 60), solved)
    assert not conjugate_gradient(lambda v: matrix @ v, torch.zeros_like(b), 5).any()


def network(outputs):
    torch_generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(*s, generator=torch_generator, dtype=torch.float64) for s in ((3, 5), (5, outputs))]
    x = torch.randn(8, 3, generator=torch_generator, dtype=torch.float64)
    return [w.requires_grad_() for w in weights], lambda a, b: torch.tanh(x @ a) @ b


def gaussian(weights, function):
    return Gaussian(function(*weights[:2]), weights[2])


DISTRIBUTIONS = {
    "gaussian": (2, [torch.tensor([0.3, -0.2], dtype=torch.float64)], gaussian),
    "fixed deviation": (2, [], lambda w, f: Gaussian(f(*w), torch.tensor([0.3, -0.2], dtype=torch.float64))),
    "dependent deviation": (4, [], lambda w, f: Gaussian(*f(*w).chunk(2, -1))),
    "categorical": (4, [], lambda w, f: Categorical(f(*w))),
    "several": (5, [], lambda w, f: MultiCategorical(f(*w), (3, 2))),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_fisher_products_equal_the_hessian_of_the_divergence(kind):
    outputs, more, make = DISTRIBUTIONS[kind]
    weights, function = network(outputs)
    weights = weights + [w.clone().requires_grad_() for w in more]
    distribution = make(weights, function)
    old = [p.detach() for p in distribution.parameters()]
    sizes = [w.numel() for w in weights]

    def divergence(flat):
        parts = [p.view_as(w) for p, w in zip(flat.split(sizes), weights, strict=True)]
        return make(parts, function).kl_from(old).sum()

    hessian = torch.autograd.functional.hessian(divergence, flatten([w.detach() for w in weights]))
    product = gauss_newton_product(distribution.parameters(), weights, distribution.fisher)
    for column in range(0, len(hessian), 3):
        unit = torch.zeros(len(hessian), dtype=torch.float64)
        unit[column] = 1.0
        torch.testing.assert_close(product(unit), hessian[column], atol=1e-9, rtol=1e-7)
