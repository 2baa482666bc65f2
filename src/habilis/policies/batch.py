"""Observations from outside (NumPy, one or many) to the batch of tensors that a policy reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from habilis.core.errors import HabilisError
from habilis.core.specs import EnvSpec, by_group


def as_batch(
    obs: np.ndarray | Mapping[str, np.ndarray], spec: EnvSpec, names: Sequence[str], device: torch.device
) -> tuple[dict[str, Tensor], bool]:
    """Return the groups `names` as tensors `[N, *shape]`, and whether it was one observation without a batch axis.

    Args:
        obs: one observation or a batch, for the group "policy"; or a mapping of groups.
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
        group = spec.obs[name]
        if name not in groups:
            raise HabilisError(f"the observation lacks the group {name!r}: the policy reads {tuple(names)}")
        array = np.asarray(groups[name])
        single = array.shape == group.shape
        if not single and array.shape[1:] != group.shape:
            raise HabilisError(
                f"the observation group {name!r} has shape {array.shape}: expected {group.shape} or a batch of them"
            )
        tensor = torch.as_tensor(array, device=device).to(getattr(torch, group.dtype))
        tensors[name] = tensor.unsqueeze(0) if single else tensor
    return tensors, single
