"""Presets of TRPO and of the natural gradient. What each reaches is in `docs/algorithms/trpo.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRPO_NAMES = ("trpo", "npg")

TRPO_GENERAL: Mapping[str, Any] = {"num_envs": 8, "algo.n_steps": 256}
"""For an environment that was never tried."""

_MUJOCO: Mapping[str, Any] = {
    "num_envs": 8,
    "algo.n_steps": 256,
    "algo.target_kl": 0.04,
    "algo.cg_max_steps": 25,
    "algo.n_critic_updates": 20,
}
"""The native MuJoCo tasks."""

_ENVIRONMENTS: Mapping[str, Mapping[str, Any]] = {
    "CartPole-v1": {"total_timesteps": 100_000, "num_envs": 8, "algo.n_steps": 128, "algo.gamma": 0.98},
    "HalfCheetah-v5": {**_MUJOCO, "algo.init_std": 0.6},
    "Hopper-v5": _MUJOCO,
}

TRPO_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = dict.fromkeys(TRPO_NAMES, _ENVIRONMENTS)
"""By algorithm and environment."""
