"""A recorded graph replayed by NumPy, whose operations on small arrays cost less than PyTorch's.

What an operation on ten numbers costs is the way to it, and NumPy's way is short; its products of 64 columns are quick
besides, and it leaves the processor's caches to what comes after: a step of eight cheetahs and of the policy that acts
in them takes a seventh less. Results differ in their last bits, so whoever asks for it is given it from the first call
on. Arrays lie where parameters and buffers do: what a gradient step writes is what the next replay reads, also after
they were moved (to be shared by processes).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate

MOST_NUMBERS = 20_000
"""In one array: larger ones are worth PyTorch's way."""
MOST_PRODUCTS, MOST_PRODUCTS_OF_A_ROW = 262_144, 9216
"""Multiplications in one product of matrices, beyond which NumPy's library would start threads of its own."""

_aten = torch.ops.aten
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64, torch.bool: np.bool_}


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _sigmoid(x: Any) -> Any:
    return 0.5 * np.tanh(0.5 * x) + 0.5  # which overflows nowhere


def _log_softmax(x: Any, dim: int, _: bool) -> Any:
    x = x - x.max(dim, keepdims=True)
    return x - np.log(np.exp(x).sum(dim, keepdims=True))


def _softmax(x: Any, dim: int, _: bool) -> Any:
    x = np.exp(x - x.max(dim, keepdims=True))
    return x / x.sum(dim, keepdims=True)


def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _select(x: Any, dim: int, index: int) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (index,)]


def _addmm(bias: Any, x: Any, weight: Any) -> Any:
    product = x.dot(weight)
    product += bias
    return product


def _sum(x: Any, dims: Sequence[int] | None = None, keepdim: bool = False) -> Any:
    return x.sum(None if dims is None else tuple(dims), keepdims=keepdim)


def _mean(x: Any, dims: Sequence[int], keepdim: bool = False) -> Any:
    return x.mean(tuple(dims), keepdims=keepdim)


def _divide(x: Any, other: Any) -> Any:
    return np.divide(x, other, dtype=x.dtype if x.dtype.kind == "f" else np.float32)


def _huber_loss(x: Any, target: Any, reduction: int, delta: float = 1.0) -> Any:
    _refuse(reduction)
    error = np.abs(x - target)
    near = np.minimum(error, delta)
    return near * (error - 0.5 * near)


def _huber_loss_backward(gradient: Any, x: Any, target: Any, reduction: int, delta: float) -> Any:
    _refuse(reduction)
    return gradient * _clamp(x - target, -delta, delta)


def _refuse(reduction: int) -> None:
    if reduction:
        raise ValueError("a mean or sum of losses is left to PyTorch")


def _slice_backward(gradient: Any, shape: Sequence[int], dim: int, start: int, end: int, step: int) -> Any:
    whole = np.zeros(shape, gradient.dtype)
    _slice(whole, dim, start, end, step)[...] = gradient
    return whole


def _split(x: Any, size: int, dim: int = 0) -> Any:
    return np.split(x, range(size, x.shape[dim], size), dim)


def _split_by(x: Any, sizes: Sequence[int], dim: int = 0) -> Any:
    return np.split(x, np.cumsum(sizes)[:-1], dim)


