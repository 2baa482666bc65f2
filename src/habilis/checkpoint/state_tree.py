"""Between a state tree and what a file can hold: a JSON structure and a flat table of tensors, exact both ways.

A state is what `state_dict` returns: dicts, lists and tuples of tensors, NumPy arrays and scalars, numbers, strings,
booleans and None. In the structure a tensor is a reference by name, and whatever JSON cannot say by itself is an object
with one tag that begins with `$`: `{"$tuple": [...]}`, `{"$dict": [[key, value], ...]}`, `{"$float": "nan"}`. The
names are the paths of the leaves (`optimizer/state/0/exp_avg`), so that any safetensors reader finds a weight by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from habilis.core.errors import CheckpointError

NATIVE_DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
"""Kinds of numbers that every safetensors reader knows; all others are stored as bytes beside their name."""

NATIVE_NUMPY = {
    np.dtype(name).str for name in (
        "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    )
}  # fmt: skip
"""The same for arrays, byte order included."""

JSON_INTEGER_BITS = 53
"""Integers up to this length survive every JSON reader; longer ones are written as hexadecimal text."""


def flatten(state: Any, *, where: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """Take a state apart.

    Args:
        state: The state tree. It is only read; tensors may be views, share storage or lie on any device.
        where: What the state is called in errors.

    Returns:
        The structure, which `json.dumps` takes, and the tensors by name: contiguous, on the CPU, none sharing the
        storage of another. A tensor that is so already is not copied.

    Raises:
        CheckpointError: If the tree holds something else than the kinds above.
    """
    flattener = _Flattener(where)
    return flattener.encode(state, ()), flattener.tensors


def unflatten(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what `flatten` took apart: the same kinds, dtypes and shapes; tensors are on the CPU.

    Raises:
        CheckpointError: If structure and tensors do not belong together.
    """
    try:
        return _decode(structure, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the structure of the state does not fit its tensors ({error}): load another") from error


class _Flattener:
    """One walk through a state; `tensors` fills on the way."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.tensors: dict[str, Tensor] = {}
        self._names = {"", "__metadata__"}  # the second is reserved in a safetensors header
        self._storages: set[int] = set()

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        """Return the structure of `value`, which lies at `path`."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if value.bit_length() <= JSON_INTEGER_BITS else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is list:
            return [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            return self._encode_mapping(value, path)
        if isinstance(value, Tensor):
            return self._encode_tensor(value, path)
        if kind in (np.ndarray, np.memmap):
            return self._encode_array("$array", value, path)
        if isinstance(value, np.generic):
            return self._encode_array("$scalar", np.asarray(value), path)
        raise self._refusal(path, f"a {kind.__module__}.{kind.__qualname__}")

    def _encode_mapping(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        encoded = [(key, self.encode(item, (*path, str(key)))) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("$") for key, _ in encoded):
            return dict(encoded)
        return {"$dict": [[self._encode_key(key, path), item] for key, item in encoded]}

    def _encode_key(self, key: Any, path: tuple[str, ...]) -> Any:
        if type(key) is tuple:
            return {"$tuple": [self._encode_key(part, path) for part in key]}
        if key is not None and type(key) not in (bool, int, float, str):
            raise self._refusal(path, f"the dict key {key!r} of type {type(key).__name__}")
        return self.encode(key, path)

    def _encode_tensor(self, value: Tensor, path: tuple[str, ...]) -> Any:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise self._refusal(path, f"a tensor that is sparse, quantized or without data ({value.layout})")
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if tensor.dtype in NATIVE_DTYPES:
            return {"$tensor": self._add(tensor, path)}
        name = self._add(tensor.reshape(-1).view(torch.uint8), path)
        return {"$tensor": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}

    def _encode_array(self, tag: str, value: np.ndarray, path: tuple[str, ...]) -> Any:
        if value.dtype.kind in "OV" or value.dtype.itemsize == 0:
            raise self._refusal(path, f"an array of dtype {value.dtype}")
        array = np.require(value, requirements=["C", "A", "W", "E"])
        if array.dtype.str in NATIVE_NUMPY:
            return {tag: self._add(torch.from_numpy(array), path)}
        name = self._add(torch.from_numpy(array.reshape(-1).view(np.uint8)), path)
        return {tag: name, "dtype": array.dtype.str, "shape": list(array.shape)}

    def _add(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        """Keep `tensor` under the name of its path, made unique, and in a storage of its own."""
        storage = tensor.untyped_storage().data_ptr()
        if storage in self._storages:
            tensor = tensor.clone()
        self._storages.add(storage)
        base = "/".join(path).encode("ascii", "backslashreplace").decode()
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}#{count}", count + 1
        self._names.add(name)
        self.tensors[name] = tensor
        return name

    def _refusal(self, path: tuple[str, ...], what: str) -> CheckpointError:
        return CheckpointError(
            f"{'/'.join((self.where, *path))} is {what}, which a checkpoint cannot hold: let state_dict give tensors, "
            "arrays, numbers, strings, booleans, None and dicts, lists and tuples of them"
        )


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node), "")
    if not tag.startswith("$"):
        return {key: _decode(item, tensors) for key, item in node.items()}
    content = node[tag]
    match tag:
        case "$int":
            return int(content, 16)
        case "$float":
            return float(content)
        case "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "$dict":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
        case "$tensor":
            return _decode_tensor(tensors[content], node)
        case "$array":
            return _decode_array(tensors[content], node)
        case "$scalar":
            return _decode_array(tensors[content], node)[()]
    raise ValueError(f"unknown tag {tag}")


def _decode_tensor(tensor: Tensor, node: Mapping[str, Any]) -> Tensor:
    return tensor.view(getattr(torch, node["dtype"])).reshape(node["shape"]) if "dtype" in node else tensor


def _decode_array(tensor: Tensor, node: Mapping[str, Any]) -> np.ndarray:
    array = tensor.numpy()
    return array.view(np.dtype(node["dtype"])).reshape(node["shape"]) if "dtype" in node else array
