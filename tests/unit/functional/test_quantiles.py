"""The quantile Huber loss: numbers worked out by hand, the formula by loops, and its slope by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis.functional.quantiles import midpoints, quantile_critic_loss, quantile_loss


def quantile_loss_by_loops(quantiles, fractions, target, threshold):
    losses = np.zeros(len(quantiles))
    for b in range(len(quantiles)):
        for i in range(quantiles.shape[1]):
            over = 0.0
            for j in range(target.shape[1]):
                u = target[b, j] - quantiles[b, i]
                if threshold == 0:
                    size = abs(u)
                elif abs(u) <= threshold:
                    size = 0.5 * u * u / threshold
                else:
                    size = abs(u) - 0.5 * threshold
                over += abs(fractions[b, i] - (1.0 if u < 0 else 0.0)) * size
            losses[b] += over / target.shape[1]
    return losses


def test_quantile_loss_by_hand():
    # u = 2 for both: weight 0.25 and 0.75, Huber 2 - 0.5
    loss = quantile_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0.25, 0.75]), torch.tensor([[2.0]]), 1.0)
    assert loss.tolist() == pytest.approx([1.5])
    # u = -2: weights 0.75 and 0.25
    loss = quantile_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0.25, 0.75]), torch.tensor([[-2.0]]), 1.0)
    assert loss.tolist() == pytest.approx([1.5])
    loss = quantile_loss(torch.tensor([[0.0]]), torch.tensor([0.9]), torch.tensor([[3.0, -1.0]]), 0.0)
    assert loss.tolist() == pytest.approx([(0.9 * 3 + 0.1 * 1) / 2])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_quantile_loss_against_a_loop(seed, count, targets, threshold):
    rng = np.random.default_rng(seed)
    quantiles, target = rng.normal(size=(3, count)) * 2, rng.normal(size=(3, targets)) * 2
    fractions = rng.random((3, count))
    got = quantile_loss(torch.tensor(quantiles), torch.tensor(fractions), torch.tensor(target), threshold)
    np.testing.assert_allclose(got.numpy(), quantile_loss_by_loops(quantiles, fractions, target, threshold), rtol=1e-9)


def test_plain_quantile_loss_finds_the_quantiles():
    samples = torch.arange(1.0, 11.0).repeat(64, 1)  # 1, ..., 10
    fractions = torch.tensor([0.05, 0.55, 0.95])
    quantiles = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([quantiles], lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        quantile_loss(quantiles.expand(64, 3), fractions, samples, 0.0).mean().backward()
        optimizer.step()
    assert quantiles[0].tolist() == pytest.approx([1, 6, 10], abs=0.3)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1000.0])
def test_the_slope_is_that_of_the_formula(threshold, scale):
    g = torch.Generator().manual_seed(1)
    quantiles = (torch.randn(6, 5, generator=g) * scale).requires_grad_()
    target = quantiles.detach().mean(1, keepdim=True) + torch.randn(6, 7, generator=g)
    fractions = torch.rand(6, 5, generator=g)
    error = target.unsqueeze(1) - quantiles.unsqueeze(2)
    size = (
        error.abs()
        if threshold == 0
        else torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=threshold)
        / threshold
    )
    slow = ((fractions.unsqueeze(2) - (error.detach() < 0).float()).abs() * size).mean(2).sum(1)
    fast = quantile_loss(quantiles, fractions, target, threshold)
    torch.testing.assert_close(fast, slow)
    weight = torch.rand(6, generator=g)
    slopes = [torch.autograd.grad((loss * weight).sum(), quantiles)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*slopes)


def test_it_is_not_finite_where_a_sample_or_a_quantile_is_not():
    quantiles, fractions, target = torch.zeros(3, 2), torch.tensor([0.3, 0.7]), torch.ones(3, 4)
    for wrong in (torch.nan, torch.inf):
        of_target, of_quantile = target.clone(), quantiles.clone()
        of_target[1, 2], of_quantile[1, 1] = wrong, wrong
        for loss in (
            quantile_loss(quantiles, fractions, of_target, 1.0),
            quantile_loss(of_quantile, fractions, target, 1.0),
        ):
            assert loss.isfinite().tolist() == [True, False, True]


def test_midpoints():
    assert midpoints(4).tolist() == [0.125, 0.375, 0.625, 0.875]


def test_quantile_critic_loss_by_hand():
    # fractions 0.25 and 0.75; errors of quantile 0 are 0.5 and 2, of quantile 4 -3.5 and -2
    values = torch.tensor([[[0.0, 4.0]]], requires_grad=True)
    loss = quantile_critic_loss(values, torch.tensor([[0.5, 2.0]]))
    by_hand = (0.25 * 0.125 + 0.25 * 1.5 + 0.25 * 3.0 + 0.25 * 1.5) / 4
    assert loss.item() == pytest.approx(by_hand)
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.flatten().tolist() == pytest.approx([-0.25 * (0.5 + 1) / 4, 0.25 * (1 + 1) / 4])


def test_quantile_critic_loss_against_loops():
    g = torch.Generator().manual_seed(0)
    values, target = torch.randn(3, 4, 5, generator=g) * 2, torch.randn(4, 7, generator=g) * 2
    slow = 0.0
    for critic in range(3):
        for b in range(4):
            for k in range(5):
                for m in range(7):
                    error = float(target[b, m] - values[critic, b, k])
                    size = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
                    slow += abs((k + 0.5) / 5 - (error < 0)) * size / (4 * 5 * 7)
    assert float(quantile_critic_loss(values, target)) == pytest.approx(slow, rel=1e-5)
