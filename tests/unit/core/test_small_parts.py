"""Registry, trees, schedules and named rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from habilis.core.actions import uniform_actions
from habilis.core.errors import ConfigError
from habilis.core.registry import Registry
from habilis.core.schedules import scheduled
from habilis.core.specs import BoxAction, DiscreteAction, MultiDiscreteAction
from habilis.core.tree import tree_index, tree_map, tree_stack, tree_where
from habilis.core.types import NamedRows


def test_registry_names_the_nearest():
    registry: Registry[int] = Registry("algorithm")
    registry.add("ppo", 1)
    registry.add("a2c", 2)
    assert (registry["ppo"], "a2c" in registry, "dqn" in registry, list(registry)) == (1, True, False, ["a2c", "ppo"])
    with pytest.raises(ConfigError, match=r"no algorithm 'pop' \(did you mean 'ppo'\?\); known: a2c, ppo"):
        registry["pop"]
    with pytest.raises(ConfigError, match="already registered"):
        registry.add("ppo", 3)


def test_actions_drawn_uniformly_are_all_there_are():
    generator = torch.Generator().manual_seed(0)
    values = uniform_actions(BoxAction(np.zeros(2, np.float32), np.full(2, 9, np.float32)), 10_000, generator)
    assert values.amin() < -0.99
    assert values.amax() > 0.99
    assert values.mean(0).tolist() == pytest.approx([0, 0], abs=0.05)
    choices = uniform_actions(DiscreteAction(3), 9000, generator)
    assert torch.bincount(choices).tolist() == pytest.approx([3000] * 3, rel=0.1)
    several = uniform_actions(MultiDiscreteAction((2, 5)), 10_000, generator)
    for column, n in enumerate((2, 5)):
        assert torch.bincount(several[:, column]).tolist() == pytest.approx([10_000 / n] * n, rel=0.1)


def test_trees():
    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[1], [2]])}
    b = {"x": torch.tensor([5.0, 6.0]), "y": torch.tensor([[7], [8]])}
    assert tree_map(torch.add, a, b)["x"].tolist() == [6, 8]
    assert tree_stack([a, b])["y"].shape == (2, 2, 1)
    assert tree_stack([a, b], 1)["x"].tolist() == [[1, 5], [2, 6]]
    assert tree_index(a, slice(1, 2))["y"].tolist() == [[2]]
    chosen = tree_where(torch.tensor([True, False]), a, b)
    assert (chosen["x"].tolist(), chosen["y"].tolist()) == ([1, 6], [[1], [8]])


def test_schedules():
    assert [scheduled(4.0, "constant", p) for p in (0, 0.5, 1)] == [4, 4, 4]
    assert [scheduled(4.0, "linear", p) for p in (0, 0.25, 1, 1.2)] == [4, 3, 0, 0]


def test_rows_of_one_tensor_by_their_names():
    rows = NamedRows(("a", "b"), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert list(rows) == ["a", "b"]
    assert len(rows) == 2
    assert rows["b"].tolist() == [3.0, 4.0]
    assert {name: value.tolist() for name, value in rows.items()} == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert "c" not in rows
    with pytest.raises(KeyError, match="c"):
        rows["c"]
