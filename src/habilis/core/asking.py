"""What passes between a policy and who asks it from outside, in NumPy: readings, what it remembers, its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from habilis.core.errors import HabilisError, NonFiniteError
from habilis.core.specs import EnvSpec


def by_group(obs: Any) -> Mapping[str, Any]:
    """Return an observation from outside by its groups: a bare array, or Gymnasium's "observation", is "policy"."""
    groups = obs if isinstance(obs, Mapping) else {"policy": obs}
    return {"policy": groups["observation"], **groups} if "observation" in groups else groups


def read_obs(
    obs: Any, spec: EnvSpec, names: Sequence[str], error: type[HabilisError] = HabilisError
) -> tuple[dict[str, np.ndarray], bool]:
    """Return the groups `names` of an observation from outside as rows, and whether it was one without a batch axis.

    Args:
        obs: one observation or a batch, for the group "policy"; or a mapping of groups, each as of `ObsGroup.rows`.
        spec: what the policy was made for.
        names: the groups it reads.
        error: what is raised of an observation that the policy cannot read.

    Raises:
        HabilisError: a group is missing, cannot be read (see `ObsGroup.rows`), or has other rows than another.
        NonFiniteError: a reading is not finite.
    """
    groups = by_group(obs)
    rows: dict[str, np.ndarray] = {}
    sizes: dict[str, str] = {}
    single = False
    for name in names:
        if name not in groups:
            raise error(f"the observation lacks the group {name!r}: the policy reads {tuple(names)}")
        try:
            rows[name], single = spec.obs[name].rows(groups[name], spec.frame_stack)
        except ValueError as wrong:
            raise error(f"the observation group {name!r} {wrong}") from wrong
        if spec.obs[name].dtype == "float32" and not np.isfinite(rows[name]).all():
            at = tuple(np.argwhere(~np.isfinite(rows[name]))[0].tolist())
            raise NonFiniteError(
                f"the observation group {name!r} is {rows[name][at]} at {at[1:] if single else at} (as float32): "
                "expected finite readings; the memory handed in is as it was, so ask again with it when there are"
            )
        sizes[name] = "one alone" if single else f"a batch of {len(rows[name])}"
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name!r} is {size}" for name, size in sizes.items())
        raise error(f"the groups of the observation are not of the same robots ({told}): give all alone, or all alike")
    return rows, single


def read_memory(
    memory: Any, shapes: Mapping[str, tuple[int, ...]], rows: int, error: type[HabilisError] = HabilisError
) -> dict[str, np.ndarray]:
    """Return what a policy is said to remember as arrays `[rows, ...]` by key; nothing where episodes begin.

    Args:
        memory: what the last call returned, arrays by key; None or an empty mapping when episodes begin.
        shapes: the shapes of what the policy remembers, for one environment, by key; it may be handed more.
        rows: how many robots are observed.
        error: what is raised of a memory that does not fit.

    Raises:
        HabilisError: it is none, lacks a key, or has another shape or not as many rows.
        NonFiniteError: it is not finite.
    """
    way_on = "hand on what the last call returned for the same robots, or None where episodes begin"
    if memory is None:
        return {}
    if not isinstance(memory, Mapping):
        raise error(f"the memory is of type {type(memory).__name__}, expected arrays by key: {way_on}")
    missing = [key for key in shapes if key not in memory]
    if memory and missing:
        raise error(f"the memory lacks {missing[0]!r}: {way_on}")
    arrays = {key: np.asarray(value, np.float32 if key in shapes else None) for key, value in memory.items()}
    for key, array in arrays.items():
        expected = (rows, *shapes.get(key, array.shape[1:]))
        if array.shape != expected:
            raise error(
                f"the memory {key!r} has shape {array.shape}, expected {expected} for {rows} observed: {way_on}"
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(f"the memory {key!r} is not finite: go on from an earlier one, or None to begin anew")
    return arrays


def as_answer(action: np.ndarray, single: bool) -> np.ndarray:
    """Return a policy's actions `[N, ...]`, or of an observation without a batch axis its action alone.

    Raises:
        NonFiniteError: an action is not finite, which no motor is to be sent.
    """
    if not np.isfinite(action).all():
        at = tuple(np.argwhere(~np.isfinite(action))[0].tolist())
        raise NonFiniteError(
            f"the policy's action is {action[at]} at {at[1:] if single else at}: its parameters are not finite, or a "
            "reading is so large that float32 overflows inside it; the memory handed in is as it was"
        )
    answer: np.ndarray = action[0] if single else action
    return answer
