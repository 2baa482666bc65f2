"""Presets of TD3, DDPG and FastTD3. What those that were measured reach is in `docs/algorithms/td3.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TD3_NAMES = ("td3", "ddpg")

TD3_GENERAL: Mapping[str, Any] = {
    "num_envs": 1,
    "threads": 2,
    "total_timesteps": 200_000,
    "matmul_precision": "medium",
    "algo.learning_starts": 1000,
}
"""For an environment that was never tried."""

FAST_TD3_GENERAL: Mapping[str, Any] = {
    **TD3_GENERAL,
    "num_envs": 128,
    "total_timesteps": 1_000_000,
    "algo.learning_starts": 1280,
    "algo.hidden_precision": "bfloat16",
}
"""For an environment that was never tried: many of it."""

_MUJOCO: Mapping[str, Any] = {"algo.learning_starts": 5000, "algo.hidden_precision": "bfloat16"}
"""The native MuJoCo tasks."""

_PENDULUM: Mapping[str, Any] = {"total_timesteps": 20_000, "algo.learning_starts": 100}

_INVERTED_PENDULUM: Mapping[str, Any] = {**_PENDULUM, "total_timesteps": 12_000, "algo.learning_starts": 500}

_REACHER: Mapping[str, Any] = {
    "total_timesteps": 80_000,
    "eval_episodes": 20,
    "algo.learning_rate": 1e-3,
    "algo.tau": 0.02,
    "algo.action_noise_std": 0.1,
    "algo.target_policy_noise": 0.02,
    "algo.target_noise_clip": 0.05,
    "algo.hidden_precision": "bfloat16",
}
"""A good reacher's actions are a tenth of their range: noise of the usual size would be all that the critics see."""

_MEMORY: Mapping[str, Any] = {
    **_PENDULUM,
    "algo.batch_size": 128,
    "algo.memory.kind": "lstm",
    "algo.memory.size": 64,
    "algo.memory.window": 8,
}
"""A velocity is the difference of two positions: a short window shows it."""

_EVERY_NAME: Mapping[str, Mapping[str, Any]] = {
    "Pendulum-v1": _PENDULUM,
    "InvertedPendulum-v5": _INVERTED_PENDULUM,
    "habilis/PendulumNoVelocity-v0": _MEMORY,
    "habilis/InvertedPendulumNoVelocity-v0": {**_MEMORY, **_INVERTED_PENDULUM, "total_timesteps": 30_000},
    "Reacher-v5": {**_REACHER, "num_envs": 4, "algo.gradient_steps": 4, "algo.gamma": 0.95, "algo.batch_size": 128},
    # a target is seen in one episode only, so many short ones teach more than many updates
    "habilis/ReacherPixels-v0": {
        **_REACHER,
        "frame_stack": 3,
        "num_envs": 16,
        "plugins": {"random_shift": {"pad": 2}},
        "algo.gradient_steps": 4,
        "algo.gamma": 0.9,
        "algo.batch_size": 64,
        "algo.buffer_size": 40_000,
    },
    "habilis/PointReachGoal-v0": {
        "total_timesteps": 30_000,
        "num_envs": 8,
        "algo.goal_selection_strategy": "future",
        "algo.gradient_steps": 4,
        "algo.learning_rate": 1e-3,
        "algo.tau": 0.05,
        "algo.gamma": 0.98,
        "algo.normalize_obs": True,
        "algo.hidden": (128, 128),
    },
    **{f"{name}-v5": _MUJOCO for name in ("Ant", "Hopper", "Humanoid", "Swimmer", "Walker2d")},
    "HalfCheetah-v5": {**_MUJOCO, "algo.learning_rate": 1e-3},
}

_CORES: Mapping[str, Any] = {
    "algo.hidden": (256, 128),
    "algo.critic_hidden": (256, 256),
    "algo.batch_size": 1024,
    "algo.gradient_steps": 8,
    "algo.learning_rate": 1e-3,
    "algo.action_noise_std_min": 0.1,
}
"""More updates on smaller batches than a GPU would want."""

_FAST: Mapping[str, Mapping[str, Any]] = {
    "HalfCheetah-v5": {
        **_CORES,
        "total_timesteps": 300_000,
        "algo.learning_starts": 5000,
        "algo.n_steps": 3,
        "algo.v_min": -100.0,
        "algo.v_max": 900.0,
    },
    "habilis/QuadrupedWalk-v0": {
        **_CORES,
        "algo.gamma": 0.98,
        # rewards are those of a fiftieth of a second
        "algo.v_min": -3.0,
        "algo.v_max": 7.0,
        # with less noise, or weights that are held smaller, it only learns to stand
        "algo.action_noise_std": 1.0,
        "algo.weight_decay": 0.001,
    },
}

TD3_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(TD3_NAMES, _EVERY_NAME),
    "fast_td3": _FAST,
}
"""By algorithm and environment."""
