"""A policy laid out on a grid world: what it does and expects in every cell, for films, reports and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from habilis.core.protocols import Policy, VecEnv
from habilis.core.specs import require_made_for
from habilis.envs.grid_drawing import GridDrawing
from habilis.envs.gridworld import Grid


@dataclass(frozen=True, eq=False)
class GridPolicy:
    """What a policy does in each state of a grid, the deterministic way."""

    grid: Grid
    actions: list[int]
    """Of each state; -1 where it values all alike, so that its choice means nothing."""
    values: list[float] | None
    """Of the best action in each state; None for a policy that keeps no values of actions."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"grid": self.grid.to_dict(), "actions": self.actions, "values": self.values}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> GridPolicy:
        """Read what `to_dict` returned."""
        return cls(Grid.from_dict(tree["grid"]), list(tree["actions"]), tree["values"])


def policy_on_grid(policy: Policy, env: VecEnv) -> GridPolicy | None:
    """Ask a policy about every cell of a grid world.

    Args:
        policy: what acts: any kind; one that ranks actions (`scores`) also says what it expects.
        env: the environment; nothing is done in it.

    Returns:
        The policy in every cell, or None where `env` is no grid world or the policy has a memory.

    Raises:
        ConfigError: the policy is of a grid of another size.
    """
    drawing = getattr(env, "drawing", None)
    if not isinstance(drawing, GridDrawing):
        return None
    require_made_for(policy, env.spec)
    device = next((p.device for p in policy.parameters()), None) if isinstance(policy, nn.Module) else None
    states = env.spec.obs["policy"].size
    obs = {"policy": torch.eye(states, device=device)}
    with torch.no_grad():
        acted = policy.act(obs, deterministic=True)
        if acted.memory is not None:  # what it does depends on the way that led there
            return None
        actions = acted.env_action
        if not hasattr(policy, "scores"):
            return GridPolicy(drawing.grid, actions.tolist(), None)
        scores = policy.scores(obs)
    undecided = scores.amax(1) == scores.amin(1)
    return GridPolicy(drawing.grid, actions.masked_fill(undecided, -1).tolist(), scores.amax(1).tolist())


def show_policy(policy: Policy, env: VecEnv) -> None:
    """Lay a policy under the agent in the pictures of a grid world; do nothing to any other environment."""
    found = policy_on_grid(policy, env)
    if found is not None:
        env.drawing.show(found.actions, found.values)  # type: ignore[attr-defined]
