"""Losses of policies and critics of actions, as pure functions of tensors. Each names its paper and equation.

B is the batch, K the numbers by which a critic describes the return of an action: 1 for its mean, quantiles, or the
logits of atoms.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lowest(values: Tensor, dropped: int = 0) -> Tensor:
    """Return the lowest of what all critics say, `[critics, B, K]` to `[B, M]`.

    Of means it is the least: clipped double Q-learning (Fujimoto et al. 2018, equation 10). Of quantiles it is all but
    the highest, `dropped` for each critic, in ascending order: truncated quantile critics (Kuznetsov et al. 2020,
    equations 10 and 11).
    """
    critics, _, count = values.shape
    if count == 1:
        return values.amin(0)
    return values.movedim(0, 1).flatten(1).sort(-1).values[:, : critics * (count - dropped)]


def expected_return(logits: Tensor, atoms: Tensor) -> Tensor:
    """Return the means `[...]` of distributions over atoms `[K]`, for logits `[..., K]`."""
    return (logits.softmax(-1) * atoms).sum(-1)


def lowest_distribution(logits: Tensor, atoms: Tensor) -> Tensor:
    """Return the probabilities `[B, K]` of the critic whose mean is the least, of what all say, `[critics, B, K]`.

    Clipped double Q-learning of distributions, as FastTD3 does it (Seo et al. 2025).
    """
    least = expected_return(logits, atoms).argmin(0).view(1, -1, 1)
    return logits.gather(0, least.expand(1, *logits.shape[1:])).squeeze(0).softmax(-1)


def q_target(reward: Tensor, terminated: Tensor, discount: Tensor, next_values: Tensor) -> Tensor:
    """Return what critics should say, `[B, M]`: `r + discount * next`, and `r` at the end.

    Args:
        reward: `[B]`, the sum of n rewards for n-step targets.
        terminated: `[B]` bool; no bootstrap. A truncated transition is not terminated.
        discount: `[B]`, gamma to the power of the steps taken.
        next_values: `[B, M]` of the successor and the action chosen there; M is 1, or many for a
            distribution; `[M]` for atoms, which are the same for all.
    """
    following = torch.where(terminated.unsqueeze(1), 0.0, discount.unsqueeze(1) * next_values)
    return reward.unsqueeze(1) + following


def soft_value(next_values: Tensor, next_log_prob: Tensor, alpha: Tensor) -> Tensor:
    """Return `[B, M]` values with the entropy of the action `[B]` (Haarnoja et al. 2018b, equation 3)."""
    return next_values - (alpha * next_log_prob).unsqueeze(1)


def expected_soft_value(values: Tensor, log_probs: Tensor, alpha: Tensor) -> Tensor:
    """Return the soft value over all choices `[B]` (Christodoulou 2019, equation 10); arguments `[B, choices]`, 0-d."""
    return (log_probs.exp() * (values - alpha * log_probs)).sum(-1)


def smoothed_action(action: Tensor, noise: Tensor, clip: float) -> Tensor:
    """Return `action + clip(noise)` within [-1, 1] (Fujimoto et al. 2018, equation 14); arguments are `[B, dim]`."""
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error, averaged over the batch and summed over the critics.

    `values` is `[critics, B, 1]` and `target` `[B, 1]`.
    """
    return 0.5 * (values - target).square().mean(1).sum()


def soft_policy_loss(value: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """Return the policy's loss (Haarnoja et al. 2018b, equation 7); `value` and `log_prob` are `[B]` of its actions."""
    return (alpha * log_prob - value).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return the temperature's loss (Haarnoja et al. 2018b, equation 18), without a gradient into the policy."""
    return -(log_alpha.exp() * (log_prob.detach() + target_entropy)).mean()
