"""Losses: by hand at and around their corners, and against loops."""

from __future__ import annotations

import math

import pytest
import torch

from habilis.functional.losses import (
    critic_loss,
    expected_return,
    lowest,
    lowest_distribution,
    q_target,
    smoothed_action,
    soft_policy_loss,
    soft_value,
    temperature_loss,
)
from habilis.functional.policy_losses import masked_standardize, ppo_clip, standardize, value_loss
from habilis.functional.value_losses import categorical_loss, categorical_projection


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "moves"),
    [
        (1.5, 1.0, 1.2, False),  # good and already much likelier: min(1.5, 1.2)
        (1.5, -1.0, -1.5, True),  # bad and likelier: min(-1.5, -1.2)
        (0.5, 1.0, 0.5, True),  # good and less likely: min(0.5, 0.8)
        (0.5, -1.0, -0.8, False),  # bad and already much less likely: min(-0.5, -0.8)
        (1.19, 2.0, 2.38, True),  # just inside
        (1.21, 2.0, 2.4, False),  # just outside
        (0.81, -2.0, -1.62, True),
        (0.79, -2.0, -1.6, False),
        (1.0, 3.0, 3.0, True),
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, objective, moves):
    log_prob = torch.tensor([-2.0 + math.log(ratio)], requires_grad=True)
    result = ppo_clip(log_prob, torch.tensor([-2.0]), torch.tensor([advantage]), 0.2)
    (gradient,) = torch.autograd.grad(result.loss, log_prob)
    assert float(result.loss.detach()) == pytest.approx(-objective, rel=1e-5)
    # where it moves, d(-r A) / d log r = -r A
    assert float(gradient) == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)
    assert float(result.approx_kl) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)
    assert float(result.clip_fraction) == (abs(ratio - 1) > 0.2)


def test_ppo_clip_against_a_loop():
    g = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(300, generator=g) * 0.5 for _ in range(3))
    result = ppo_clip(new, old, advantages, torch.tensor(0.1))
    total = kl = clipped = 0.0
    for a, b, advantage in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(a - b)
        total -= min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
        kl += ratio - 1 - (a - b)
        clipped += abs(ratio - 1) > 0.1
    assert float(result.loss) == pytest.approx(total / 300, rel=1e-5)
    assert float(result.approx_kl) == pytest.approx(kl / 300, rel=1e-5)
    assert float(result.clip_fraction) == pytest.approx(clipped / 300)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss", "gradient"),
    [
        (3.0, 1.0, 2.0, None, 0.5, 1.0),  # (3 - 2)^2 / 2
        (3.0, 1.0, 2.0, 0.5, 0.5, 1.0),  # clipped to 1.5: max(1, 0.25) / 2
        (2.0, 0.0, 2.0, 0.5, 1.125, 0.0),  # clipped to 0.5: max(0, 2.25) / 2, and no gradient through the clip
        (0.25, 0.0, 2.0, 0.5, 1.53125, -1.75),  # inside: (0.25 - 2)^2 / 2
    ],
)
def test_value_loss_by_hand(value, old, target, clip, loss, gradient):
    values = torch.tensor([value], requires_grad=True)
    result = value_loss(values, torch.tensor([target]), torch.tensor([old]), clip)
    assert float(result.detach()) == pytest.approx(loss)
    assert float(torch.autograd.grad(result, values)[0]) == pytest.approx(gradient)


