"""Configurations: what can be overridden, what is refused, and that the nearest name is told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from habilis.algorithms.ppo import PPOConfig
from habilis.algorithms.sac import SACConfig
from habilis.core.config import override, require, to_dict
from habilis.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    layers: tuple[int, ...] = (64, 64)
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 10
    name: str = "a"
    flag: bool = False
    limit: float | None = None
    kind: Literal["constant", "linear"] = "constant"
    algo: Inner = Inner()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.steps > 0, f"steps must be positive, got {self.steps}")


@pytest.mark.parametrize(
    ("changes", "read", "expected"),
    [
        ({"steps": 5}, lambda c: c.steps, 5),
        ({"steps": 1e6}, lambda c: c.steps, 1_000_000),
        ({"limit": 3}, lambda c: c.limit, 3.0),
        ({"limit": None}, lambda c: c.limit, None),
        ({"kind": "linear"}, lambda c: c.kind, "linear"),
        ({"algo.rate": 1}, lambda c: c.algo.rate, 1.0),
        ({"algo": {"rate": 0.1, "layers": [8]}}, lambda c: (c.algo.rate, c.algo.layers), (0.1, (8,))),
        ({"algo.pair": [3, 4]}, lambda c: c.algo.pair, (3, 4.0)),
        ({"algo": Inner(rate=2.0)}, lambda c: c.algo.rate, 2.0),
        ({"extra.width": 3}, lambda c: dict(c.extra), {"width": 3}),
        ({"extra": {"a": [1]}}, lambda c: dict(c.extra), {"a": [1]}),
        ({"flag": True}, lambda c: c.flag, True),
        ({"steps": np.int64(5), "flag": np.bool_(True)}, lambda c: c.steps, 5),
        ({"algo.layers": np.array([4, 2])}, lambda c: c.algo.layers, (4, 2)),
        ({"extra": {"a": np.float32(0.5), "b": (np.arange(2),)}}, lambda c: dict(c.extra), {"a": 0.5, "b": ([0, 1],)}),
    ],
)
def test_override(changes, read, expected):
    value = read(override(Outer(), changes))
    assert value == expected
    assert type(value) is type(expected)


def test_hyphens_count_as_underscores_and_the_original_stays():
    config = PPOConfig()
    assert override(config, {"learning-rate": 1e-3}).learning_rate == 1e-3
    assert config == PPOConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 5}, r"unknown configuration key 'step' \(did you mean 'steps'"),
        ({"algo.rat": 1.0}, r"unknown configuration key 'algo\.rat' \(did you mean 'algo\.rate'"),
        ({"algo.layer.x": 1.0}, r"'algo\.layer'"),
        ({"name.x": 1}, "'name' has no fields"),
        ({"steps": 1.5}, "'steps' must be int, got 1.5"),
        ({"steps": True}, "'steps' must be int"),
        ({"steps": math.inf}, "'steps' must be int"),
        ({"steps": math.nan}, "'steps' must be int"),
        ({"steps": "5"}, "'steps' must be int"),
        ({"flag": 1}, "'flag' must be bool"),
        ({"limit": "x"}, "'limit' must be float or none"),
        ({"kind": "liner"}, r"one of 'constant', 'linear', got 'liner' \(did you mean 'linear'"),
        ({"algo.layers": 3}, r"'algo\.layers' must be a list of int"),
        ({"algo.layers": [1, "x"]}, r"'algo\.layers' must be int"),
        ({"algo.pair": [1]}, r"'algo\.pair'"),
        ({"extra": ["x"]}, r"'extra' must be a dictionary such as \{'name': \{\}\}, got \['x'\]"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"extra": {"made": print}}, "extra.made must be a number, a string, a list or a dictionary, got <built-in"),
    ],
)
def test_refusals_say_what_is_wrong(changes, message):
    with pytest.raises(ConfigError, match=message):
        override(Outer(), changes)


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(hidden=(8, 4), clip_range_vf=0.2, share_trunk=True, std_type="annealed"),
        SACConfig(ent_coef=0.1, n_steps=3, hidden=(32,)),
    ],
)
def test_round_trip_through_json(config):
    text = json.dumps(to_dict(config))
    assert override(type(config)(), json.loads(text)) == config


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (PPOConfig, {"batch_size": 1}),
        (PPOConfig, {"gamma": 1.1}),
        (PPOConfig, {"gae_lambda": -0.1}),
        (PPOConfig, {"clip_range": 0.0}),
        (PPOConfig, {"learning_rate": 0.0}),
        (PPOConfig, {"init_std": 0.0}),
        (PPOConfig, {"share_trunk": True, "critic_hidden": (8,)}),
        (SACConfig, {"buffer_size": 10}),
        (SACConfig, {"gradient_steps": 0}),
        (SACConfig, {"tau": 0.0}),
        (SACConfig, {"n_critics": 0}),
        (SACConfig, {"ent_coef": -1.0}),
        (SACConfig, {"learning_rate": -1e-3}),
    ],
)
def test_hyper_parameters_are_checked_when_they_are_made(cls, changes):
    with pytest.raises(ConfigError):
        cls(**changes)
