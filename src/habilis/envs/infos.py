"""The info dictionaries of Gymnasium-like environments as tensors with the same keys every step.

A numeric value of an environment becomes a row of a float32 tensor `[N]` or `[N, k]`; a nested dictionary gives names
joined with `/`. A key that was shown once is there in every later step, NaN where an environment did not give it.
Two names are words of ours: `is_success` or `success` becomes the bool tensor `"success"` (missing: false) and `cost`
stays `"cost"` (missing: 0). Text, objects, arrays of more axes and such as change their length are left out.

Gymnasium batches infos by the type of the first environment's: a 0 makes integers of all, and arrays of two lengths, or
what is now a dictionary and now none, end the run. So each environment's infos are made plain before (`plain_info`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NOT_INFO = {"final_obs", "final_observation", "final_info", "terminal_observation"}
"""Keys that carry the end of an episode and are read elsewhere."""

Column = tuple[np.ndarray, np.ndarray]
"""The values of one key, `[N]` or `[N, k]` float32, and the mask `[N]` of the environments that gave one."""


class Vector(NamedTuple):
    """Several numbers of one environment, which Gymnasium passes on as they are."""

    values: np.ndarray


def plain_info(info: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers of one environment's info as floats and its vectors as `Vector`, without nesting.

    What carries the end of an episode stays as it is.
    """
    plain: dict[str, Any] = {}
    for key, value in info.items():
        name = f"{prefix}{key}"
        if name in NOT_INFO:
            plain[name] = value
        elif isinstance(value, Mapping):
            plain |= plain_info(value, f"{name}/")
        elif isinstance(value, bool | int | float | np.generic | np.ndarray):
            numbers = np.asarray(value)
            if numbers.ndim <= 1 and numbers.size and numbers.dtype.kind in "biuf":
                plain[name] = Vector(numbers) if numbers.ndim else float(numbers)
    return plain


class InfoTable:
    """Converts one step's infos of N environments to tensors, and remembers the keys it has shown."""

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, infos: Mapping[str, Any], ended: np.ndarray | None = None) -> dict[str, Tensor]:
        """Return the tensors of one step.

        Args:
            infos: Gymnasium's batched infos, each key with its mask `_key` where not every environment gave it.
            ended: `[N]` bool: environments whose infos of this step lie in `infos["final_info"]`, because the ones
                outside are already of the next episode.
        """
        table = self._blank()
        self._fill(table, infos, None if ended is None else ~ended)
        if ended is not None:
            self._fill(table, infos["final_info"], ended)
        tensors: dict[str, Tensor] = {name: torch.from_numpy(values) for name, values in table.items()}
        if "success" in tensors:
            tensors["success"] = tensors["success"].nan_to_num() != 0
        if "cost" in tensors:
            tensors["cost"] = tensors["cost"].nan_to_num()
        return tensors

    def _blank(self) -> dict[str, np.ndarray]:
        return {k: np.full((self._num_envs, *shape), np.nan, np.float32) for k, shape in self._shapes.items()}

    def _fill(self, table: dict[str, np.ndarray], infos: Mapping[str, Any], rows: np.ndarray | None) -> None:
        """Write the columns of `infos` into `table`, all rows or those in the mask `rows`."""
        for name, (values, mask) in self._columns(infos):
            if name not in table:
                self._shapes[name] = values.shape[1:]
                table[name] = np.full_like(values, np.nan)
            if values.shape == table[name].shape:
                chosen = mask if rows is None else mask & rows
                table[name][chosen] = values[chosen]

    def _columns(self, infos: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Column]]:
        for key, value in infos.items():
            if not isinstance(key, str) or key in NOT_INFO or (key.startswith("_") and key[1:] in infos):
                continue
            if isinstance(value, Mapping):
                yield from self._columns(value, f"{prefix}{key}/")
                continue
            mask = np.asarray(infos.get(f"_{key}", np.ones(self._num_envs, bool)), bool)
            values = self._numbers(value, mask)
            if values is not None:
                name = f"{prefix}{key}"
                yield "success" if name == "is_success" else name, (values, mask)

    def _numbers(self, value: Any, mask: np.ndarray) -> np.ndarray | None:
        """Return `value` as float32 `[N]` or `[N, k]`, or None where it is not numeric."""
        values: np.ndarray | None = np.asarray(value)
        if values.ndim not in (1, 2) or len(values) != self._num_envs:
            return None
        if values.dtype == object:
            values = self._gather(values, np.flatnonzero(mask))
        if values is None or values.dtype.kind not in "biuf":
            return None
        values = values.astype(np.float32)
        return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values  # an array of one is a number

    def _gather(self, values: np.ndarray, given: np.ndarray) -> np.ndarray | None:
        """Return what Gymnasium keeps as objects: `np.bool_` and the like, and the vectors of `plain_info`."""
        vectors = {i: values[i].values for i in given if isinstance(values[i], Vector)}
        if vectors:
            rows = np.full((self._num_envs, max(map(len, vectors.values()))), np.nan)
            for i, vector in vectors.items():
                if len(vector) == rows.shape[1]:
                    rows[i] = vector
            return rows
        if not all(isinstance(values[i], float | int | np.bool_ | np.number) for i in given):
            return None
        numbers = np.full(self._num_envs, np.nan)
        for i in given:
            numbers[i] = values[i]
        return numbers
