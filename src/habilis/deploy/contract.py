"""What an exported policy says of itself: the names of its files and the metadata inside `policy.onnx`.

A folder holds `policy.onnx` (raw observations in, by their groups' names; `action` out, in the environment's units; of
a policy with memory `memory/<key>` in, zeros when an episode begins, and `next_memory/<key>` out), `golden.json`
(observations with the original policy's actions, and the tolerance) and `manifest.json` (checksums). All of this
package but `export` does without PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from habilis.core.errors import ExportError
from habilis.core.specs import EnvSpec, spec_from_dict, spec_to_dict

POLICY_FILE = "policy.onnx"
GOLDEN_FILE = "golden.json"
MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""Version of the folder's layout and of the metadata."""

ACTION = "action"
"""Name of the model's output; its inputs carry the names of the observation groups."""
MEMORY, NEXT_MEMORY = "memory/", "next_memory/"
"""What the names of inputs and outputs begin with that carry a policy's memory from step to step."""


def to_metadata(spec: EnvSpec, version: str, memory: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the model's metadata; each value is JSON, so that any language reads it.

    Args:
        spec: what the policy reads and does; only the observation groups that it reads.
        version: the version of Habilis that exports it.
        memory: the shape of what it remembers, for one environment, by key.
    """
    values = {"format": FORMAT, "habilis": version, "memory": memory, **spec_to_dict(spec)}
    return {name: json.dumps(value, allow_nan=False) for name, value in values.items()}


def from_metadata(metadata: Mapping[str, str]) -> tuple[EnvSpec, str, dict[str, tuple[int, ...]]]:
    """Read what `to_metadata` was given.

    Raises:
        ExportError: the model was not exported by Habilis, or by a version with another format.
    """
    found = metadata.get("format")
    if found != str(FORMAT):
        raise ExportError(
            f"the model's metadata has format {found}, expected {FORMAT}: export the policy again with this version"
        )
    values = {name: json.loads(value) for name, value in metadata.items()}
    del values["format"]
    version = values.pop("habilis")
    memory = {key: tuple(shape) for key, shape in values.pop("memory", {}).items()}  # of which older files say nothing
    return spec_from_dict(values), version, memory
