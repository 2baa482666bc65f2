"""The state of an algorithm, collected by reflection from one declared bundle.

A bundle is a dataclass whose fields are everything that learning changes: modules, optimisers, tensors, generators and counters. What
is not in the bundle is not in the checkpoint; a contract test walks each algorithm and fails when it finds state outside.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from habilis.core.errors import CheckpointError
from habilis.core.types import State


def bundle_state(bundle: Any) -> State:
    """Return the state of every field of a bundle."""
    return {f.name: _state_of(getattr(bundle, f.name)) for f in dataclasses.fields(bundle)}


def load_bundle(bundle: Any, state: State) -> None:
    """Restore a bundle in place: tensors are written into, so that whatever shares them sees the change.

    Raises:
        CheckpointError: the bundle and the state do not have the same fields.
    """
    names = {f.name for f in dataclasses.fields(bundle)}
    if names != set(state):
        raise CheckpointError(
            f"the checkpoint holds {sorted(state)} where {sorted(names)} is expected: it was written by another "
            "algorithm or version; train afresh or use the version named in its manifest"
        )
    for name in names:
        current, saved = getattr(bundle, name), state[name]
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.copy_(saved)
        elif isinstance(current, torch.Generator):
            current.set_state(saved)
        elif hasattr(current, "load_state_dict"):
            current.load_state_dict(saved)
        else:
            setattr(bundle, name, saved)


def _state_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    return value.state_dict() if hasattr(value, "state_dict") else value
