"""The state of an algorithm, collected by reflection from one declared bundle.

A bundle is a dataclass whose fields are everything that learning changes: modules, optimisers, tensors, generators and
counters. What is not in the bundle is not in the checkpoint; a contract test walks each algorithm and fails when it
finds state outside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from habilis.core.errors import CheckpointError
from habilis.core.types import State


def bundle_state(bundle: Any) -> State:
    """Return the state of every field of a bundle, copied: it stays as it is while learning goes on."""
    return {f.name: _copy_of(getattr(bundle, f.name)) for f in dataclasses.fields(bundle)}


def load_bundle(bundle: Any, state: State) -> None:
    """Restore a bundle in place: tensors are written into, so that whatever shares them sees the change.

    A parameter that nothing learns (a fixed temperature) stays what it was made with.

    Raises:
        CheckpointError: the bundle and the state do not have the same fields, or a field does not fit its state.
    """
    names = [f.name for f in dataclasses.fields(bundle)]
    if set(names) != set(state):
        raise CheckpointError(
            f"the checkpoint holds {sorted(state)} where {sorted(names)} is expected: it was written by another "
            "algorithm or version; train afresh or use the version named in its manifest"
        )
    for name in names:
        current, saved = getattr(bundle, name), state[name]
        if isinstance(current, nn.Parameter) and not current.requires_grad:
            continue  # nothing learns it: it is what the configuration says now
        if (current is None) != (saved is None) or (isinstance(current, Tensor) and current.shape != saved.shape):
            raise _misfit(name, "one of them has no such part, or one of another shape")
        try:
            if isinstance(current, Tensor):
                with torch.no_grad():
                    current.copy_(saved)
            elif isinstance(current, torch.Generator):
                current.set_state(saved)
            elif hasattr(current, "load_state_dict"):
                current.load_state_dict(saved)
            else:
                setattr(bundle, name, saved)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise _misfit(name, str(error)) from error


def _copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Mapping):
        return {k: _copy_of(v) for k, v in value.items()}
    return _copy_of(value.state_dict()) if hasattr(value, "state_dict") else value


def _misfit(name: str, why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's {name!r} does not fit ({why}): load it with the configuration of its run")
