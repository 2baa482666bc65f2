"""Presets of the tabular methods. What each reaches is in `docs/algorithms/tabular.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABULAR_NAMES = ("q_learning", "double_q_learning", "sarsa", "expected_sarsa")

TABULAR_GENERAL: Mapping[str, Any] = {"num_envs": 8, "total_timesteps": 200_000}
"""For an environment that was never tried."""

TABULAR_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 500 episodes are over after some 7,000 steps; what follows settles the values off the best way
    "habilis/GridWorld-v0": {
        "num_envs": 128,
        "total_timesteps": 20_480,
        "eval_freq": 1024,
        "algo.train_freq": 4,
        "algo.learning_rate": 0.5,
        "algo.exploration_decay": 0.998,
    },
}
