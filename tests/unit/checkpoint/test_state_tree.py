"""A state comes back as it was: kinds, dtypes, shapes and every bit, through JSON and a safetensors file."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from habilis.checkpoint.files import read_tensors, write_tensors
from habilis.checkpoint.state_tree import flatten, unflatten
from habilis.core.errors import CheckpointError

TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e5m2,
]  # fmt: skip


def through_files(state):
    structure, tensors = flatten(state)
    text = json.dumps(structure, allow_nan=False)
    with tempfile.TemporaryDirectory() as folder:
        if tensors:
            write_tensors(Path(folder) / "t.safetensors", tensors)
            tensors = read_tensors(Path(folder) / "t.safetensors")
    return unflatten(json.loads(text), tensors)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(a, b):
    """Equal in kind, dtype, shape and bits."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))
    elif isinstance(a, np.ndarray | np.generic):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert [(type(k), k) for k in a] == [(type(k), k) for k in b]
        for x, y in zip(a.values(), b.values(), strict=True):
            assert_same(x, y)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, float):
        assert (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    else:
        assert a == b


@st.composite
def torch_tensors(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    count = math.prod(shape) * dtype.itemsize
    raw = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    tensor = (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if draw(st.booleans()) and tensor.dim() > 1 else tensor


numpy_arrays = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(),
        hnp.datetime64_dtypes(),
        hnp.unicode_string_dtypes(max_len=5),
        hnp.byte_string_dtypes(max_len=5),
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.floats(),
    st.text(),
    hnp.from_dtype(np.dtype("float32")),
    hnp.from_dtype(np.dtype("int64")),
    hnp.from_dtype(np.dtype("bool")),
)
keys = st.one_of(st.text(max_size=6), st.integers(), st.booleans(), st.tuples(st.integers(), st.text(max_size=3)))
states = st.recursive(
    st.one_of(scalars, torch_tensors(), numpy_arrays),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.text(max_size=6), states, max_size=4))
def test_any_state_comes_back_as_it_was(state):
    assert_same(through_files(state), state)


def test_names_that_json_or_safetensors_keep_for_themselves():
    state = {
        "__metadata__": torch.ones(1),
        "": torch.zeros(2),
        "$tensor": "a string",
        "a/b": torch.ones(3),
        "a": {"b": torch.ones(4), "$list": [1]},
        0: torch.ones(5),
        "0": torch.ones(6),
        "é\ud800": torch.ones(7),
    }
    assert_same(through_files(state), state)


def test_views_and_shared_storage_come_back_apart():
    base = torch.arange(12.0).reshape(3, 4)
    array = np.arange(12).reshape(3, 4)
    state = {
        "base": base,
        "same": base,
        "column": base[:, 1],
        "tail": base[1:],
        "nothing": base[:0],
        "expanded": torch.ones(1).expand(5),
        "array": array,
        "reversed": array[::-1, ::2],
        "wrapped": torch.from_numpy(array),
        "read_only": np.broadcast_to(np.float32(3), (2, 2)),
    }
    loaded = through_files(state)
    assert_same(loaded, state)
    loaded["base"].zero_()
    loaded["array"][:] = 0
    assert loaded["same"][2, 3] == 11
    assert loaded["wrapped"][2, 3] == 11


def test_flatten_copies_nothing_that_is_plain_already():
    tensor, array = torch.zeros(4), np.zeros(4)
    _, tensors = flatten({"t": tensor, "a": array})
    assert tensors["t"].data_ptr() == tensor.data_ptr()
    assert tensors["a"].data_ptr() == array.ctypes.data


def test_conjugate_and_parameter():
    complex_view = torch.tensor([1 + 2j]).conj()
    parameter = torch.nn.Parameter(torch.ones(2))
    loaded = through_files({"c": complex_view, "p": parameter})
    assert loaded["c"].item() == 1 - 2j
    assert type(loaded["p"]) is torch.Tensor
    assert not loaded["p"].requires_grad


def test_a_trained_optimiser_goes_on_exactly():
    def setup():
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape) * (i + 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)

    def train(model, optimiser, count):
        for i in range(count):
            optimiser.zero_grad()
            model(torch.full((4, 3), float(i))).square().mean().backward()
            optimiser.step()

    model, optimiser = setup()
    train(model, optimiser, 3)
    saved = through_files({"model": model.state_dict(), "optimiser": optimiser.state_dict()})
    train(model, optimiser, 3)
    resumed, resumed_optimiser = setup()
    resumed.load_state_dict(saved["model"])
    resumed_optimiser.load_state_dict(saved["optimiser"])
    train(resumed, resumed_optimiser, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    "leaf",
    [
        object(),
        np.array([{}]),
        np.zeros(2, dtype=[("x", "f4")]),
        torch.zeros(2, 2).to_sparse(),
        torch.empty(2, device="meta"),
        {1, 2},
        b"bytes",
        {np.int64(1): 2},
        {"key": lambda: 0},
    ],
    ids=["object", "object array", "record array", "sparse", "meta", "set", "bytes", "numpy key", "function"],
)
def test_what_cannot_be_saved_is_refused_by_its_path(leaf):
    with pytest.raises(CheckpointError, match="agent/part/0"):
        flatten({"part": [leaf]}, where="agent")


@pytest.mark.parametrize(
    "structure",
    [
        {"$tensor": "absent"},
        {"$unknown": 1},
        {"$tensor": "a", "dtype": "nn", "shape": [1]},
        {"$array": "a", "dtype": "O", "shape": [1]},
        {"$array": "a", "dtype": "<f4", "shape": [9]},
        {"$dict": [[[1], 2]]},
    ],
)
def test_a_structure_that_does_not_fit_is_refused(structure):
    with pytest.raises(CheckpointError, match="does not fit"):
        unflatten(structure, {"a": torch.zeros(8, dtype=torch.uint8)})
