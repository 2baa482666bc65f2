"""An exported policy on the robot's computer: NumPy in, NumPy out, with nothing but NumPy and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from habilis.core.asking import as_answer, read_memory, read_obs
from habilis.core.errors import ExportError, import_extra
from habilis.deploy.contract import ACTION, MEMORY, NEXT_MEMORY, POLICY_FILE, from_metadata


class OnnxPolicy:
    """The deterministic policy of a `policy.onnx`.

    Args:
        path: the exported folder or the file itself.
        threads: threads for one inference; the networks of policies are too small to gain from more than one.

    Attributes:
        spec: the environment it was made for: groups that it reads, action with bounds and names, `control_dt`.
        version: the version of Habilis that exported it.
        memory: the shape of what it remembers, for one environment, by key; empty for a policy without memory.

    Raises:
        ExportError: the file does not exist, or is no policy that Habilis exported.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        file = Path(path) / POLICY_FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise ExportError(f"there is no exported policy at {file}: give the folder that `habilis export` wrote")
        runtime = import_extra("onnxruntime", "deploy")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ExportError(f"{file} is not a whole ONNX model ({error}): export the policy again") from error
        self.spec, self.version, self.memory = from_metadata(self._session.get_modelmeta().custom_metadata_map)

    def predict(
        self, obs: np.ndarray | Mapping[str, np.ndarray], memory: Mapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
        """Answer one raw observation or a batch of them, as `predict` of the policy in PyTorch does.

        Args:
            obs: one observation or a batch, for the group "policy"; or a mapping of groups.
            memory: what the last call returned; None when episodes begin. Where one of a batch begins, its row is zero.
                It stays as it is.

        Returns:
            The action in the environment's units, batched as the observation was, and the memory for the next call:
            `[N, *shape]` by key, or None from a policy without memory.

        Raises:
            ExportError: a group is missing, has another shape, or images are not uint8; or the memory is not that of
                as many robots.
            NonFiniteError: a reading, the memory or an action is not finite.
        """
        inputs, single = read_obs(obs, self.spec, list(self.spec.obs), ExportError)
        if self.memory:
            rows = len(next(iter(inputs.values())))
            known = read_memory(memory, self.memory, rows, ExportError)
            fresh = {key: np.zeros((rows, *shape), np.float32) for key, shape in self.memory.items() if not known}
            inputs |= {MEMORY + key: (known or fresh)[key] for key in self.memory}
        action, *after = self._session.run([ACTION, *(NEXT_MEMORY + key for key in self.memory)], inputs)
        remembered = dict(zip(self.memory, after, strict=True)) if self.memory else None
        return as_answer(action, single), remembered
