"""The quantile Huber loss, from sorted samples: no matrix of every quantile beside every sample is made.

Of a sorted row, how many samples lie within the threshold of a quantile, their sum and their sum of squares are
differences of running sums, and the loss and its slope need no more than these.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def midpoints(count: int, device: torch.device | None = None) -> Tensor:
    """Return `[count]`: the middle of each of `count` equal parts of [0, 1]."""
    return (torch.arange(count, device=device) + 0.5) / count


def quantile_loss(quantiles: Tensor, fractions: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Return the quantile Huber loss `[B]` (Dabney et al. 2018a, equation 10; 2018b, equation 3).

    Each quantile is compared with each sample of the target: the sum over the quantiles of the mean over the samples.
    No gradient goes into the target.

    Args:
        quantiles: `[B, K]`.
        fractions: `[B, K]` or `[K]` in (0, 1): which quantile each of them is.
        target: `[B, K']`.
        threshold: beyond which the loss grows linearly; 0 is the plain quantile loss.
    """
    samples, places = target.detach().sort(-1).values, quantiles.detach()
    count, width = samples.shape[-1], threshold or 1.0  # where the threshold is 0 nothing lies within it
    bounds = torch.cat([places - threshold, places, places + threshold], -1)
    ranks = torch.searchsorted(samples, bounds)
    # float64: differences of large sums
    exact, x = samples.double(), places.double()
    sums = F.pad(torch.stack([exact, exact.square()]).cumsum(-1), (1, 0))
    (sum_low, sum_here, sum_high), (square_low, square_here, square_high) = (
        running.gather(-1, ranks).chunk(3, -1) for running in sums
    )
    low, here, high = ranks.chunk(3, -1)
    # within the threshold, below and above: distances, and their squares
    below = (here - low) * x - (sum_here - sum_low)
    above = (sum_high - sum_here) - (high - here) * x
    below_squared = (square_here - square_low) - x * (2 * (sum_here - sum_low) - (here - low) * x)
    above_squared = (square_high - square_here) - x * (2 * (sum_high - sum_here) - (high - here) * x)
    # and all of them: the losses, and minus their slopes
    loss_below = low * (x - threshold / 2) - sum_low + below_squared / (2 * width)
    loss_above = (sums[0, :, -1:] - sum_high) - (count - high) * (x + threshold / 2) + above_squared / (2 * width)
    pull = fractions * (count - high + above / width) - (1 - fractions) * (low + below / width)
    loss = fractions * loss_above + (1 - fractions) * loss_below
    each: Tensor = loss.to(places.dtype) - pull.to(places.dtype) * (quantiles - places)
    return each.sum(1) / count


def quantile_critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return the quantile Huber loss (Kuznetsov et al. 2020, equations 12 and 13), summed over the critics.

    Args:
        values: `[critics, B, K]`, evenly spaced quantiles in order.
        target: `[B, M]`, samples of the return, each compared with each quantile; the loss is the mean over B, K and M.
    """
    critics, rows, count = values.shape
    fractions = midpoints(count, values.device).repeat(critics)
    return quantile_loss(values.transpose(0, 1).flatten(1), fractions, target, 1.0).sum() / (rows * count)
