"""Sums of n rewards: what a replay buffer makes of the steps that follow each other in it."""

from __future__ import annotations

import torch
from torch import Tensor


def n_step_return(
    rewards: Tensor, terminated: Tensor, done: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum up to n rewards along the first axis, stopping at the first end of an episode.

    Args:
        rewards: `[n, B]`, the rewards from each start onward.
        terminated: `[n, B]` bool.
        done: `[n, B]` bool: nothing after this step belongs to the episode.
        gamma: discount.

    Returns:
        `(returns, discount, last, terminated)`, each `[B]`: the discounted sum; gamma to the power of the number of
        steps taken, which multiplies the bootstrap; the index in `[0, n)` of the last step taken, whose true successor
        is what to bootstrap from; whether that step terminated.
    """
    returns = rewards[0].clone()
    discount = torch.full_like(returns, gamma)
    last = torch.zeros(rewards.shape[1], dtype=torch.long, device=rewards.device)
    going = ~done[0]
    ended = terminated[0].clone()
    for k in range(1, len(rewards)):
        returns += torch.where(going, discount * rewards[k], 0.0)
        discount = torch.where(going, discount * gamma, discount)
        last += going
        ended |= going & terminated[k]
        going = going & ~done[k]
    return returns, discount, last, ended
