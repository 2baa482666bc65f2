"""Takes out of a recorded graph what changes nothing: the same bits from fewer operations.

A gradient written down operation by operation holds much that autograd needed and a replay does not: views of views,
detached copies of what nothing tracks any more, the constants that a loss hands to its gradient, weights cast once
forwards and once backwards, or transposed in every call. In PPO's minibatch these are two operations of five.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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

_WITHOUT_WRITING: Mapping[OpOverload, OpOverload] = {
    _aten.masked_fill_.Scalar: _aten.masked_fill.Scalar,
    _aten.logical_and_.default: _aten.logical_and.default,
    _aten.sub_.Tensor: _aten.sub.Tensor,
    _aten.fill_.Scalar: _aten.full_like.default,
}
"""What autograd writes into results of its own, and what computes the same anew."""


def simplify(module: GraphModule, values: Sequence[Tensor]) -> GraphModule:
    """Return a shorter graph that computes the same bits; the graph itself where it draws, or writes where others read.

    Args:
        module: what `make_fx` made of a function.
        values: arguments of the shapes it is for.
    """
    shorter = copy.copy(module)
    shorter.graph = copy.deepcopy(module.graph)
    if not _without_writes(shorter.graph):
        return module
    known = _Values(shorter)
    known.run(*values)
    exposed = {_place(known.values[node]) for node in shorter.graph.output_node().all_input_nodes}
    constants = _drop_what_stands_already(shorter.graph, known.values, exposed)
    _keep(shorter, constants, known.values, exposed)
    _keep(shorter, _views_of_parameters(shorter.graph, known.values), known.values, exposed)
    shorter.graph.eliminate_dead_code()
    shorter.graph.lint()
    shorter.recompile()
    return shorter


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
    """Let nothing write into what was made for it alone; return whether nothing is left that writes, or draws."""
    for node in graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        if not node.target._schema.is_mutable:
            continue
        written = node.args[0]
        if node.target not in _WITHOUT_WRITING or not _is_own(written):
            return False
        node.target = _WITHOUT_WRITING[node.target]
    return True


def _is_own(node: Node) -> bool:
    """Whether one operation alone reads a node, which is no view of another, no argument and no parameter."""
    made = isinstance(node.target, OpOverload) and not any(r.alias_info for r in node.target._schema.returns)
    return made and len(node.users) == 1


def _drop_what_stands_already(graph: Graph, values: dict[Node, Any], exposed: set[int]) -> set[Node]:
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
            if inputs and _place(value) == _place(values[inputs[0]]) != 0:
                views[node] = inputs[0]
                earlier = _same_view(node, views, values)
            elif node.target in _BY_ONE and node.args[1] == 1 and _is_plain(inputs[0], views):
                earlier = inputs[0] if _alike(value, values[inputs[0]]) else node
        # results stay what they were: tensors of their own, or views of the same ones
        lends = _place(value) in exposed and _place(value) != _place(values[earlier])
        if lends or (node in results and earlier.op != "call_function"):
            earlier = node
        seen[key] = earlier
        if earlier is not node:
            node.replace_all_uses_with(earlier)
    return constants


def _views_of_parameters(graph: Graph, values: dict[Node, Any]) -> set[Node]:
    """Return what shows the numbers of a parameter or buffer, whatever these are, where they lie."""
    views: set[Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and len(inputs) == 1 and (inputs[0].op == "get_attr" or inputs[0] in views):
            source, value = values.get(inputs[0]), values[node]
            if isinstance(value, Tensor) and _place(value) == _place(source) != 0:
                views.add(node)
    return views


def _is_plain(node: Node, views: dict[Node, Node]) -> bool:
    """Whether a node's order in memory is the same in every call, as that of arguments need not be."""
    return node.op == "call_function" and node not in views


def _place(value: Any) -> int:
    """Return where the numbers of a tensor lie, 0 for what is none or empty; of several, as of their first."""
    if isinstance(value, tuple | list):
        return _place(value[0]) if value else 0
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0


def _same_view(node: Node, views: dict[Node, Node], values: dict[Node, Any]) -> Node:
    """Return the first in the chain of views that ends in `node` which shows the same numbers in the same order."""
    found = source = node
    while source in views:
        source = views[source]
        if isinstance(values[source], Tensor) and _alike(values[source], values[node]):
            found = source
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have type, shape and order in memory in common, and no number twice."""
    layout = one.shape == other.shape and one.stride() == other.stride()
    kind = one.dtype == other.dtype and one.is_conj() == other.is_conj() and one.is_neg() == other.is_neg()
    repeats = any(step == 0 and size > 1 for step, size in zip(one.stride(), one.shape, strict=True))
    return layout and kind and not repeats and one.storage_offset() == other.storage_offset()


def _keep(module: GraphModule, standing: set[Node], values: dict[Node, Any], exposed: set[int]) -> None:
    """Replace what stands already, and is used where something does not, by its value; results are fresh ones."""
    for node in standing:
        known = all(user in standing for user in node.users)
        if known or not isinstance(values[node], Tensor) or _place(values[node]) in exposed:
            continue
        name = f"_folded_{node.name}"
        module.register_buffer(name, values[node])
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
