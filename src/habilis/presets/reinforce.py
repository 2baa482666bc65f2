"""Presets of REINFORCE. What each reaches is in `docs/algorithms/reinforce.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REINFORCE_GENERAL: Mapping[str, Any] = {"num_envs": 4, "algo.n_episodes": 16}
"""For an environment that was never tried."""

REINFORCE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # one environment never waits for another
    "CartPole-v1": {
        "total_timesteps": 200_000,
        "num_envs": 1,
        "algo.n_episodes": 8,
        "algo.learning_rate_schedule": "linear",
    },
    "InvertedPendulum-v5": {
        "total_timesteps": 300_000,
        "num_envs": 1,
        "algo.n_episodes": 8,
        "algo.learning_rate": 3e-3,
        "algo.learning_rate_schedule": "linear",
    },
}
