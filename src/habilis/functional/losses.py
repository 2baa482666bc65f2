"""Losses of policies and critics of actions, as pure functions of tensors. Each names its paper and equation."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_q_target(
    reward: Tensor,
    terminated: Tensor,
    discount: Tensor,
    next_q: Tensor,
    next_log_prob: Tensor,
    alpha: Tensor,
) -> Tensor:
    """Return the soft Bellman target `[B]` (Haarnoja et al. 2018b, equations 2 and 3), with the least of the critics.

    Args:
        reward: `[B]`, the sum of n rewards for n-step targets.
        terminated: `[B]` bool; no bootstrap. A truncated transition is not terminated.
        discount: `[B]`, gamma to the power of the steps taken.
        next_q: `[critics, B]`, target critics at the successor and the policy's action there.
        next_log_prob: `[B]`, log-probability of that action.
        alpha: temperature, 0-d.
    """
    return reward + torch.where(terminated, 0.0, discount * (next_q.amin(0) - alpha * next_log_prob))


def smoothed_action(action: Tensor, noise: Tensor, clip: float) -> Tensor:
    """Return `action + clip(noise)` within [-1, 1] (Fujimoto et al. 2018, equation 14); arguments are `[B, dim]`."""
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def clipped_q_target(reward: Tensor, terminated: Tensor, discount: Tensor, next_q: Tensor) -> Tensor:
    """Return the Bellman target `[B]` with the least of the critics (Fujimoto et al. 2018, equation 10).

    Args:
        reward: `[B]`, the sum of n rewards for n-step targets.
        terminated: `[B]` bool; no bootstrap. A truncated transition is not terminated.
        discount: `[B]`, gamma to the power of the steps taken.
        next_q: `[critics, B]`, target critics at the successor and the target policy's action there.
    """
    return reward + torch.where(terminated, 0.0, discount * next_q.amin(0))


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error, averaged over the batch and summed over the critics: `q` is `[critics, B]`."""
    return 0.5 * (q - target).square().mean(1).sum()


def soft_policy_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """Return the policy's loss (Haarnoja et al. 2018b, equation 7): `q` is `[critics, B]` at the policy's actions."""
    return (alpha * log_prob - q.amin(0)).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return the temperature's loss (Haarnoja et al. 2018b, equation 18), without a gradient into the policy."""
    return -(log_alpha.exp() * (log_prob.detach() + target_entropy)).mean()
