"""Losses on what a policy has just done, as pure functions of tensors. Each names its paper and equation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def standardize(values: Tensor, eps: float = 1e-8) -> Tensor:
    """Return values `[B]` with mean 0 and standard deviation 1."""
    std, mean = torch.std_mean(values)
    return (values - mean) / (std + eps)


def masked_standardize(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Return values `[B]` of mean 0 and deviation 1 over those where `mask` `[B]` is true; the rest mean nothing."""
    count = mask.sum()
    centred = values - torch.where(mask, values, 0.0).sum() / count.clamp_min(1)
    variance = torch.where(mask, centred.square(), 0.0).sum() / (count - 1).clamp_min(1)
    return centred / (variance.sqrt() + eps)


class ClippedSurrogate(NamedTuple):
    """What `ppo_clip` returns; each a 0-d tensor."""

    loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of `[B]`, or with weights `[B]` that sum to 1 the weighted one."""
    return values.mean() if weight is None else (values * weight).sum()


def ppo_clip(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip_range: float | Tensor,
    weight: Tensor | None = None,
) -> ClippedSurrogate:
    """Return the negative clipped surrogate objective (Schulman et al. 2017, equation 7); arguments are `[B]`.

    Means are weighted where `weight`, which sums to 1, is given. The KL estimate is `mean((r - 1) - log r)` (Schulman
    2020, "Approximating KL divergence", k3): unbiased and never negative.
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)  # type: ignore[arg-type, unused-ignore]
    loss = -mean(torch.minimum(ratio * advantages, clipped * advantages), weight)
    with torch.no_grad():
        excess = ratio - 1
        approx_kl = mean(excess - log_ratio, weight)
        clip_fraction = mean((excess.abs() > clip_range).to(ratio.dtype), weight)
    return ClippedSurrogate(loss, approx_kl, clip_fraction)


def value_loss(
    values: Tensor,
    returns: Tensor,
    old_values: Tensor,
    clip_range: float | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return half the mean squared error of the values, the mean weighted by `weight`, which sums to 1, where given.

    Arguments are `[B]`. With `clip_range`, the prediction may move at most that far from `old_values` and the larger of
    the two errors counts, as in the PPO code of OpenAI Baselines; the paper has no such clipping.
    """
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * mean(error, weight)
