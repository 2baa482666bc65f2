"""Does an exported policy answer as the original did? Checksums first, then golden vectors through ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from habilis.core.errors import ExportError
from habilis.deploy.contract import FORMAT, GOLDEN_FILE, MANIFEST_FILE, POLICY_FILE
from habilis.deploy.runtime import OnnxPolicy


def verify_policy(path: str | Path) -> OnnxPolicy:
    """Check an exported folder and return its policy, ready to act.

    Every file must have the checksum of the manifest, and the model, run here, must give the golden actions to the
    tolerance it was exported with: so a folder that was damaged on its way is refused, and so is a computer whose ONNX
    Runtime calculates something else.

    Raises:
        ExportError: the folder is not whole, was altered, or its policy answers otherwise than the original.
        MissingExtraError: ONNX Runtime is not installed.
    """
    folder = Path(path)
    manifest = _read_json(folder / MANIFEST_FILE)
    if manifest.get("format") != FORMAT or set(manifest.get("sha256", {})) != {POLICY_FILE, GOLDEN_FILE}:
        raise ExportError(f"{folder / MANIFEST_FILE} is not of format {FORMAT}: export the policy again")
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file() or checksum(folder / name) != expected:
            raise ExportError(f"{folder / name} is not the file that was exported: copy or export the policy again")
    policy = OnnxPolicy(folder)
    golden = _read_json(folder / GOLDEN_FILE)
    obs = {name: np.array(golden["observations"][name], group.dtype) for name, group in policy.spec.obs.items()}
    answers = np.array(golden["actions"]), np.array(golden["tolerance"])
    check_answers(policy, obs, *answers, golden.get("steps", 1))  # of which older folders say nothing
    return policy


def check_answers(
    policy: OnnxPolicy, obs: Mapping[str, np.ndarray], actions: np.ndarray, tolerance: np.ndarray, steps: int = 1
) -> None:
    """Check that the policy answers observations with `actions`, asked for the first alone and for all others at once.

    Args:
        policy: the exported policy.
        obs: observations `[steps * n, *shape]` of every group that it reads, step after step, of at least two episodes.
        actions: the original's answers, `[steps * n, dim]`, `[steps * n, k]` or `[steps * n]`.
        tolerance: largest difference, `[dim]` in the units of the action, or 0-d.
        steps: how many follow each other from the beginning of an episode on, the memory of the exported policy too.

    Raises:
        ExportError: an answer differs by more than the tolerance; the first one is named.
    """
    answers = []
    memories: list[dict[str, np.ndarray] | None] = [None, None]
    for t in range(steps):
        now = {name: np.split(rows, steps)[t] for name, rows in obs.items()}
        for k, part in enumerate((slice(0, 1), slice(1, None))):
            answer, memories[k] = policy.predict({name: rows[part] for name, rows in now.items()}, memories[k])
            answers.append(answer)
    answered = np.concatenate(answers)
    if answered.shape != actions.shape:
        raise ExportError(f"the exported policy answers {answered.shape} where the original answers {actions.shape}")
    wrong = ~(np.abs(answered.astype(np.float64) - actions) <= tolerance)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise ExportError(
            f"the exported policy disagrees with the original on {wrong.sum()} of {wrong.size} values, first in "
            f"observation {at[0]}: {answered[at]} instead of {actions[at]}; do not use it, export again (with "
            "a larger tolerance where so much may be)"
        )


def write_golden(
    path: Path, obs: Mapping[str, np.ndarray], actions: np.ndarray, tolerance: np.ndarray, steps: int
) -> None:
    """Write golden vectors: what `check_answers` takes."""
    golden = {
        "observations": {name: rows.tolist() for name, rows in obs.items()},
        "actions": actions.tolist(),
        "tolerance": tolerance.tolist(),
        "steps": steps,
    }
    path.write_text(json.dumps(golden, allow_nan=False))


def write_manifest(folder: Path) -> None:
    """Write the checksums of the folder's other files."""
    sums = {name: checksum(folder / name) for name in (POLICY_FILE, GOLDEN_FILE)}
    (folder / MANIFEST_FILE).write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=2) + "\n")


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} cannot be read ({error}): give the folder that `habilis export` wrote") from error
    if not isinstance(value, dict):
        raise ExportError(f"{file} holds no JSON object: give the folder that `habilis export` wrote")
    return value
