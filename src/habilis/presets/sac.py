"""SAC's presets. What each reaches is in `docs/algorithms/sac.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAC_GENERAL: Mapping[str, Any] = {
    "num_envs": 1,
    "threads": 2,
    "total_timesteps": 200_000,
    "matmul_precision": "medium",
    "algo.learning_starts": 1000,
}
"""For an environment that was never tried."""

_MUJOCO: Mapping[str, Any] = {
    "algo.learning_rate": 5e-4,
    "algo.critic_learning_rate": 1e-3,
    "algo.learning_starts": 5000,
    "algo.hidden_precision": "bfloat16",
}
"""The native MuJoCo tasks. A faster policy and temperature lose their randomness before a cheetah has left its back."""

SAC_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "Pendulum-v1": {"total_timesteps": 20_000, "algo.learning_rate": 1e-3, "algo.learning_starts": 100},
    **{f"{name}-v5": _MUJOCO for name in ("Ant", "Humanoid", "Swimmer", "Walker2d")},
    # angles of a tenth beside speeds of ten are one size once normalised; and what a hopper has learnt by the end it
    # may lose again within a few thousand steps, unless these become small
    "Hopper-v5": {**_MUJOCO, "algo.normalize_obs": True, "algo.learning_rate_schedule": "linear"},
    # speed pays at once and nothing ends an episode: a shorter horizon learns it from fewer steps
    "HalfCheetah-v5": {**_MUJOCO, "algo.gamma": 0.98},
}
