"""Losses of value-based learning as pure functions of tensors. Each names its paper and equation.

B is the batch, K the numbers by which a head describes the return of one action: 1 for the expected value, atoms of a
categorical distribution, quantiles. What is compared is always the return of the action taken with that of the best
next action.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def td_loss(values: Tensor, target: Tensor, threshold: float | None) -> Tensor:
    """Return the loss of expected values, of the shape of both: half the square of the error, or Huber's.

    Beyond the `threshold` Huber's loss grows linearly (Mnih et al. 2015 clip the error, which is a threshold of 1);
    None is half the square throughout.
    """
    if threshold is None:
        return 0.5 * (values - target).square()
    return F.huber_loss(values, target, reduction="none", delta=threshold)


def categorical_projection(atoms: Tensor, target: Tensor, probs: Tensor) -> Tensor:
    """Project a distribution onto evenly spaced atoms (Bellemare et al. 2017, equation 7 and algorithm 1).

    Args:
        atoms: `[K]`, in ascending order.
        target: `[B, K]`, where the probability lies; beyond the first and last atom it is moved there.
        probs: `[B, K]`.

    Returns:
        `[B, K]`: each probability split between the two nearest atoms, in proportion to its nearness.
    """
    last = atoms.shape[0] - 1
    position = ((target - atoms[0]) * (last / (atoms[-1] - atoms[0]))).clamp(0, last)
    # one atom below the last at most, so that there is always one above; it then gets everything
    lower = position.floor().clamp_max(last - 1)
    upper_share = probs * (position - lower)
    index = lower.nan_to_num(0.0).long()  # a reward that is not finite makes a loss that is not, which is left out
    empty = torch.zeros_like(probs)
    return empty.scatter_add(1, index, probs - upper_share).scatter_add(1, index + 1, upper_share)


def categorical_loss(logits: Tensor, target_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy `[..., B]` (Bellemare et al. 2017, algorithm 1), and the divergence of the two, alike.

    The Kullback-Leibler divergence differs from the cross-entropy by the target's own entropy, which no gradient
    changes; it is what prioritised replay goes by (Hessel et al. 2018).

    Args:
        logits: `[B, K]`, or `[critics, B, K]` of several that have one target.
        target_probs: `[B, K]`.
    """
    cross_entropy = -(target_probs * logits.log_softmax(-1)).sum(-1)
    with torch.no_grad():
        divergence = cross_entropy + torch.xlogy(target_probs, target_probs).sum(-1)
    return cross_entropy, divergence.clamp_min(0.0)


def categorical_cvar(atoms: Tensor, probs: Tensor, level: float) -> Tensor:
    """Return the mean of the worst fraction `level` of a categorical distribution, `[...]` for `probs` `[..., K]`.

    Conditional value at risk (Rockafellar and Uryasev 2000): of each atom, from the lowest on, as much probability
    counts as is still missing to `level`.
    """
    before = probs.cumsum(-1) - probs
    counted = torch.minimum(probs, (level - before).clamp_min(0.0))
    return (counted * atoms).sum(-1) / level


def quantile_cvar(quantiles: Tensor, level: float) -> Tensor:
    """Return the mean of the worst fraction `level` of K equally likely values, `[...]` for `quantiles` `[..., K]`."""
    count = quantiles.shape[-1]
    counted = (level * count - torch.arange(count, dtype=quantiles.dtype, device=quantiles.device)).clamp(0.0, 1.0)
    return (quantiles.sort(-1).values * counted).sum(-1) / (level * count)
