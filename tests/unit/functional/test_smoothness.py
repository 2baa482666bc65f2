"""Penalties of smoothness by hand."""

from __future__ import annotations

import pytest
import torch

from habilis.functional.smoothness import action_distance, between, perturbed


def test_distance_by_hand():
    """(0.3, 0.4) apart is 0.25 squared, equal is 0; the mean is 0.125, weighted by 0.8 and 0.2 it is 0.2."""
    action, neighbour = torch.tensor([[0.5, 0.0], [1.0, -1.0]]), torch.tensor([[0.2, -0.4], [1.0, -1.0]])
    assert float(action_distance(action, neighbour)) == pytest.approx(0.125)
    assert float(action_distance(action, neighbour, torch.tensor([0.8, 0.2]))) == pytest.approx(0.2)


def test_distance_has_a_gradient_where_actions_are_equal():
    action = torch.zeros(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(action_distance(action, torch.zeros(3, 2)), action)
    assert torch.equal(gradient, torch.zeros(3, 2))


def test_neighbours_by_hand():
    obs, following = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[3.0, 1.0, 5.0]])
    assert perturbed(obs, torch.tensor([[1.0, -2.0, 0.0]]), 0.5).tolist() == [[1.5, 1.0, 5.0]]
    # half a step on, a whole one back, and nothing where nothing changes
    assert between(obs, following, torch.tensor([[0.5, -1.0, 1.0]])).tolist() == [[2.0, 3.0, 5.0]]
