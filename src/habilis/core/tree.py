"""Operations on observation groups: mappings from names to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

Tree = Mapping[str, Tensor]


def tree_map(function: Callable[..., Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `function` to the tensors of the same name in each tree."""
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def tree_to(tree: Tree, device: str | torch.device) -> dict[str, Tensor]:
    """Return every tensor on a device."""
    return {name: tensor.to(device) for name, tensor in tree.items()}


def tree_stack(trees: Sequence[Tree], dim: int = 0) -> dict[str, Tensor]:
    """Stack trees of `[...]` to one of `[len(trees), ...]`."""
    return {name: torch.stack([tree[name] for tree in trees], dim) for name in trees[0]}


def tree_cat(trees: Sequence[Tree]) -> dict[str, Tensor]:
    """Join trees of `[n, ...]` to one with the rows of all of them."""
    return {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}


def tree_index(tree: Tree, index: Any) -> dict[str, Tensor]:
    """Index every tensor."""
    return {name: tensor[index] for name, tensor in tree.items()}


def tree_split(tree: Tree, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield consecutive parts of `size` rows, leaving out a smaller rest."""
    parts = zip(*(tensor.split(size) for tensor in tree.values()), strict=True)
    for part in islice(parts, len(next(iter(tree.values()))) // size):
        yield dict(zip(tree, part, strict=True))


def beside(rows: Tensor, values: Tensor) -> Tensor:
    """Return `[N]` with as many axes as `values` `[N, ...]` has, to be broadcast against it."""
    return rows.view(-1, *[1] * (values.dim() - 1))


def tree_where(mask: Tensor, if_true: Tree, if_false: Tree) -> dict[str, Tensor]:
    """Choose rows: `mask` is [N], the tensors `[N, ...]`."""
    return {name: torch.where(beside(mask, tensor), tensor, if_false[name]) for name, tensor in if_true.items()}


def zero_rows(memory: Tree, rows: Tensor) -> dict[str, Tensor]:
    """Return a policy's memory `[N, ...]` with zeros where `rows` `[N]` is true: that of a fresh episode."""
    return {name: value.masked_fill(beside(rows, value), 0) for name, value in memory.items()}


def tree_join(**parts: Tree | Tensor) -> dict[str, Tensor]:
    """Return one flat tree of tensors and trees: what is in the tree `obs` is called `obs/<name>`."""
    flat: dict[str, Tensor] = {}
    for part, value in parts.items():
        if isinstance(value, Tensor):
            flat[part] = value
        else:
            flat |= {f"{part}/{name}": tensor for name, tensor in value.items()}
    return flat


def tree_part(tree: Tree, part: str) -> dict[str, Tensor]:
    """Return the tree that `tree_join` took in as `part`."""
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tree.items() if name.startswith(prefix)}
