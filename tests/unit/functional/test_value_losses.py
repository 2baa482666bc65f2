"""Value-based losses: numbers worked out by hand, and each vectorised formula against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from habilis.functional.value_losses import (
    categorical_cvar,
    categorical_loss,
    categorical_projection,
    quantile_cvar,
    td_loss,
)


def projection_by_loops(atoms, target, probs):
    """Algorithm 1 of Bellemare et al. 2017, line by line."""
    spacing = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    projected = np.zeros((len(probs), len(atoms)))
    for b in range(len(probs)):
        for j in range(len(atoms)):
            # a division may round the last atom's place up, beyond the last
            position = min((min(max(target[b, j], atoms[0]), atoms[-1]) - atoms[0]) / spacing, len(atoms) - 1)
            lower, upper = int(np.floor(position)), int(np.ceil(position))
            if lower == upper:
                projected[b, lower] += probs[b, j]
            else:
                projected[b, lower] += probs[b, j] * (upper - position)
                projected[b, upper] += probs[b, j] * (position - lower)
    return projected


def cvar_by_loops(values, probs, level):
    """Take the lowest values until their probabilities come to `level`."""
    missing, total = level, 0.0
    for k in np.argsort(values):
        taken = min(probs[k], missing)
        total += taken * values[k]
        missing -= taken
    return total / level


def test_td_loss_by_hand():
    values, target = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.5], [-3.0]])
    assert td_loss(values, target, None).flatten().tolist() == [0.125, 4.5]
    assert td_loss(values, target, 1.0).flatten().tolist() == [0.125, 2.5]
    assert td_loss(values, target, 2.0).flatten().tolist() == [0.125, 4.0]


def test_projection_by_hand():
    atoms = torch.tensor([0.0, 1.0, 2.0])
    target = torch.tensor([[0.25, 1.0, 7.0], [-5.0, 2.0, 1.5]])
    probs = torch.tensor([[0.4, 0.5, 0.1], [0.2, 0.2, 0.6]])
    expected = torch.tensor([[0.3, 0.6, 0.1], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(categorical_projection(atoms, target, probs), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(-20, 0), st.floats(0.5, 30))
@example(0, 8, 0.0, 1.76953125)
def test_projection_against_a_loop(seed, count, low, width):
    rng = np.random.default_rng(seed)
    atoms = np.linspace(low, low + width, count)
    reward, discount = rng.normal(size=(4, 1)) * width / 3, rng.choice([0.0, 0.9, 1.0], size=(4, 1))
    probs = rng.dirichlet(np.ones(count), size=4)
    target = reward + discount * atoms
    got = categorical_projection(torch.tensor(atoms), torch.tensor(target), torch.tensor(probs))
    # where a target falls on an atom, the loop may round to the other side: there the share is 0 either way
    np.testing.assert_allclose(got.numpy(), projection_by_loops(atoms, target, probs), atol=1e-9)
    np.testing.assert_allclose(got.numpy().sum(1), 1, atol=1e-9)


def test_projection_keeps_the_mean_inside_the_support():
    atoms = torch.linspace(-10, 10, 51, dtype=torch.float64)
    probs = torch.softmax(torch.linspace(-1, 1, 51, dtype=torch.float64), 0).unsqueeze(0)
    target = 0.5 * atoms.unsqueeze(0) + 0.3
    projected = categorical_projection(atoms, target, probs)
    torch.testing.assert_close((projected * atoms).sum(1), (probs * target).sum(1))


def test_categorical_loss_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    target = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    cross_entropy, divergence = categorical_loss(logits, target)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert cross_entropy.tolist() == pytest.approx([np.log(2), entropy])
    assert divergence.tolist() == pytest.approx([np.log(2), 0.0], abs=1e-6)


def test_gradient_of_the_categorical_loss_is_the_difference_of_probabilities():
    logits = torch.tensor([[0.3, -0.2, 1.0]], requires_grad=True)
    target = torch.tensor([[0.1, 0.6, 0.3]])
    categorical_loss(logits, target)[0].sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - target)


@pytest.mark.parametrize("level", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_cvar_against_a_loop(level):
    rng = np.random.default_rng(0)
    atoms, probs = np.linspace(-3, 5, 9), rng.dirichlet(np.ones(9), size=(2, 3))
    got = categorical_cvar(torch.tensor(atoms), torch.tensor(probs), level).numpy()
    expected = [[cvar_by_loops(atoms, p, level) for p in row] for row in probs]
    np.testing.assert_allclose(got, expected, atol=1e-12)
    values = rng.normal(size=(2, 3, 7))  # not in order
    got = quantile_cvar(torch.tensor(values), level).numpy()
    expected = [[cvar_by_loops(v, np.full(7, 1 / 7), level) for v in row] for row in values]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_cvar_by_hand():
    assert float(quantile_cvar(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5)) == 1.5
    assert float(quantile_cvar(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.375)) == pytest.approx((1 + 0.5 * 2) / 1.5)
    atoms, probs = torch.tensor([0.0, 10.0]), torch.tensor([0.2, 0.8])
    assert float(categorical_cvar(atoms, probs, 0.1)) == 0
    assert float(categorical_cvar(atoms, probs, 0.4)) == pytest.approx(5)
