"""Penalties on what a policy does at neighbouring observations: CAPS (Mysore et al. 2021) and L2C2 (Kobayashi 2022).

They are added to a policy's loss, where the policy is deterministic in its mean: nothing of the environment changes.
Deviations from the papers: distances are squared, actions are compared within their bounds, and L2C2 constrains the
policy alone, with a weight that is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from habilis.core.batches import RolloutBatch
from habilis.core.config import coerce_fields, require
from habilis.core.options import unless
from habilis.core.specs import EnvSpec, action_parts
from habilis.core.tree import Tree, tree_index, tree_join, tree_map, tree_part
from habilis.core.types import Obs
from habilis.functional.smoothness import action_distance, between, perturbed
from habilis.nn.encoder import ObsEncoder
from habilis.nn.memory import Encoder
from habilis.policies.deterministic import DeterministicPolicy
from habilis.policies.stochastic import StochasticPolicy


@dataclass(frozen=True, kw_only=True)
class SmoothnessConfig:
    """Weights of the penalties, 0 for none. Distances are in units of half the action range, squared and summed."""

    temporal: float = 0.0
    """Of the distance between the actions at a step and at the next (CAPS)."""
    spatial: float = 0.0
    """Of the distance between the actions at an observation and at one with noise (CAPS)."""
    spatial_std: float = unless(0.1, spatial=0)
    """Deviation of that noise, in units of the observation as the network reads it: normalised where it is."""
    local: float = 0.0
    """Of the distance between the actions at an observation and within what one step changes of it (L2C2)."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        for name in ("temporal", "spatial", "local"):
            require(getattr(self, name) >= 0, f"smoothness.{name} must not be negative, got {getattr(self, name)}")
        require(self.spatial_std > 0, f"smoothness.spatial_std must be positive, got {self.spatial_std}")

    @property
    def used(self) -> bool:
        """Whether there is any penalty."""
        return self.temporal > 0 or self.spatial > 0 or self.local > 0


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


def draw_neighbours(
    c: SmoothnessConfig, normalize: Callable[[Obs], dict[str, Tensor]], data: Tree, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return what `smoothness_loss` takes, or nothing where there is no penalty.

    Args:
        c: the penalties.
        normalize: of the policy's encoder.
        data: with the raw parts `obs` and `next_obs`, each `[..., *shape]`.
        generator: source of noise and shares, which are drawn for every vector.
    """
    if not c.used:
        return {}
    here, following = normalize(tree_part(data, "obs")), normalize(tree_part(data, "next_obs"))
    vectors = {name: x for name, x in here.items() if x.is_floating_point()}
    normal = {name: torch.randn(x.shape, generator=generator, device=x.device) for name, x in vectors.items()}
    uniform = {name: torch.rand(x.shape, generator=generator, device=x.device) for name, x in vectors.items()}
    return tree_join(here=here, following=following, normal=normal, uniform=uniform)


def rollout_neighbours(
    c: SmoothnessConfig, encoder: Encoder, batch: RolloutBatch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return what `draw_neighbours` does for the steps of a rollout, `[T, N, *shape]`, and their true successors."""
    if not c.used:
        return {}
    following = {name: batch.obs[name][1:].clone() for name in encoder.names}
    for name, successors in following.items():
        successors[batch.final_index] = batch.final_obs[name]
    data = tree_join(obs=tree_index(batch.obs, slice(-1)), next_obs=following)
    return draw_neighbours(c, encoder.normalize, data, generator)


def bounded_action(policy: StochasticPolicy | DeterministicPolicy, normalized: Obs) -> Tensor:
    """Return the deterministic real values `[..., dim]` within their bounds for normalised observations."""
    assert isinstance(policy.encoder, ObsEncoder)
    features = policy.trunk(policy.encoder.features(normalized))
    if isinstance(policy, DeterministicPolicy):
        return torch.tanh(policy.head(features))
    return policy.action_map.bound(policy.head(features).mode())[..., : policy.action_map.values]


def with_smoothness(
    loss: Tensor,
    c: SmoothnessConfig,
    policy: StochasticPolicy | DeterministicPolicy,
    data: Tree,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a policy's loss with its penalties, and their sum as a scalar to log; as it is where there are none."""
    if not c.used:
        return loss, {}
    penalty = smoothness_loss(c, policy, data, weight)
    return loss + penalty, {"smoothness_loss": penalty.detach()}


def smoothness_loss(
    c: SmoothnessConfig, policy: StochasticPolicy | DeterministicPolicy, data: Tree, weight: Tensor | None = None
) -> Tensor:
    """Return the weighted sum of all penalties, 0-d.

    Args:
        c: the penalties.
        policy: what acts; called once, with all observations side by side.
        data: with what `draw_neighbours` returned, `[..., *shape]`.
        weight: `[...]`, summing to 1, in place of the mean over all rows.
    """
    here, following = tree_part(data, "here"), tree_part(data, "following")
    normal, uniform = tree_part(data, "normal"), tree_part(data, "uniform")
    pairs = [
        (c.temporal, following),
        (c.spatial, {**here, **{k: perturbed(here[k], x, c.spatial_std) for k, x in normal.items()}}),
        (c.local, {**here, **{k: between(here[k], following[k], 2 * x - 1) for k, x in uniform.items()}}),
    ]
    used = [(scale, neighbour) for scale, neighbour in pairs if scale > 0]
    together = tree_map(lambda *x: torch.cat(x), here, *(neighbour for _, neighbour in used))
    action, *others = bounded_action(policy, together).chunk(len(used) + 1)
    distances = zip(used, others, strict=True)
    return torch.stack([scale * action_distance(action, other, weight) for (scale, _), other in distances]).sum()
