"""Penalties on what a policy does at neighbouring observations: CAPS (Mysore et al. 2021) and L2C2 (Kobayashi 2022).

They are added to a policy's loss, where the policy is deterministic in its mean: nothing of the environment changes.
Deviations from the papers: distances are squared, actions are compared within their bounds, and L2C2 constrains the
policy alone, with a weight that is constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from habilis.core.config import require
from habilis.core.specs import EnvSpec, action_parts
from habilis.core.tree import Tree, tree_join, tree_map, tree_part
from habilis.core.types import Obs
from habilis.functional.smoothness import action_distance, between, perturbed
from habilis.nn.memory import Encoder


@dataclass(frozen=True, kw_only=True)
class SmoothnessConfig:
    """Weights of the penalties, 0 for none. Distances are in units of half the action range, squared and summed."""

    temporal: float = 0.0
    """Of the distance between the actions at a step and at the next (CAPS)."""
    spatial: float = 0.0
    """Of the distance between the actions at an observation and at one with noise (CAPS)."""
    spatial_std: float = 0.1
    """Deviation of that noise, in units of the observation as the network reads it: normalised where it is."""
    local: float = 0.0
    """Of the distance between the actions at an observation and within what one step changes of it (L2C2)."""

    def __post_init__(self) -> None:
        for name in ("temporal", "spatial", "local"):
            require(getattr(self, name) >= 0, f"smoothness.{name} must not be negative, got {getattr(self, name)}")
        require(self.spatial_std > 0, f"smoothness.spatial_std must be positive, got {self.spatial_std}")

    @property
    def used(self) -> bool:
        """Whether there is any penalty."""
        return self.temporal > 0 or self.spatial > 0 or self.local > 0


class BoundedPolicy(Protocol):
    """A policy that says what it would do."""

    encoder: Encoder

    def bounded(self, normalized: Obs) -> Tensor:
        """Return the deterministic real values `[..., dim]` within their bounds for normalised observations."""
        ...


def require_smoothness(c: SmoothnessConfig, spec: EnvSpec, *, memory: bool, n_steps: int = 1) -> None:
    """Raise `ConfigError` unless there is something to be smooth, and neighbours to be smooth over.

    Args:
        c: the penalties.
        spec: the environment.
        memory: whether the policy has any.
        n_steps: steps to the successors that a batch holds.
    """
    if not c.used:
        return
    require(action_parts(spec.action)[0] is not None, f"smoothness is of real-valued actions: {spec.id} has choices")
    require(not memory, "smoothness compares single observations and a policy with memory acts on many: leave one out")
    require(n_steps == 1, f"smoothness needs the next observation and n_steps {n_steps} gives another: leave one out")
    images = all(spec.obs[name].is_image for name in spec.policy_groups)
    require(
        not images or (c.spatial == 0 and c.local == 0),
        "smoothness.spatial and smoothness.local move vectors, and the policy reads images alone: use temporal",
    )


def draw_neighbours(c: SmoothnessConfig, encoder: Encoder, data: Tree, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw what `smoothness_loss` takes: for each vector that a policy reads noise and a share of a step.

    Nothing is drawn, and nothing returned, where there is no penalty.

    Args:
        c: the penalties.
        encoder: the policy's.
        data: with `obs` and `next_obs` among its parts, raw or normalised; the latter is handed on.
        generator: source of the draws.
    """
    if not c.used:
        return {}
    obs, next_obs = ({name: tree_part(data, part)[name] for name in encoder.names} for part in ("obs", "next_obs"))
    vectors = {name: x for name, x in obs.items() if x.is_floating_point()}
    normal = {name: torch.randn(x.shape, generator=generator, device=x.device) for name, x in vectors.items()}
    uniform = {name: torch.rand(x.shape, generator=generator, device=x.device) for name, x in vectors.items()}
    return tree_join(next_obs=next_obs, normal=normal, uniform=uniform)


def smoothness_loss(c: SmoothnessConfig, policy: BoundedPolicy, data: Tree, weight: Tensor | None = None) -> Tensor:
    """Return the weighted sum of all penalties, 0-d.

    Args:
        c: the penalties.
        policy: what acts; called once, with all observations side by side.
        data: with the parts `obs`, raw, and what `draw_neighbours` returned for it, each `[..., *shape]`.
        weight: `[...]`, summing to 1, in place of the mean over all rows.
    """
    obs, next_obs = (policy.encoder.normalize(tree_part(data, part)) for part in ("obs", "next_obs"))
    normal, uniform = tree_part(data, "normal"), tree_part(data, "uniform")
    pairs = [
        (c.temporal, next_obs),
        (c.spatial, {**obs, **{k: perturbed(obs[k], x, c.spatial_std) for k, x in normal.items()}}),
        (c.local, {**obs, **{k: between(obs[k], next_obs[k], 2 * x - 1) for k, x in uniform.items()}}),
    ]
    used = [(scale, neighbour) for scale, neighbour in pairs if scale > 0]
    together = tree_map(lambda *x: torch.cat(x), obs, *(neighbour for _, neighbour in used))
    action, *others = policy.bounded(together).chunk(len(used) + 1)
    distances = zip(used, others, strict=True)
    return torch.stack([scale * action_distance(action, other, weight) for (scale, _), other in distances]).sum()
