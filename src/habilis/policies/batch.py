"""What every policy does alike: it answers observations from outside (NumPy, one or many), explores and remembers.

Noise and what is remembered travel among the observation groups, so that acting is a pure function of named tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from habilis.core.asking import as_answer, read_memory, read_obs
from habilis.core.batches import MEMORY
from habilis.core.specs import EnvSpec
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
        memory: what the last call returned, or an export's: tensors or arrays; None when episodes begin. It stays as
            it is.
        deterministic: as of `policy.act`.
        device: where the policy lies.

    Returns:
        The action in the environment's units, batched as the observation was, and the memory for the next call.

    Raises:
        HabilisError: the policy cannot read the observation, or the memory is not that of as many robots.
        NonFiniteError: a reading, the memory or an action is not finite.
    """
    tensors, single = as_batch(obs, policy.spec, policy.encoder.names, device)
    known = as_memory(memory, policy, len(next(iter(tensors.values()))), device)
    step = policy.act(tensors, known, deterministic=deterministic)
    return as_answer(step.env_action.numpy(force=True), single), step.memory


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
        HabilisError: as of `read_obs`.
    """
    rows, single = read_obs(obs, spec, names)
    return {name: torch.as_tensor(array, device=device) for name, array in rows.items()}, single


def as_memory(memory: Any, policy: Any, rows: int, device: torch.device) -> dict[str, Tensor] | None:
    """Return what a policy is said to remember of `rows` robots as tensors on its device; None where episodes begin.

    Raises:
        HabilisError: as of `read_memory`.
    """
    if memory is None:
        return None
    held = memory
    if isinstance(memory, Mapping):
        held = {key: x.numpy(force=True) if isinstance(x, Tensor) else x for key, x in memory.items()}
    shapes = {key: tuple(x.shape[1:]) for key, x in policy.fresh_memory(1).items()}
    arrays = read_memory(held, shapes, rows)
    # what is a tensor on the device already stays one
    given = {key: memory[key] if isinstance(memory[key], Tensor) else array for key, array in arrays.items()}
    return {key: torch.as_tensor(x, device=device) for key, x in given.items()}
