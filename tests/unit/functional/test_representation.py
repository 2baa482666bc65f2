"""What an encoder learns besides, by numbers worked out by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch

from habilis.functional.representation import contrastive_loss, prediction_loss, reconstruction_loss


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def test_reconstruction_by_hand():
    image = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)
    decoded = torch.tensor([[0.5, 1.0], [0.2, 0.0]])
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    # pixels are 0, 1, 0.2 and 0.4: errors 0.25, 0, 0, 0.16; squared lengths are 25 and 4
    assert reconstruction_loss(decoded, image, features, 0.0).item() == pytest.approx(0.41 / 4)
    assert reconstruction_loss(decoded, image, features, 0.1).item() == pytest.approx(0.41 / 4 + 0.1 * 0.5 * 14.5)


def test_prediction_is_two_less_two_cosines():
    predicted = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-3.0, -4.0]])
    # alike, at right angles, opposite
    assert prediction_loss(predicted, target).item() == pytest.approx((0 + 2 + 4) / 3)


def test_prediction_is_the_squared_distance_of_unit_vectors(g):
    predicted, target = torch.randn(2, 5, 7, generator=g)
    units = [x / x.norm(dim=1, keepdim=True) for x in (predicted, target)]
    torch.testing.assert_close(prediction_loss(predicted, target), (units[0] - units[1]).square().sum(1).mean())


def test_no_gradient_goes_to_what_is_predicted_or_found(g):
    one, other, weight = (torch.randn(4, 4, generator=g, requires_grad=True) for _ in range(3))
    assert torch.autograd.grad(prediction_loss(one, other), other, allow_unused=True) == (None,)
    assert torch.autograd.grad(contrastive_loss(one, other, weight), other, allow_unused=True) == (None,)


def test_contrast_by_hand():
    query, key = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    # similarities of the first query are 1 and 1, of the second 0 and 6: its own key is that of its row
    expected = (math.log(2) + math.log(1 + math.exp(-6))) / 2
    assert contrastive_loss(query, key, weight).item() == pytest.approx(expected, rel=1e-5)


def test_contrast_is_the_cross_entropy_of_a_loop(g):
    query, key = torch.randn(2, 6, 5, generator=g)
    weight = torch.randn(5, 5, generator=g)
    total = 0.0
    for i in range(6):
        scores = [
            math.exp(sum(query[i, a] * weight[a, b] * key[j, b] for a in range(5) for b in range(5))) for j in range(6)
        ]
        total -= math.log(scores[i] / sum(scores))
    assert contrastive_loss(query, key, weight).item() == pytest.approx(total / 6, rel=1e-4)
