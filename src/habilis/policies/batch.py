"""What every policy does alike: it answers observations from outside (NumPy, one or many), explores and remembers.

Noise and what is remembered travel among the observation groups, so that acting is a pure function of named tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from habilis.core.batches import MEMORY
from habilis.core.errors import HabilisError
from habilis.core.specs import EnvSpec, by_group
from habilis.core.tree import Tree
from habilis.core.types import Obs, PolicyStep
from habilis.nn.memory import Encoder, MemoryEncoder
from habilis.policies.action_filter import LAST, ActionFilter

NOISE = "/noise"
"""Name of the noise among observation groups, which none of them can have."""

NETWORK, ACTION = "network", "last_action"
"""Keys of what a network remembers, and of what a filter of actions does, in the memory of a policy."""


def fresh_memory(encoder: Encoder, rows: int, action_filter: ActionFilter | None = None) -> dict[str, Tensor]:
    """Return what a policy of these parts remembers when an episode begins: nothing where none has a memory."""
    memory = {NETWORK: encoder.fresh(rows)} if isinstance(encoder, MemoryEncoder) else {}
    return memory | ({} if action_filter is None else {ACTION: action_filter.fresh(rows)})


def with_memory(
    encoder: Encoder, obs: Obs, memory: Tree | None, action_filter: ActionFilter | None = None
) -> dict[str, Tensor]:
    """Return the groups that an encoder reads, what it remembers and what a filter of actions does, named `LAST`.

    What `memory` lacks is fresh.
    """
    data = {name: obs[name] for name in encoder.names}
    known = {} if memory is None else memory
    first = data[encoder.names[0]]  # whose length is asked for where it is needed alone: an exported graph has any
    if isinstance(encoder, MemoryEncoder):
        data[MEMORY] = known[NETWORK] if NETWORK in known else encoder.fresh(len(first))
    if action_filter is not None:
        data[LAST] = known[ACTION] if ACTION in known else action_filter.fresh(len(first))
    return data


def encode(encoder: Encoder, data: Tree) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the features of what `with_memory` returned, and what is remembered now, under `MEMORY`."""
    if isinstance(encoder, MemoryEncoder):
        features, after = encoder.step(data, data[MEMORY])
        return features, {MEMORY: after}
    return encoder(data), {}


def remember(memory: Tree | None, results: Tree) -> Tree | None:
    """Return a policy's memory with what is among the results of a step; as it is where there is nothing."""
    if MEMORY not in results and LAST not in results:
        return memory
    after = {key: results[name] for key, name in ((NETWORK, MEMORY), (ACTION, LAST)) if name in results}
    return {**(memory or {}), **after}


@torch.no_grad()
def follow(policy: Any, action: Tensor, obs: Obs, memory: Tree | None) -> PolicyStep:
    """Return the step of a policy that is told what to do: it remembers what it sees and does all the same.

    Args:
        policy: what would have acted.
        action: what it is to do instead, `[N, ...]` in its units.
        obs: raw observation groups `[N, *shape]`.
        memory: as of `policy.act`.
    """
    data = with_memory(policy.encoder, obs, memory, policy.action_map.filter)
    seen = encode(policy.encoder, data)[1] if isinstance(policy.encoder, MemoryEncoder) else {}
    env_action, done = policy.action_map.step(action, data)
    return PolicyStep(action, env_action, memory=remember(memory, {**seen, **done}))


def fresh_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded from the operating system's entropy, another each time."""
    generator = torch.Generator(device)
    generator.seed()
    return generator


def predict(
    policy: Any, obs: np.ndarray | Mapping[str, np.ndarray], memory: Any, deterministic: bool, device: torch.device
) -> tuple[np.ndarray, Any]:
    """Ask a policy for the actions of one observation or a batch of them, NumPy in, NumPy out.

    Args:
        policy: what is asked; it computes on `device`.
        obs: as of `as_batch`.
        memory: what the last call returned.
        deterministic: as of `policy.act`.
        device: where the policy lies.

    Returns:
        The action in the environment's units, batched as the observation was, and the memory for the next call.
    """
    tensors, single = as_batch(obs, policy.spec, policy.encoder.names, device)
    step = policy.act(tensors, memory, deterministic=deterministic)
    action = step.env_action.numpy(force=True)
    return (action[0] if single else action), step.memory


def as_batch(
    obs: np.ndarray | Mapping[str, np.ndarray], spec: EnvSpec, names: Sequence[str], device: torch.device
) -> tuple[dict[str, Tensor], bool]:
    """Return the groups `names` as tensors `[N, *shape]`, and whether it was one observation without a batch axis.

    Args:
        obs: one observation or a batch, for the group "policy"; or a mapping of groups, each as of `ObsGroup.rows`.
        spec: what the policy was made for.
        names: the groups it reads.
        device: where it computes.

    Raises:
        HabilisError: a group is missing or has another shape.
    """
    groups = by_group(obs)
    tensors: dict[str, Tensor] = {}
    single = False
    for name in names:
        if name not in groups:
            raise HabilisError(f"the observation lacks the group {name!r}: the policy reads {tuple(names)}")
        try:
            rows, single = spec.obs[name].rows(groups[name])
        except ValueError as error:
            stacked = spec.frame_stack > 1 and spec.obs[name].is_image
            frames = f" ({spec.frame_stack} frames side by side in the channels, the newest last)" if stacked else ""
            raise HabilisError(f"the observation group {name!r} {error}{frames}") from error
        tensors[name] = torch.as_tensor(rows, device=device)
    return tensors, single