@cache
def _grid(shape: tuple[int, ...], dim: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    grid = tuple(np.ogrid[tuple(slice(size) for size in shape)])
    return grid[:dim], grid[dim + 1 :]


def _places(dim: int, index: Any) -> tuple[Any, ...]:
    """Return the places that an index along one axis names."""
    before, after = _grid(index.shape, dim % index.ndim)
    return (*before, index, *after)


def _scatter_add(x: Any, dim: int, index: Any, more: Any) -> Any:
    total = x.copy()
    np.add.at(total, _places(dim, index), more)  # which adds all that go to one place
    return total


_PRODUCTS = (_aten.addmm.default, _aten.mm.default, _aten.bmm.default, _aten.mv.default)

_BY_NUMPY: Mapping[OpOverload, Callable[..., Any]] = {
    _aten.addmm.default: _addmm,
    **dict.fromkeys((_aten.mm.default, _aten.mv.default), np.dot),
    _aten.bmm.default: np.matmul,
    _aten.tanh.default: np.tanh,
    _aten.exp.default: np.exp,
    _aten.log.default: np.log,
    _aten.sqrt.default: np.sqrt,
    _aten.rsqrt.default: lambda x: 1 / np.sqrt(x),
    _aten.neg.default: np.negative,
    _aten.abs.default: np.abs,
    _aten.sign.default: np.sign,
    _aten.cos.default: np.cos,
    _aten.relu.default: lambda x: np.maximum(x, 0),
    _aten.sigmoid.default: _sigmoid,
    _aten.softplus.default: lambda x: np.logaddexp(x, np.float32(0)),
    _aten.elu.default: lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    _aten.silu.default: lambda x: x * _sigmoid(x),
    _aten._log_softmax.default: _log_softmax,
    _aten._softmax.default: _softmax,
    _aten.huber_loss.default: _huber_loss,
    # what autograd makes of the above; a gradient that is not finite is refused whatever becomes of it here
    _aten.threshold_backward.default: lambda gradient, x, least: gradient * (x > least),
    _aten.tanh_backward.default: lambda gradient, y: gradient * (1 - y * y),
    _aten._log_softmax_backward_data.default: lambda g, y, dim, _: g - np.exp(y) * g.sum(dim, keepdims=True),
    _aten.huber_loss_backward.default: _huber_loss_backward,
    _aten.slice_backward.default: _slice_backward,
    _aten.add.Tensor: operator.add,
    _aten.sub.Tensor: operator.sub,
    **dict.fromkeys((_aten.mul.Tensor, _aten.mul.Scalar), operator.mul),
    **dict.fromkeys((_aten.div.Tensor, _aten.div.Scalar), _divide),
    _aten.rsub.Scalar: lambda x, number: number - x,
    _aten.reciprocal.default: lambda x: 1 / x,
    _aten.pow.Tensor_Scalar: operator.pow,
    _aten.addcmul.default: lambda x, one, other: x + one * other,
    _aten.lerp.Tensor: lambda x, end, weight: x + weight * (end - x),
    **dict.fromkeys((_aten.clamp.default, _aten.clamp.Tensor, _aten.clamp_min.default), _clamp),
    _aten.clamp_max.default: np.minimum,
    _aten.minimum.default: np.minimum,
    _aten.maximum.default: np.maximum,
    **dict.fromkeys((_aten.lt.Tensor, _aten.lt.Scalar), operator.lt),
    **dict.fromkeys((_aten.gt.Tensor, _aten.gt.Scalar), operator.gt),
    _aten.bitwise_and.Tensor: operator.and_,
    _aten.bitwise_or.Tensor: operator.or_,
    _aten.bitwise_not.default: operator.invert,
    _aten.where.self: np.where,
    _aten.masked_fill.Scalar: lambda x, mask, number: np.where(mask, x.dtype.type(number), x),
    **dict.fromkeys((_aten.sum.default, _aten.sum.dim_IntList), _sum),
    _aten.mean.default: lambda x: _sum(x) / x.size,
    _aten.mean.dim: _mean,
    # of one vector: a product with itself would be shared among threads where it is long
    _aten.linalg_vector_norm.default: lambda x: np.sqrt(_sum(x * x)),
    _aten.argmax.default: lambda x, dim, keepdim=False: x.argmax(dim, keepdims=keepdim),
    _aten.gather.default: lambda x, dim, index: x[_places(dim, index)],
    _aten.scatter_add.default: _scatter_add,
    _aten.t.default: lambda x: x.T,
    _aten.transpose.int: np.swapaxes,
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.split.Tensor: _split,
    _aten.split_with_sizes.default: _split_by,
    _aten.unbind.int: lambda x, dim=0: [_select(x, dim, k) for k in range(x.shape[dim])],
    _aten.cat.default: lambda parts, dim=0: np.concatenate(parts, dim),
    _aten.stack.default: lambda parts, dim=0: np.stack(parts, dim),
    _aten.clone.default: np.copy,
    _aten._to_copy.default: lambda x, dtype: x.astype(_DTYPES[dtype]),
}
"""What each operation is in NumPy, where it takes the arguments that are written down here and no others."""


def _reshape(node: Node) -> Callable[..., Any]:
    shape = tuple(node.meta["val"].shape)
    return lambda x, _: x.reshape(shape)


def _expand(node: Node) -> Callable[..., Any]:
    shape = tuple(node.meta["val"].shape)
    return lambda x, _: np.broadcast_to(x, shape)


_BY_SHAPE: Mapping[OpOverload, Callable[[Node], Callable[..., Any]]] = {
    **dict.fromkeys((_aten.view.default, _aten._unsafe_view.default), _reshape),
    **dict.fromkeys((_aten.unsqueeze.default, _aten.squeeze.dim), _reshape),
    _aten.expand.default: _expand,
}
"""What makes operations of nodes whose shape is all that they need."""


def by_numpy(module: GraphModule, values: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]] | None:
    """Return what replays a graph by NumPy; None where that cannot be done, would not pay, or comes to something else.

    Args:
        module: a graph of pure operations on CPU tensors.
        values: arguments of the shapes it is for.
    """
    if any(x.requires_grad for x in values) or not all(map(_is_known_and_small, module.graph.nodes)):
        return None
    arrays = copy.copy(module)
    arrays.graph = copy.deepcopy(module.graph)
    held: dict[str, Tensor] = {}
    operations: dict[str, Callable[..., Any]] = {}
    for node in arrays.graph.nodes:
        if node.op == "get_attr":
            name = f"_array_{node.name}"
            held[name] = getattr(module, node.target)
            node.target = name
        elif node.op == "call_function" and node.target is not operator.getitem:
            by_shape = _BY_SHAPE.get(node.target)
            node.target = operations[node.name] = by_shape(node) if by_shape else _BY_NUMPY[node.target]
    if not _come_to_the_same(module, operations, values):
        return None
    arrays.recompile()
    forward, owners, places = arrays.forward, list(held.values()), [-1] * len(held)

    def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
        now = [owner.data_ptr() for owner in owners]
        if now != places:
            places[:] = now
            for name, owner in held.items():
                setattr(arrays, name, owner.detach().numpy())
        with np.errstate(all="ignore"):  # what is not finite is refused where it matters
            return tuple([_tensor(x) for x in forward(*[x.numpy() for x in tensors])])

    return replay


