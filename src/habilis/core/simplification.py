"""Takes out of a recorded graph what changes nothing: the same bits from fewer operations.

A gradient written down operation by operation holds much that autograd needed and a replay does not: views of views,
detached copies of what nothing tracks any more, the constants that a loss hands to its gradient, weights cast or
transposed once forwards and once backwards. In PPO's minibatch these are two operations of five.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Interpreter, Node

_aten = torch.ops.aten

_OF_SHAPE_ALONE = frozenset(
    {
        *(_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default),
        *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default),
        *(_aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.scalar_tensor.default),
    }
)
"""Operations whose result does not depend on the values of a tensor."""

_BY_ONE = frozenset({_aten.mul.Tensor, _aten.div.Tensor, _aten.pow.Tensor_Scalar})
"""Operations that leave a number as it is when the other one is 1."""


def simplify(module: GraphModule, values: Sequence[Tensor]) -> None:
    """Shorten a graph in place; it computes the same bits.

    Args:
        module: what `make_fx` made of a function that draws nothing at random and writes into nothing of the caller's.
        values: arguments of the shapes it is for.
    """
    if not _without_writes(module.graph):
        return
    known = _Values(module)
    known.run(*values)
    constants = _drop_what_stands_already(module.graph, known.values)
    _keep(module, constants - set(module.graph.output_node().all_input_nodes), known.values)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


class _Values(Interpreter):
    """Runs a graph and remembers what each node came to."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        with torch.no_grad():
            value = self.values[n] = super().run_node(n)
        return value


def _without_writes(graph: Graph) -> bool:
    """Replace what writes into a result that nothing else reads; return whether nothing that writes is left."""
    for node in graph.nodes:
        if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
            continue
        written, pure = node.args[0], _pure(node.target)
        if pure is None or written.op != "call_function" or len(written.users) > 1:
            return False
        node.target = pure
    return True


def _pure(operation: OpOverload) -> OpOverload | None:
    """Return what computes the same without writing; None where there is nothing."""
    if operation is _aten.fill_.Scalar:  # `fill` is none that TorchScript knows
        return _aten.full_like.default
    packet = getattr(_aten, operation._schema.name.removeprefix("aten::").removesuffix("_"), None)
    return getattr(packet, operation._overloadname, None)


def _drop_what_stands_already(graph: Graph, values: dict[Node, Any]) -> set[Node]:
    """Let users of a node use an earlier one that is the same tensor or number; return what is always the same."""
    results = set(graph.output_node().all_input_nodes)
    constants: set[Node] = set()
    seen: dict[Any, Node] = {}
    views: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        inputs = node.all_input_nodes
        if node.target in _OF_SHAPE_ALONE or (inputs and constants.issuperset(inputs)):
            constants.add(node)
        value = values[node]
        # arguments by their text, which tells 1 from 1.0 and True
        key = (node.target, repr(node.args), repr(node.kwargs))
        earlier = seen.get(key, node)
        if earlier is node and isinstance(value, Tensor):
            if _is_view(value, inputs, values):
                views[node] = inputs[0]
                earlier = _same_view(node, views, values)
            elif node.target in _BY_ONE and node.args[1] in (1, 1.0) and _alike(value, values[inputs[0]]):
                earlier = inputs[0]
        seen[key] = earlier
        # a result is nobody else's: neither another result's nor a parameter
        if earlier is not node and not (node in results and (earlier in results or earlier.op != "call_function")):
            if node in results:
                results.add(earlier)
            node.replace_all_uses_with(earlier)
    return constants


def _is_view(value: Tensor, inputs: Sequence[Node], values: dict[Node, Any]) -> bool:
    """Whether a value lies where the first input does."""
    source = values[inputs[0]] if inputs else None
    return (
        isinstance(source, Tensor)
        and value.numel() > 0
        and value.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    )


def _same_view(node: Node, views: dict[Node, Node], values: dict[Node, Any]) -> Node:
    """Return the first in the chain of views that ends in `node` which shows the same numbers in the same order."""
    found = source = node
    while source in views:
        source = views[source]
        if _alike(values[source], values[node]) and values[source].storage_offset() == values[node].storage_offset():
            found = source
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have shape, order in memory and type in common."""
    return one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype


def _keep(module: GraphModule, constants: set[Node], values: dict[Node, Any]) -> None:
    """Replace what is always the same, and used where something is not, by its value."""
    for node in constants:
        if all(user in constants for user in node.users) or not isinstance(values[node], Tensor):
            continue
        name = f"_folded_{node.name}"
        module.register_buffer(name, values[node])
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
