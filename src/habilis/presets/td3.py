"""Presets of TD3 and DDPG. What each reaches is in `docs/algorithms/td3.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TD3_NAMES = ("td3", "ddpg", "fast_td3")

TD3_GENERAL: Mapping[str, Any] = {
    "num_envs": 1,
    "threads": 2,
    "total_timesteps": 200_000,
    "matmul_precision": "medium",
    "algo.learning_starts": 1000,
}
"""For an environment that was never tried."""

_MUJOCO: Mapping[str, Any] = {"algo.learning_starts": 5000, "algo.hidden_precision": "bfloat16"}
"""The native MuJoCo tasks."""

_PENDULUM: Mapping[str, Any] = {"total_timesteps": 20_000, "algo.learning_starts": 100}

_EVERY_NAME: Mapping[str, Mapping[str, Any]] = {
    "Pendulum-v1": _PENDULUM,
    **{f"{name}-v5": _MUJOCO for name in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")},
}

TD3_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = dict.fromkeys(TD3_NAMES, _EVERY_NAME)
"""By algorithm and environment."""
