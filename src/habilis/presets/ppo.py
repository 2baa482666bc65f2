"""PPO's presets. What those that were measured reach is in `docs/algorithms/ppo.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PPO_GENERAL: Mapping[str, Any] = {"num_envs": 8, "algo.n_steps": 256, "algo.batch_size": 256}
"""For an environment that was never tried."""

_MUJOCO: Mapping[str, Any] = {
    "num_envs": 8,
    "algo.n_steps": 256,
    "algo.batch_size": 64,
    "algo.n_epochs": 10,
    "algo.learning_rate": 3e-4,
    "algo.learning_rate_schedule": "linear",
}
"""The native MuJoCo tasks; chosen on HalfCheetah and Hopper."""

_GRU: Mapping[str, Any] = {"algo.memory.kind": "gru", "algo.memory.size": 64, "algo.memory.window": 16}
"""Of which a minibatch holds whole windows."""

PPO_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 50_000,
        "num_envs": 8,
        "algo.n_steps": 256,
        "algo.batch_size": 64,
        "algo.learning_rate": 1e-3,
        "algo.learning_rate_schedule": "linear",
        "algo.gamma": 0.98,
    },
    "Pendulum-v1": {
        "total_timesteps": 100_000,
        "num_envs": 4,
        "algo.n_steps": 256,
        "algo.batch_size": 64,
        "algo.learning_rate": 1e-3,
        "algo.learning_rate_schedule": "linear",
        "algo.gamma": 0.95,
    },
    **{
        f"{name}-v5": _MUJOCO
        for name in (
            "Hopper",
            "Humanoid",
            "InvertedDoublePendulum",
            "InvertedPendulum",
            "Pusher",
            "Reacher",
            "Swimmer",
            "Walker2d",
        )
    },
    "HalfCheetah-v5": {**_MUJOCO, "algo.init_std": 0.6},
    # with actions as large as 1 what they cost teaches an ant to stand before it can walk
    "Ant-v5": {**_MUJOCO, "algo.init_std": 0.5},
    # values of rewards as large as -16 would take most of a gradient that is clipped as one;
    # with half the environments one run in four ends without an answer to some of the starts
    "habilis/PendulumNoVelocity-v0": {
        **_GRU,
        "total_timesteps": 150_000,
        "num_envs": 16,
        "algo.n_steps": 256,
        "algo.batch_size": 128,
        "algo.learning_rate": 1e-3,
        "algo.learning_rate_schedule": "linear",
        "algo.gamma": 0.95,
        "algo.max_grad_norm": 1.0,
        "algo.memory.window": 8,
    },
    "habilis/InvertedPendulumNoVelocity-v0": {
        **_MUJOCO,
        **_GRU,
        "total_timesteps": 100_000,
        "algo.batch_size": 256,
        "algo.learning_rate": 1e-3,
    },
    "habilis/HopperNoVelocity-v0": {**_MUJOCO, **_GRU, "algo.batch_size": 256, "algo.learning_rate": 1e-3},
    # many short rollouts of many robots; the rewards are of order one as they are
    "habilis/QuadrupedWalk-v0": {
        "total_timesteps": 2_000_000,
        "num_envs": 128,
        "matmul_precision": "medium",
        "algo.n_steps": 32,
        "algo.batch_size": 512,
        "algo.n_epochs": 8,
        "algo.learning_rate": 4e-4,
        "algo.learning_rate_schedule": "linear",
        "algo.gamma": 0.98,
        "algo.max_grad_norm": 1.0,
        "algo.normalize_reward": False,
        "algo.hidden": (128, 128),
        "algo.activation": "elu",
        "algo.init_std": 0.4,
    },
}
