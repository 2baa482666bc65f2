"""Presets of SAC and its kin. What those that were measured reach is in `docs/algorithms/sac.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAC_NAMES = ("sac", "tqc", "redq", "droq", "crossq", "simba_sac")

SAC_GENERAL: Mapping[str, Any] = {
    "num_envs": 1,
    "threads": 2,
    "total_timesteps": 200_000,
    "matmul_precision": "medium",
    "algo.learning_starts": 1000,
}
"""For an environment that was never tried."""

MUJOCO = ("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Swimmer-v5", "Walker2d-v5")
"""The native MuJoCo tasks."""

_WARM_UP: Mapping[str, Any] = {"algo.learning_starts": 5000, "algo.hidden_precision": "bfloat16"}

_SHORT_WARM_UP: Mapping[str, Any] = {**_WARM_UP, "algo.learning_starts": 2500}
"""For what learns within the first 20,000 steps."""

_SOON: Mapping[str, Any] = {"algo.init_ent_coef": 0.2}
"""A temperature of 1 values a cheetah's randomness above its speed, and falls once for each step of the robot."""

_SCALED: Mapping[str, Any] = {"algo.normalize_reward": True, "algo.init_ent_coef": 0.01}
"""Values of a few units, whatever the task pays, and a temperature to go with them."""

_NARROWER: Mapping[str, Any] = {**_WARM_UP, "algo.critic_hidden": (256, 256)}
"""Half the width of SimBa's papers is a quarter of its time."""

_ONE_CRITIC: Mapping[str, Any] = {
    "algo.n_critics": 1,
    "algo.top_quantiles_to_drop_per_net": 0,
    "algo.target_entropy": -3.0,
}
"""As in SimBa's own code: minus half a nat for each action value, and a second critic only where episodes can end."""

_MUJOCO: Mapping[str, Any] = {**_WARM_UP, "algo.learning_rate": 5e-4, "algo.critic_learning_rate": 1e-3}
"""A faster policy and temperature lose their randomness before a cheetah has left its back."""

_PENDULUM: Mapping[str, Any] = {"total_timesteps": 20_000, "algo.learning_rate": 1e-3, "algo.learning_starts": 100}

_PENDULUM_OFTEN: Mapping[str, Any] = {
    **_PENDULUM,
    "total_timesteps": 4000,
    "algo.learning_starts": 500,
    "algo.hidden": (64, 64),
    "algo.critic_hidden": (64, 64),
}
"""Twenty updates for each step: small networks, and few steps."""

_PENDULUM_SIMBA: Mapping[str, Any] = {
    **_PENDULUM_OFTEN,
    "total_timesteps": 6000,
    "algo.hidden": (64,),
    "algo.critic_hidden": (64,),
}

_MEMORY: Mapping[str, Any] = {
    "algo.batch_size": 128,
    "algo.memory.kind": "gru",
    "algo.memory.size": 64,
    "algo.memory.window": 8,
}
"""A velocity is the difference of two positions: a short window shows it."""

_GOAL: Mapping[str, Any] = {
    "matmul_precision": "highest",
    "algo.goal_selection_strategy": "future",
    "algo.learning_rate": 1e-3,
    "algo.tau": 0.05,
    "algo.gamma": 0.95,
    "algo.init_ent_coef": 0.05,
    "algo.normalize_obs": True,
}
"""Goals learnt of in hindsight. A reward of -1 or 0 is soon drowned by the entropy of a temperature of 1."""

_INVERTED_PENDULUM: Mapping[str, Any] = {**_PENDULUM, "total_timesteps": 12_000, "algo.learning_starts": 500}

_SMALL: Mapping[str, Any] = {"algo.hidden_precision": "bfloat16"}
"""MuJoCo's tasks that need no other rates."""

