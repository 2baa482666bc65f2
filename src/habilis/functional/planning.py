"""Planning in a known model: what an agent would find that had nothing left to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from habilis.core.config import require

SWEEPS = 100_000
"""With a discount of 1, after which values that still change are held to have no limit."""


def value_iteration(transitions: Tensor, rewards: Tensor, gamma: float, tolerance: float = 1e-10) -> Tensor:
    """Return the optimal action values `[S, A]`, float64 (Bellman 1957; Sutton and Barto 2018, equation 4.10).

    `q.amax(1)` is the optimal value of each state, and every action that attains it is optimal.

    Args:
        transitions: `[S, A, S]`, probability of each next state; a terminal state leads to itself, unpaid.
        rewards: `[S, A]`, expected reward.
        gamma: discount; 1 where every way out of a loss ends somewhere.
        tolerance: the sweep after which no value changes by more than this is the last.

    Raises:
        ConfigError: the discount is not in [0, 1], or it is 1 and values do not settle: going round pays for ever.
    """
    require(0 <= gamma <= 1, f"gamma must be in [0, 1], got {gamma}")
    transitions, rewards = transitions.double(), rewards.double()
    q = torch.zeros_like(rewards)
    # what is left after so many is the rounding of large values
    for _ in range(SWEEPS if gamma == 1 else 1000 + int(60 / (1 - gamma))):
        better = rewards + gamma * transitions @ q.amax(1)
        if (better - q).abs().max() <= tolerance:
            return better
        q = better
    require(gamma < 1, f"values still change after {SWEEPS:,} sweeps with a gamma of 1: choose a smaller one")
    return q
