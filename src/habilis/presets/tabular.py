"""Presets of the tabular methods. What each reaches is in `docs/algorithms/tabular.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABULAR_NAMES = ("q_learning", "double_q_learning", "sarsa", "expected_sarsa")

TABULAR_GENERAL: Mapping[str, Any] = {"num_envs": 8, "total_timesteps": 200_000}
"""For an environment that was never tried."""

_GRIDWORLD: Mapping[str, Any] = {
    "num_envs": 128,
    "total_timesteps": 20_480,
    "algo.train_freq": 4,
    "algo.learning_rate": 0.5,
    "algo.exploration_decay": 0.999,
}
"""The greedy targets lose nothing by exploring long: 500 episodes are over after some 10,000 steps, and the best action
is then known in every cell, also off the best way."""

# what SARSA learns is the value of what it does, exploring included, which chance alone changes from step to step: its
# steps become smaller, or its greedy policy would turn now and then, and it explores less
_SARSA: Mapping[str, Any] = {
    **_GRIDWORLD,
    "algo.learning_rate": 1.0,
    "algo.learning_rate_power": 0.6,
    "algo.exploration_decay": 0.995,
}

_CARTPOLE: Mapping[str, Any] = {
    "total_timesteps": 100_000,
    "algo.bins": (1, 1, 6, 12),
    "algo.bins_low": (-2.4, -3.0, -0.21, -3.0),
    "algo.bins_high": (2.4, 3.0, 0.21, 3.0),
    "algo.learning_rate": 1.0,
    "algo.learning_rate_power": 0.5,
    "algo.exploration_decay": 0.995,
    "algo.exploration_final_eps": 0.01,
}
"""Angle and angular velocity are enough: the fewer cells, the oftener each is met."""

TABULAR_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    name: {"CartPole-v1": _CARTPOLE, "habilis/GridWorld-v0": _SARSA if name == "sarsa" else _GRIDWORLD}
    for name in TABULAR_NAMES
}