_SAC: Mapping[str, Mapping[str, Any]] = {
    "Pendulum-v1": _PENDULUM,
    "habilis/PendulumNoVelocity-v0": {**_PENDULUM, **_MEMORY},
    "InvertedPendulum-v5": _INVERTED_PENDULUM,
    "InvertedDoublePendulum-v5": {**_SMALL, "total_timesteps": 50_000},
    "Reacher-v5": {**_SMALL, "total_timesteps": 50_000},
    "Pusher-v5": {**_SMALL, "total_timesteps": 100_000},
    "habilis/InvertedPendulumNoVelocity-v0": {**_INVERTED_PENDULUM, **_MEMORY, "total_timesteps": 30_000},
    **dict.fromkeys(MUJOCO, _MUJOCO),
    # angles of a tenth beside speeds of ten are one size once normalised; and what a hopper has learnt by the end it
    # may lose again within a few thousand steps, unless these become small and a fall some hundred steps ahead counts
    "Hopper-v5": {
        **_MUJOCO,
        "algo.normalize_obs": True,
        "algo.learning_rate_schedule": "linear",
        "algo.gamma": 0.995,
    },
    # speed pays at once and nothing ends an episode: a shorter horizon learns it from fewer steps
    "HalfCheetah-v5": {**_MUJOCO, "algo.gamma": 0.98},
    # many robots and few updates: what one learns of walking is of use to all; rewards are those of a fiftieth of a
    # second, which the entropy of a temperature of 1 would drown
    "habilis/QuadrupedWalk-v0": {
        **_SMALL,
        "total_timesteps": 600_000,
        "num_envs": 32,
        "algo.learning_starts": 6400,
        "algo.gradient_steps": 4,
        "algo.batch_size": 512,
        "algo.buffer_size": 600_000,
        "algo.learning_rate": 1e-3,
        "algo.learning_rate_schedule": "linear",
        "algo.gamma": 0.98,
        "algo.init_ent_coef": 0.01,
        "algo.normalize_obs": True,
        "algo.hidden": (256, 128),
        "algo.critic_hidden": (256, 256),
    },
    "FetchReach-v4": {
        **_GOAL,
        "env_backend": "envpool",
        "total_timesteps": 20_000,
        "num_envs": 4,
        "algo.gradient_steps": -1,
        "algo.hidden": (64, 64),
    },
    "FetchPush-v4": {
        **_GOAL,
        "env_backend": "envpool",
        "total_timesteps": 1_000_000,
        "num_envs": 16,
        "algo.train_freq": 2,
        "algo.gradient_steps": 12,
        "algo.batch_size": 256,
        "algo.learning_starts": 2000,
        "algo.hidden_precision": "bfloat16",
        "algo.hidden": (256, 256, 256),
    },
    "habilis/PointReachGoal-v0": {
        **_GOAL,
        "total_timesteps": 30_000,
        "num_envs": 8,
        "algo.gradient_steps": 4,
        "algo.gamma": 0.98,
        "algo.hidden": (128, 128),
    },
}

DISCRETE_SAC_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 50_000,
        "num_envs": 8,
        "algo.gradient_steps": 4,
        "algo.learning_rate": 1e-3,
        "algo.learning_rate_schedule": "linear",
        "algo.batch_size": 128,
        "algo.tau": 0.02,
        "algo.target_entropy_ratio": 0.3,
    },
}
"""By environment."""

SAC_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sac": _SAC,
    # a cheetah's values are not overestimated: the paper leaves out no quantiles there either
    "tqc": {
        **_SAC,
        "HalfCheetah-v5": {
            **_SAC["HalfCheetah-v5"],
            **_SCALED,
            "algo.top_quantiles_to_drop_per_net": 0,
            "algo.layer_norm": True,
        },
    },
    # many updates for each step: the rates of the papers, which are lower
    "redq": {"Pendulum-v1": _PENDULUM_OFTEN, **dict.fromkeys(MUJOCO, _WARM_UP)},
    "droq": {
        "Pendulum-v1": _PENDULUM_OFTEN,
        **dict.fromkeys(MUJOCO, _SHORT_WARM_UP),
        "HalfCheetah-v5": {**_SHORT_WARM_UP, **_SOON},
    },
    "crossq": {"Pendulum-v1": {**_PENDULUM_OFTEN, "total_timesteps": 8000}, **dict.fromkeys(MUJOCO, _WARM_UP)},
    "simba_sac": {
        "Pendulum-v1": _PENDULUM_SIMBA,
        **dict.fromkeys(MUJOCO, _NARROWER),
        "HalfCheetah-v5": {**_NARROWER, **_ONE_CRITIC},
    },
}
"""By algorithm and environment."""
