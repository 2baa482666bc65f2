"""Losses as pure functions of tensors: no networks, no optimisers, no state. Each names its paper and equation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def standardize(values: Tensor, eps: float = 1e-8) -> Tensor:
    """Return values with mean 0 and standard deviation 1."""
    std, mean = torch.std_mean(values)
    return (values - mean) / (std + eps)


class ClippedSurrogate(NamedTuple):
    """What `ppo_clip` returns; each a 0-d tensor."""

    loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_clip(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float | Tensor
) -> ClippedSurrogate:
    """Return the negative clipped surrogate objective (Schulman et al. 2017, equation 7); arguments are `[B]`.

    The KL estimate is `mean((r - 1) - log r)` (Schulman 2020, "Approximating KL divergence", k3): unbiased and never
    negative.
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)  # type: ignore[arg-type, unused-ignore]
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    with torch.no_grad():
        excess = ratio - 1
        approx_kl = (excess - log_ratio).mean()
        clip_fraction = (excess.abs() > clip_range).to(ratio.dtype).mean()
    return ClippedSurrogate(loss, approx_kl, clip_fraction)


def value_loss(
    values: Tensor,
    returns: Tensor,
    old_values: Tensor,
    clip_range: float | None = None,
) -> Tensor:
    """Return half the mean squared error of the values.

    With `clip_range`, the prediction may move at most that far from `old_values` and the larger of the two errors
    counts, as in the PPO code of OpenAI Baselines; the paper has no such clipping.
    """
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error.mean()


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
