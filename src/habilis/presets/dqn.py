"""Presets of DQN and its family. What those that were measured reach is in `docs/algorithms/dqn.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DQN_NAMES = (
    *("dqn", "double_dqn", "dueling_dqn", "per_dqn", "n_step_dqn", "noisy_dqn"),
    *("c51", "qr_dqn", "iqn", "rainbow"),
)

DQN_GENERAL: Mapping[str, Any] = {"num_envs": 1, "total_timesteps": 100_000}
"""For an environment that was never tried."""

_CARTPOLE: Mapping[str, Any] = {
    "total_timesteps": 100_000,
    "num_envs": 8,
    "algo.train_freq": 32,
    "algo.gradient_steps": 128,
    "algo.tau": 0.01,
    "algo.target_update_interval": 1,
    "algo.learning_rate": 5e-4,
    "algo.learning_rate_schedule": "linear",
    "algo.gamma": 0.995,
    "algo.max_grad_norm": None,
    "algo.learning_starts": 1000,
    "algo.exploration_fraction": 0.16,
    "algo.exploration_final_eps": 0.04,
    "algo.v_min": 0.0,
    "algo.v_max": 200.0,
    "algo.hidden": (256, 256),
}
"""Targets that follow slowly, and a discount that lets it see the end of the track while the cart still drifts there
slowly. A pole that never falls is worth 200."""

_LUNAR_LANDER: Mapping[str, Any] = {
    "total_timesteps": 300_000,
    "num_envs": 4,
    "algo.learning_rate": 6.3e-4,
    "algo.learning_rate_schedule": "linear",
    "algo.batch_size": 128,
    "algo.buffer_size": 100_000,
    "algo.gradient_steps": 2,
    "algo.huber_threshold": 10.0,
    "algo.target_update_interval": 250,
    "algo.exploration_fraction": 0.12,
    "algo.exploration_final_eps": 0.05,
    "algo.v_min": -150.0,
    "algo.v_max": 200.0,
    "algo.hidden": (128, 128),
}
"""A crash and a landing count 100: where errors are clipped at 1, what landing is worth is learnt too slowly."""

_POINT_REACH: Mapping[str, Any] = {
    "total_timesteps": 100_000,
    "num_envs": 8,
    "algo.gradient_steps": 2,
    "algo.learning_rate": 1e-3,
    "algo.batch_size": 128,
    "algo.gamma": 0.97,
    "algo.exploration_fraction": 0.18,
    "algo.exploration_final_eps": 0.05,
    "algo.v_min": -30.0,
    "algo.v_max": 10.0,
    "algo.hidden": (128, 128),
}

_CATCH: Mapping[str, Any] = {
    "total_timesteps": 40_000,
    "num_envs": 8,
    "frame_stack": 2,
    "algo.gradient_steps": 4,
    "algo.learning_rate": 5e-4,
    "algo.learning_rate_schedule": "linear",
    "algo.batch_size": 64,
    "algo.gamma": 0.95,
    "algo.target_update_interval": 200,
    "algo.exploration_fraction": 0.2,
    "algo.exploration_final_eps": 0.02,
    "algo.v_min": -2.0,
    "algo.v_max": 5.0,
}
"""Two frames show where the ball is going."""

_OBJECT_SORTING: Mapping[str, Any] = {
    "total_timesteps": 600_000,
    "num_envs": 16,
    "matmul_precision": "medium",
    "algo.gradient_steps": 4,
    "algo.learning_rate": 5e-4,
    "algo.learning_rate_schedule": "linear",
    "algo.batch_size": 128,
    "algo.buffer_size": 400_000,
    "algo.gamma": 0.98,
    "algo.tau": 0.01,
    "algo.target_update_interval": 1,
    "algo.learning_starts": 5000,
    "algo.exploration_fraction": 0.3,
    "algo.exploration_final_eps": 0.03,
    "algo.v_min": -3.0,
    "algo.v_max": 7.0,
    "algo.hidden": (256, 256),
}

_EVERY_NAME: Mapping[str, Mapping[str, Any]] = {
    "CartPole-v1": _CARTPOLE,
    "LunarLander-v3": _LUNAR_LANDER,
    "habilis/PointReachDiscrete-v0": _POINT_REACH,
    "habilis/Catch-v0": _CATCH,
    "habilis/ObjectSorting-v0": _OBJECT_SORTING,
}

# a fall ends few transitions and puts their values wrong by up to 200: where errors or gradients are clipped, these
# count too little, values grow beyond all returns, and what was learnt is lost
_CARTPOLE_MEAN: Mapping[str, Any] = {**_CARTPOLE, "algo.huber_threshold": None}
_CARTPOLE_QUANTILES: Mapping[str, Any] = {**_CARTPOLE, "algo.huber_threshold": 10.0}
# gradients of a cross-entropy are small: without this, steps along what is left of them are as long as ever
_CARTPOLE_ATOMS: Mapping[str, Any] = {**_CARTPOLE, "algo.adam_eps": 1e-4}
# with steps of 5e-4 noisy weights still let the cart drift off the track when the run ends
_CARTPOLE_NOISY: Mapping[str, Any] = {**_CARTPOLE_MEAN, "algo.learning_rate": 1e-3}

# a velocity is the difference of two positions: a short window shows it
_CARTPOLE_NO_VELOCITY: Mapping[str, Any] = {
    **_CARTPOLE_MEAN,
    "algo.learning_rate": 1e-3,
    "algo.max_grad_norm": 10.0,
    "algo.hidden": (128, 128),
    "algo.memory.kind": "gru",
    "algo.memory.size": 64,
    "algo.memory.window": 8,
}

# as many updates as steps: with half of them Rainbow and IQN end at 254 and 247 over three seeds, at 222 and 245 on one
_LUNAR_LANDER_OFTEN: Mapping[str, Any] = {**_LUNAR_LANDER, "algo.gradient_steps": 4}
# what is drawn by its error has larger gradients and is drawn often enough: small batches, targets that follow slowly
_LUNAR_LANDER_PRIORITIES: Mapping[str, Any] = {
    **_LUNAR_LANDER,
    "algo.learning_rate": 5e-4,
    "algo.batch_size": 64,
    "algo.tau": 0.005,
    "algo.target_update_interval": 1,
    "algo.hidden": (256, 128),
}

# what an update costs grows with the quantiles by which it ranks the actions
_IMPLICIT_QUANTILES: Mapping[str, Any] = {"algo.n_acting_fractions": 8, "matmul_precision": "medium"}

_ONE_NAME: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "dqn": {"CartPole-v1": _CARTPOLE_MEAN, "habilis/CartPoleNoVelocity-v0": _CARTPOLE_NO_VELOCITY},
    **{name: {"CartPole-v1": _CARTPOLE_MEAN} for name in ("dueling_dqn", "n_step_dqn")},
    "noisy_dqn": {"CartPole-v1": _CARTPOLE_NOISY},
    "per_dqn": {"CartPole-v1": _CARTPOLE_MEAN, "LunarLander-v3": _LUNAR_LANDER_PRIORITIES},
    "double_dqn": {
        "CartPole-v1": _CARTPOLE_MEAN,
        # a reward lies many steps behind what earned it, and most actions change little; learnt as 51 atoms it takes a
        # third of the steps
        "habilis/ObjectSorting-v0": {
            **_OBJECT_SORTING,
            "algo.dueling": True,
            "algo.n_steps": 3,
            "algo.head": "categorical",
        },
    },
    "c51": {"CartPole-v1": _CARTPOLE_ATOMS},
    "qr_dqn": {"CartPole-v1": _CARTPOLE_QUANTILES},
    "iqn": {
        "CartPole-v1": {**_CARTPOLE_QUANTILES, **_IMPLICIT_QUANTILES},
        # its actions differ by less than a reduced precision tells apart
        "LunarLander-v3": {**_LUNAR_LANDER_OFTEN, "algo.n_acting_fractions": 8},
    },
    "rainbow": {"CartPole-v1": _CARTPOLE_ATOMS, "LunarLander-v3": _LUNAR_LANDER_OFTEN},
}

DQN_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    name: {**_EVERY_NAME, **_ONE_NAME.get(name, {})} for name in DQN_NAMES
}
"""By algorithm and environment."""
