"""Presets of A2C and what shares its loss. What each reaches is in `docs/algorithms/a2c.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

A2C_NAMES = ("a2c", "actor_critic")

A2C_GENERAL: Mapping[str, Any] = {"num_envs": 8}
"""For an environment that was never tried."""

_CARTPOLE: Mapping[str, Any] = {
    "total_timesteps": 200_000,
    "num_envs": 8,
    "algo.learning_rate_schedule": "linear",
}

A2C_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {name: {"CartPole-v1": _CARTPOLE} for name in A2C_NAMES}
"""By algorithm and environment."""
