"""Presets of A2C and what shares its loss. What each reaches is in `docs/algorithms/a2c.md`, with the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

A2C_NAMES = ("a2c", "actor_critic", "a3c")

A2C_GENERAL: Mapping[str, Any] = {"num_envs": 8}
"""For an environment that was never tried."""
A3C_GENERAL: Mapping[str, Any] = {"num_envs": 2, "algo.n_steps": 20}
"""A worker for each of two processors, which learn from rollouts of one environment."""

_CARTPOLE: Mapping[str, Any] = {
    "total_timesteps": 200_000,
    "num_envs": 8,
    "algo.learning_rate_schedule": "linear",
}

_INVERTED_PENDULUM: Mapping[str, Any] = {
    "total_timesteps": 1_000_000,
    "num_envs": 8,
    "algo.learning_rate_schedule": "linear",
}

# noise that is held for some steps swings a pendulum, where noise of each step tells nothing of what actions are for
_PENDULUM: Mapping[str, Any] = {
    "total_timesteps": 1_000_000,
    "num_envs": 8,
    "algo.n_steps": 8,
    "algo.gamma": 0.9,
    "algo.gae_lambda": 0.95,
    "algo.learning_rate_schedule": "linear",
    "algo.use_sde": True,
}

_PENDULUM_NO_VELOCITY: Mapping[str, Any] = {
    **_PENDULUM,
    "algo.memory.kind": "lstm",
    "algo.memory.size": 64,
    "algo.memory.window": 8,
}

_INVERTED_PENDULUM_NO_VELOCITY: Mapping[str, Any] = {
    **_INVERTED_PENDULUM,
    "algo.n_steps": 16,
    "algo.memory.kind": "lstm",
    "algo.memory.size": 64,
    "algo.memory.window": 16,
}

A2C_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "a2c": {
        "CartPole-v1": _CARTPOLE,
        "InvertedPendulum-v5": _INVERTED_PENDULUM,
        "Pendulum-v1": _PENDULUM,
        "habilis/PendulumNoVelocity-v0": _PENDULUM_NO_VELOCITY,
        "habilis/InvertedPendulumNoVelocity-v0": _INVERTED_PENDULUM_NO_VELOCITY,
    },
    "actor_critic": {"CartPole-v1": _CARTPOLE},
    "a3c": {"CartPole-v1": {**_CARTPOLE, **A3C_GENERAL}},
}
"""By algorithm and environment."""