def test_standardize_by_hand():
    # mean 2, deviation sqrt((1 + 0 + 1) / 2) = 1
    torch.testing.assert_close(standardize(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_q_target_of_soft_values_by_hand():
    next_q = torch.tensor([[10.0, 10.0, math.nan], [8.0, 12.0, 1.0]])
    soft = soft_value(lowest(next_q.unsqueeze(-1)), torch.tensor([-2.0, 4.0, 0.0]), torch.tensor(0.5))
    target = q_target(
        reward=torch.tensor([1.0, 1.0, 5.0]),
        terminated=torch.tensor([False, False, True]),
        discount=torch.tensor([0.5, 0.25, 0.5]),
        next_values=soft,
    )
    # 1 + (8 + 0.5 * 2) / 2 = 5.5; 1 + (10 - 0.5 * 4) / 4 = 3; terminated: the reward, whatever the critics say there
    assert target.tolist() == [[5.5], [3.0], [5.0]]


def test_lowest_of_means_is_the_least_and_of_quantiles_all_but_the_highest():
    means = torch.tensor([[5.0, 5.0], [4.0, 6.0], [9.0, 9.0]]).unsqueeze(-1)
    assert lowest(means).tolist() == [[4.0], [5.0]]
    quantiles = torch.tensor([[[1.0, 3.0, 7.0]], [[2.0, 8.0, 9.0]]])
    assert lowest(quantiles, 0).tolist() == [[1.0, 2.0, 3.0, 7.0, 8.0, 9.0]]
    assert lowest(quantiles, 1).tolist() == [[1.0, 2.0, 3.0, 7.0]]  # pooled: both of the highest are the second's
    assert lowest(quantiles, 2).tolist() == [[1.0, 2.0]]


def test_lowest_of_distributions_is_that_with_the_least_mean():
    atoms = torch.tensor([-1.0, 0.0, 5.0])
    # means of the first critic 1.2 and 0; of the second 0.9 (though its best outcome is likelier) and 0.25
    probs = torch.tensor([[[0.1, 0.64, 0.26], [0.5, 0.4, 0.1]], [[0.6, 0.1, 0.3], [0.25, 0.65, 0.1]]])
    logits = probs.log() + torch.tensor([2.0, -3.0]).view(2, 1, 1)  # which differ by what softmax takes away
    means = expected_return(logits, atoms)
    torch.testing.assert_close(means, torch.tensor([[1.2, 0.0], [0.9, 0.25]]))
    torch.testing.assert_close(lowest_distribution(logits, atoms), torch.stack([probs[1, 0], probs[0, 1]]))


def test_the_target_of_two_distributions_by_hand():
    """Atoms 0, 2, 4; r + 0.5 z = 1, 2, 3 or, at an end, 1 whatever was expected; both from the more careful critic."""
    atoms = torch.tensor([0.0, 2.0, 4.0])
    probs = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]).unsqueeze(1).expand(2, 2, 3)
    reached = q_target(torch.ones(2), torch.tensor([False, True]), torch.full((2,), 0.5), atoms)
    assert reached.tolist() == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    target = categorical_projection(atoms, reached, lowest_distribution(probs.log(), atoms))
    # 0.5 at 1 and 0.3 at 2 and 0.2 at 3, each split between its neighbours
    torch.testing.assert_close(target, torch.tensor([[0.25, 0.25 + 0.3 + 0.1, 0.1], [0.5, 0.5, 0.0]]))


def test_categorical_loss_of_two_critics_by_hand():
    probs = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.1, 0.9], [0.5, 0.5]]])
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    first = (-math.log(0.5) - 0.5 * (math.log(0.25) + math.log(0.75))) / 2
    second = (-math.log(0.1) - math.log(0.5)) / 2
    loss, _ = categorical_loss(probs.log(), target)
    assert loss.mean(1).tolist() == pytest.approx([first, second])


def test_smoothed_action_by_hand():
    action = torch.tensor([[0.2, 0.2, 0.9, -0.9]])
    noise = torch.tensor([[0.1, 2.0, 0.3, -0.4]])
    expected = [0.3, 0.7, 1.0, -1.0]  # as it is; noise clipped to 0.5; action clipped, at either end
    assert smoothed_action(action, noise, 0.5)[0].tolist() == pytest.approx(expected)


def test_critic_loss_by_hand():
    q = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    # first critic: ((1-2)^2 + (2-4)^2) / 2 / 2 = 1.25; second: (1 + 1) / 2 / 2 = 0.5
    assert float(critic_loss(q.unsqueeze(-1), torch.tensor([[2.0], [4.0]]))) == 1.75


def test_soft_policy_loss_by_hand():
    # ((0.5 * -2 - 1) + (0.5 * 2 - 4)) / 2 = -2.5
    value, log_prob = torch.tensor([1.0, 4.0]), torch.tensor([-2.0, 2.0])
    assert float(soft_policy_loss(value, log_prob, torch.tensor(0.5))) == -2.5


def test_temperature_loss_by_hand_and_its_direction():
    log_alpha = torch.tensor(math.log(2.0), requires_grad=True)
    log_prob = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = temperature_loss(log_alpha, log_prob, target_entropy=-1.0)
    # -2 * ((1 - 1) + (3 - 1)) / 2 = -2; the derivative by log alpha is the same
    assert float(loss.detach()) == pytest.approx(-2.0)
    gradient, through_policy = torch.autograd.grad(loss, (log_alpha, log_prob), allow_unused=True)
    # entropy -2 is below the target -1: descending raises the temperature
    assert float(gradient) == pytest.approx(-2.0)
    assert through_policy is None


def test_standardised_where_a_mask_is_true():
    values = torch.tensor([[1.0, 100.0], [4.0, 1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(masked_standardize(values, mask)[mask], standardize(values[mask]))
