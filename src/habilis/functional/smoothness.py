"""Penalties on different actions at neighbouring observations, as pure functions of tensors: CAPS and L2C2."""

from __future__ import annotations

from torch import Tensor


def action_distance(action: Tensor, neighbour: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared distance of actions `[..., dim]` to those at neighbouring observations.

    The penalty of CAPS (Mysore et al. 2021, equations 2 and 3) and L2C2 (Kobayashi 2022), which differ in what a
    neighbour is. Distances are squared, so that they have a gradient where actions are equal.

    Args:
        action: what the policy does.
        neighbour: what it does at the neighbours.
        weight: `[...]`, summing to 1, in place of the mean over all rows.
    """
    squared = (action - neighbour).square().sum(-1)
    return squared.mean() if weight is None else (weight * squared).sum()


def perturbed(obs: Tensor, noise: Tensor, std: float) -> Tensor:
    """Return neighbours in space: observations with normal noise (Mysore et al. 2021, equation 3)."""
    return obs + std * noise


def between(obs: Tensor, next_obs: Tensor, share: Tensor) -> Tensor:
    """Return neighbours in space and time: within what one step changes (Kobayashi 2022).

    `share` is between -1 and 1, drawn for each value: where a step changes nothing there is nothing to be smooth over.
    """
    return obs + share * (next_obs - obs)
