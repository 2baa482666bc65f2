"""What an exported policy says of itself: the names of its files and the metadata inside `policy.onnx`.

A folder holds `policy.onnx` (raw observations in, by their groups' names; `action` out, in the environment's units),
`golden.json` (observations with the original policy's actions, and the tolerance) and `manifest.json` (checksums). All
of this package but `export` does without PyTorch.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from habilis.core.errors import ExportError, MissingExtraError
from habilis.core.specs import ActionSpec, BoxAction, DiscreteAction, EnvSpec, MultiDiscreteAction, ObsGroup

POLICY_FILE = "policy.onnx"
GOLDEN_FILE = "golden.json"
MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""Version of the folder's layout and of the metadata."""

ACTION = "action"
"""Name of the model's output; its inputs carry the names of the observation groups."""


def require(package: str) -> ModuleType:
    """Import one of the packages of the extra `deploy`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, "deploy") from error


def to_metadata(spec: EnvSpec, version: str) -> dict[str, str]:
    """Return the model's metadata: each value is JSON, so that any language reads it.

    Args:
        spec: what the policy reads and does; only the observation groups that it reads.
        version: the version of Habilis that exports it.
    """
    values = {
        "habilis.format": FORMAT,
        "habilis.version": version,
        "environment": spec.id,
        "observations": {name: {"shape": group.shape, "dtype": group.dtype} for name, group in spec.obs.items()},
        "action": {**_action_to_json(spec.action), "names": spec.action_names},
        "control_dt": spec.control_dt,
    }
    return {name: json.dumps(value, allow_nan=False) for name, value in values.items()}


def from_metadata(metadata: Mapping[str, str]) -> EnvSpec:
    """Read what `to_metadata` wrote.

    Raises:
        ExportError: the model was not exported by Habilis, or by a version with another format.
    """
    found = json.loads(metadata.get("habilis.format", "null"))
    if found != FORMAT:
        raise ExportError(
            f"the model's metadata has format {found}, expected {FORMAT}: export the policy again with this version"
        )
    values = {name: json.loads(value) for name, value in metadata.items()}
    return EnvSpec(
        id=values["environment"],
        obs={name: ObsGroup(tuple(g["shape"]), g["dtype"]) for name, g in values["observations"].items()},
        action=_action_from_json(values["action"]),
        control_dt=values["control_dt"],
        action_names=tuple(values["action"]["names"]),
    )


def _action_to_json(action: ActionSpec) -> dict[str, Any]:
    if isinstance(action, BoxAction):
        bounds = {"low": action.low, "high": action.high}
        return {"kind": "box"} | {k: [float(v) if np.isfinite(v) else None for v in b] for k, b in bounds.items()}
    if isinstance(action, DiscreteAction):
        return {"kind": "discrete", "n": action.n}
    return {"kind": "multi_discrete", "nvec": action.nvec}


def _action_from_json(values: Mapping[str, Any]) -> ActionSpec:
    if values["kind"] == "box":
        low = np.array([-np.inf if v is None else v for v in values["low"]], np.float32)
        high = np.array([np.inf if v is None else v for v in values["high"]], np.float32)
        return BoxAction(low, high)
    return DiscreteAction(values["n"]) if values["kind"] == "discrete" else MultiDiscreteAction(tuple(values["nvec"]))
