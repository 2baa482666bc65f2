"""From a policy in PyTorch to `policy.onnx`: traced, checked against the original, and only then published.

The exported function is the policy's `forward`: raw observation groups to the deterministic action in the environment's
units, normaliser and action map inside, any batch size; with memory in and out where the policy has one. "Agrees" means
that for 1,000 observations each value of the action differs by at most 1e-5 of half its range (of 1 where it has no
bounds); a choice among several must be the same wherever float32 and float64 choose alike. To a policy with memory the
observations are shown as 25 episodes of 40 steps, each side remembering for itself.
"""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from habilis.core.config import require
from habilis.core.errors import ExportError, explain_os_error, import_extra
from habilis.core.random import derive_seed
from habilis.core.specs import EnvSpec, action_parts
from habilis.core.types import Obs
from habilis.core.version import __version__
from habilis.deploy.contract import ACTION, GOLDEN_FILE, MEMORY, NEXT_MEMORY, POLICY_FILE, to_metadata
from habilis.deploy.runtime import OnnxPolicy
from habilis.deploy.verify import check_answers, write_golden, write_manifest
from habilis.policies import NeuralPolicy

TOLERANCE = 1e-5
"""Largest difference of a value, in units of half its range."""
CHECKED = 1000
"""Observations that are drawn for the check."""
EPISODE = 40
"""Steps of an episode in the check of a policy with memory."""
GOLDEN = 16
"""Observations whose actions are kept as golden vectors; with memory, two episodes' first eight steps."""
OPSET = 18


