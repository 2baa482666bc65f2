"""Returns and advantages as pure functions of time-major tensors `[T, N]`.

Every function treats the two endings of an episode apart: at a termination nothing follows; at a truncation the value
of the true successor follows, but nothing of the next episode does. `next_values[t]` is therefore always the value of
the true successor of step t (`Step.next_obs`), never of the observation after a reset.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantage(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return GAE(gamma, lambda) advantages `[T, N]` (Schulman et al. 2016, equation 16).

    Args:
        rewards: `[T, N]`.
        values: `[T, N]`, V(s_t).
        next_values: `[T, N]`, V of the true successor of step t.
        terminated: `[T, N]` bool; no bootstrap.
        done: `[T, N]` bool; terminated or truncated: the sum over later steps ends here.
        valid: `[T, N]` bool; a step that is not gets advantage zero: the step before it bootstraps from V alone.
        gamma: discount.
        gae_lambda: weight of longer returns; 0 is the one-step error, 1 the Monte-Carlo return minus V.
    """
    bootstrap = torch.where(terminated, 0.0, gamma * next_values)
    deltas = torch.where(valid, rewards + bootstrap - values, 0.0)
    decay = gamma * gae_lambda * (valid & ~done).to(rewards.dtype)
    running = torch.zeros_like(deltas[0])
    advantages = []
    for delta, weight in zip(reversed(deltas.unbind()), reversed(decay.unbind()), strict=True):
        running = torch.addcmul(delta, weight, running)
        advantages.append(running)
    return torch.stack(advantages[::-1])


def terminating_episodes(terminated: Tensor, done: Tensor, valid: Tensor) -> Tensor:
    """Return `[T, N]` bool: whether the episode that a step belongs to terminates within these steps.

    It does not if it is truncated, is cut off by a step that is not valid, or goes on beyond them. Arguments are
    `[T, N]` bool.
    """
    ends = torch.zeros_like(terminated)
    running = torch.zeros_like(terminated[0])
    for t in range(len(terminated) - 1, -1, -1):
        running = torch.where(done[t] | ~valid[t], terminated[t] & valid[t], running)
        ends[t] = running
    return ends


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Return `1 - Var(returns - values) / Var(returns)` of `[M]`, 0-d: 1 is perfect, 0 is as good as a constant."""
    return 1 - (returns - values).var() / returns.var().clamp_min(1e-8)