def _array(argument: Any) -> Any:
    return argument.detach().numpy() if isinstance(argument, Tensor) else argument


def _tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # what was expanded is not


def _is_known_and_small(node: Node) -> bool:
    """Whether a node is an operation that NumPy has, by few multiplications, whose result is small; or none at all."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    value = node.meta["val"]
    if node.target in _PRODUCTS:
        source = node.args[-2]
        if not isinstance(source, Node) or "val" not in source.meta:  # a view of a parameter
            return False
        rows = value.shape[-2] if value.dim() > 1 else 1
        if value.numel() * source.meta["val"].shape[-1] > (MOST_PRODUCTS if rows > 1 else MOST_PRODUCTS_OF_A_ROW):
            return False
    known = node.target in _BY_NUMPY or node.target in _BY_SHAPE
    return known and (not isinstance(value, Tensor) or value.numel() <= MOST_NUMBERS)


def _come_to_the_same(
    module: GraphModule, operations: Mapping[str, Callable[..., Any]], values: Sequence[Tensor]
) -> bool:
    """Whether each operation by NumPy, named as its node, comes to what PyTorch's does on the same numbers.

    Each is tried by itself: what rounding makes of one would grow in those after it, and whether a graph is replayed
    would hang on the numbers, of which a run that is resumed has others.
    """
    trial = _Trial(module, operations)
    try:
        with torch.no_grad(), np.errstate(all="ignore"):
            trial.run(*values)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, RuntimeError):
        return False  # an operation with other arguments
    return trial.agree


class _Trial(Interpreter):
    """Runs a graph by PyTorch, and each operation on the same numbers by NumPy as well."""

    def __init__(self, module: GraphModule, operations: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(module)
        self._operations = operations
        self.agree = True

    def run_node(self, n: Node) -> Any:
        """Run one node, and see whether both agree."""
        value = super().run_node(n)
        if n.name in self._operations:
            given = self.fetch_args_kwargs_from_env(n)
            args, kwargs = map_aggregate(given, _array)
            found = self._operations[n.name](*args, **kwargs)
            pairs = zip(found, value, strict=True) if isinstance(value, tuple | list) else ((found, value),)
            scale = _scale(n, [x for x in given[0] if isinstance(x, Tensor)], value)
            self.agree = self.agree and all(_alike(_tensor(one), other, scale) for one, other in pairs)
        return value


def _scale(node: Node, sources: Sequence[Tensor], value: Any) -> float:
    """Return the size of the numbers that an operation rounds, by the square root of how many it adds up."""
    real = [x for x in sources if x.is_floating_point()]
    largest = [float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()) if x.numel() else 0.0 for x in real]
    if node.target in _PRODUCTS:
        *rest, one, other = largest
        return max([one * other * sqrt(sources[-2].shape[-1]), *rest])
    summed = sources[0].numel() / max(1, value.numel()) if sources and isinstance(value, Tensor) else 1.0
    return max(largest, default=0.0) * sqrt(max(1.0, summed))


def _alike(one: Tensor, other: Tensor, scale: float) -> bool:
    """Whether two tensors are the same but for their last bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, 1e-4, 1e-5 * scale, equal_nan=True)