def export_policy(
    policy: NeuralPolicy,
    spec: EnvSpec,
    output: str | Path,
    *,
    seed: int = 0,
    observations: Obs | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write the policy to a new folder, after ONNX Runtime has agreed with it.

    Args:
        policy: what to export; it stays as it is.
        spec: the environment it acts in, which the exported file describes as far as the policy reads it.
        output: the folder to make. It appears whole or not at all.
        seed: seed of the observations that are drawn for the check.
        observations: more observations `[n, *shape]` to check on, from the environment itself, say.
        tolerance: largest difference, in units of half a value's range. A policy whose own float32 arithmetic is
            rougher than the default (steep networks near saturation) can be exported with a larger one, which the
            folder then records.

    Returns:
        The folder, with `policy.onnx`, `golden.json` and `manifest.json`.

    Raises:
        ConfigError: the tolerance is negative.
        ExportError: the folder exists, the policy cannot be traced, gives values that are not finite, or the exported
            model disagrees with it; or the disk is full.
        MissingExtraError: onnx, onnxscript or ONNX Runtime is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, "deploy")
    require(tolerance >= 0, f"tolerance is the largest difference allowed, 0 or more, got {tolerance}")
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(f"{output} exists and nothing is overwritten: choose another folder or remove it")
    policy = copy.deepcopy(policy).cpu().eval()
    spec = replace(spec, obs={name: spec.obs[name] for name in policy.encoder.names})
    obs = draw_observations(spec, CHECKED, torch.Generator().manual_seed(derive_seed(seed, "export")))
    obs = policy.encoder.denormalize(obs)
    if observations is not None:
        obs = {name: torch.cat([rows, observations[name].cpu()]) for name, rows in obs.items()}
    staging = output.with_name(f"{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write_onnx(policy, spec, staging / POLICY_FILE)
        raw, actions, allowed, steps = answers_of(policy, obs, tolerance)
        check_answers(OnnxPolicy(staging), raw, actions, allowed, steps)
        kept = min(steps, GOLDEN // 2)
        golden = {name: _last_episodes(rows, steps, kept) for name, rows in raw.items()}
        write_golden(staging / GOLDEN_FILE, golden, _last_episodes(actions, steps, kept), allowed, kept)
        write_manifest(staging)
        staging.rename(output)
    except OSError as error:
        raise ExportError(f"{output} could not be written ({explain_os_error(error, named=True)})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return output


def draw_observations(spec: EnvSpec, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw `[count, *shape]` for every group: vectors of a size between 0.1 and 10, images of uniform noise."""
    obs: dict[str, Tensor] = {}
    for name, group in spec.obs.items():
        shape = (count, *group.shape)
        if group.dtype == "uint8":
            obs[name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            exponent = torch.rand((count, *[1] * len(group.shape)), generator=generator) * 2 - 1
            obs[name] = torch.randn(shape, generator=generator) * 10**exponent
    return obs


def write_onnx(policy: NeuralPolicy, spec: EnvSpec, file: Path) -> None:
    """Trace the policy's `forward` and write it with the metadata of `spec`.

    Raises:
        ExportError: the policy cannot be traced.
    """
    inputs: dict[str, dict[str, Tensor]] = {"obs": draw_observations(spec, 2, torch.Generator().manual_seed(0))}
    memory = policy.fresh_memory(2)
    if memory:
        inputs["memory"] = memory
    try:
        with _quiet():
            program = torch.onnx.export(
                policy,
                kwargs=inputs,
                input_names=[*inputs["obs"], *(MEMORY + key for key in memory)],
                output_names=[ACTION, *(NEXT_MEMORY + key for key in memory)],
                dynamic_shapes={part: {name: {0: "batch"} for name in tree} for part, tree in inputs.items()},
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ExportError(
            f"the policy cannot be traced to ONNX ({reason}): its forward must be plain tensor code"
        ) from error
    assert program is not None
    shapes = {key: tuple(value.shape[1:]) for key, value in memory.items()}
    program.model.metadata_props.update(to_metadata(spec, __version__, shapes))
    program.save(file, external_data=False)


def answers_of(
    policy: NeuralPolicy, obs: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, int]:
    """Return what the export is held to: observations, the policy's actions for them, the largest error of each.

    Args:
        policy: the original, on the CPU.
        obs: observations `[n, *shape]` of every group that it reads; of them as many as make whole episodes, if it has
            a memory.
        tolerance: in units of half a value's range (of 1 where it has no bounds).

    Returns:
        The observations, step after step, without the episodes in which float32 and float64 choose differently; the
        actions, `[n, dim]`, `[n, k]` or `[n]`; the largest error, `[dim]`, and 0 for choices, which must be the same;
        and the steps of an episode, which is 1 without memory.

    Raises:
        ExportError: an action is not finite.
    """
    steps = EPISODE if policy.fresh_memory(1) else 1
    obs = {name: rows[: len(rows) // steps * steps] for name, rows in obs.items()}
    actions = _act_out(policy, obs, steps)
    raw = {name: rows.numpy() for name, rows in obs.items()}
    if not np.isfinite(actions).all():
        raise ExportError("the policy's actions are not finite: export an earlier checkpoint")
    box, choices = action_parts(policy.spec.action)
    allowed = np.array(0.0)
    if box is not None:
        half_range = (box.high.astype(np.float64) - box.low) / 2
        allowed = tolerance * np.where(np.isfinite(half_range), half_range, 1.0)
    if choices is None:
        return raw, actions, allowed, steps
    values = 0 if box is None else box.dim
    allowed = np.pad(allowed, (0, actions.shape[1] - values)) if values else allowed
    precise = {name: rows.double() if rows.is_floating_point() else rows for name, rows in obs.items()}
    exact = _act_out(copy.deepcopy(policy).double(), precise, steps)
    same = (actions == exact)[..., values:] if values else actions == exact
    firm = np.tile(same.reshape(steps, len(actions) // steps, -1).all((0, 2)), steps)
    return {name: rows[firm] for name, rows in raw.items()}, actions[firm], allowed, steps


@torch.no_grad()
def _act_out(policy: NeuralPolicy, obs: Obs, steps: int) -> np.ndarray:
    """Return the actions `[steps * n, ...]` for observations `[steps * n, *shape]`, the policy remembering."""
    actions, memory = [], None
    for t in range(steps):
        action, memory = policy({name: rows.tensor_split(steps)[t] for name, rows in obs.items()}, memory)
        actions.append(action)
    return torch.cat(actions).numpy()


def _last_episodes(rows: np.ndarray, steps: int, kept: int) -> np.ndarray:
    """Return the first `kept` steps of the last episodes of `[steps * n, ...]`, of `GOLDEN` steps in all."""
    episodes = rows.reshape(steps, -1, *rows.shape[1:])
    return episodes[:kept, -(GOLDEN // kept) :].reshape(-1, *rows.shape[1:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's remarks on its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
