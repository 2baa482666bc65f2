"""Every registered algorithm with a small configuration: what the contract tests run over."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from habilis.api import default_config
from habilis.build import ALGORITHMS, build_trainer
from habilis.checkpoint import save_checkpoint
from habilis.checkpoint.state_tree import flatten
from habilis.presets.dqn import DQN_NAMES
from habilis.presets.sac import SAC_NAMES
from habilis.presets.tabular import TABULAR_NAMES
from habilis.presets.td3 import TD3_NAMES
from habilis.presets.trpo import TRPO_NAMES
from habilis.training.config import TrainConfig
from habilis.training.keeping import Trainer, components

SMALL: dict[str, dict[str, Any]] = {
    "ppo": {
        "num_envs": 3,
        "algo.n_steps": 16,
        "algo.batch_size": 16,
        "algo.n_epochs": 2,
        "algo.hidden": [16],
        "algo.learning_rate_schedule": "linear",
    },
    "sac": {
        "num_envs": 2,
        "algo.learning_starts": 20,
        "algo.train_freq": 8,
        "algo.gradient_steps": 4,
        "algo.batch_size": 16,
        "algo.buffer_size": 200,
        "algo.hidden": [16],
        "algo.n_steps": 3,
        "algo.normalize_obs": True,
        "algo.normalize_reward": True,
    },
}
"""An algorithm without an entry here fails `test_every_algorithm_is_tested`."""

SMALL |= {
    "a2c": {"num_envs": 3, "algo.n_steps": 4, "algo.hidden": [16], "algo.learning_rate_schedule": "linear"},
    "actor_critic": {"num_envs": 3, "algo.hidden": [16], "algo.use_rms_prop": False},
    "a3c": {"num_envs": 2, "algo.n_steps": 4, "algo.hidden": [16]},
    "reinforce": {
        "num_envs": 3,
        "algo.n_episodes": 4,
        "algo.batch_size": 16,
        "algo.n_critic_updates": 2,
        "algo.hidden": [16],
    },
}
TRPO = {
    "num_envs": 3,
    "algo.n_steps": 16,
    "algo.batch_size": 16,
    "algo.n_critic_updates": 2,
    "algo.cg_max_steps": 4,
    "algo.hidden": [16],
}
SMALL |= dict.fromkeys(TRPO_NAMES, TRPO)

DQN = {
    "num_envs": 2,
    "algo.learning_starts": 20,
    "algo.train_freq": 8,
    "algo.gradient_steps": 4,
    "algo.batch_size": 16,
    "algo.buffer_size": 200,
    "algo.target_update_interval": 6,
    "algo.hidden": [16],
    "algo.n_atoms": 11,
    "algo.n_quantiles": 7,
    "algo.normalize_obs": True,
    "algo.normalize_reward": True,
}
SMALL |= dict.fromkeys(DQN_NAMES, DQN)
SMALL["iqn"] = DQN | {"algo.hidden": [16, 16]}
SMALL["dqn"] = DQN | {"algo.tau": 0.5, "algo.exploration_schedule": "exponential"}
SMALL["double_dqn"] = DQN | {"algo.exploration": "boltzmann", "algo.learning_rate_schedule": "linear"}

TABULAR = {"num_envs": 3, "algo.train_freq": 4, "algo.rounding": [0.5]}
SMALL |= dict.fromkeys(TABULAR_NAMES, TABULAR)
SMALL["double_q_learning"] = TABULAR | {"algo.learning_rate_power": 0.8}

SMALL["discrete_sac"] = SMALL["sac"] | {"algo.target_entropy_ratio": 0.5}
SMALL |= dict.fromkeys(SAC_NAMES, SMALL["sac"] | {"algo.critic_hidden": [16], "algo.policy_delay": 3})
SMALL["sac"] = SMALL["sac"] | {"algo.policy_delay": 1}
SMALL |= dict.fromkeys(TD3_NAMES, SMALL["sac"] | {"algo.policy_delay": 2})
SMALL["fast_td3"] = SMALL["td3"] | {"algo.critic_hidden": [16], "algo.n_atoms": 11}
SMALL["ddpg"] = SMALL["ddpg"] | {"algo.policy_delay": 1, "algo.action_noise": "ornstein_uhlenbeck"}

EXACT = dict.fromkeys(SMALL, ("HalfCheetah-v5", "habilis/QuadrupedWalk-v0", "probe/IdentityContinuous-v0"))
EXACT |= dict.fromkeys((*DQN_NAMES, "discrete_sac"), ("probe/Identity-v0", "probe/TruncationValue-v0"))
EXACT |= dict.fromkeys(TABULAR_NAMES, ("probe/Identity-v0", "habilis/GridWorld-v0"))
EXACT["reinforce"] = ("InvertedPendulum-v5", "probe/IdentityContinuous-v0", "probe/Identity-v0")
"""Environments that save their state."""

HINDSIGHT = {
    ("sac", "habilis/PointReachGoal-v0"): "episode",
    ("td3", "habilis/PointReachGoal-v0"): "future",
    ("dqn", "probe/BitFlip-v0"): "final",
    ("rainbow", "probe/BitFlip-v0"): "future",
    ("crossq", "habilis/PointReachGoal-v0"): "final",
    ("fast_td3", "habilis/PointReachGoal-v0"): "episode",
    ("discrete_sac", "probe/BitFlip-v0"): "episode",
}
"""Goals, and which of those that an episode reached are learnt of."""
for _name, _env in HINDSIGHT:
    EXACT[_name] += (_env,)

MEMORY = {
    ("ppo", "probe/Memory-v0"): {"algo.memory.kind": "transformer", "algo.memory.size": 8, "algo.memory.heads": 2},
    ("ppo", "habilis/HopperNoVelocity-v0"): {"algo.memory.kind": "lstm", "algo.memory.size": 8},
    ("a2c", "habilis/HopperNoVelocity-v0"): {"algo.memory.kind": "gru", "algo.memory.size": 8},
    ("sac", "probe/MemoryContinuous-v0"): {"algo.memory.kind": "gru", "algo.memory.burn_in": 2},
    ("td3", "habilis/HopperNoVelocity-v0"): {"algo.memory.kind": "lstm", "algo.memory.size": 8},
    ("dqn", "probe/Memory-v0"): {"algo.memory.kind": "gru", "algo.memory.size": 8},
    ("rainbow", "probe/Memory-v0"): {"algo.memory.kind": "transformer", "algo.memory.size": 8, "algo.memory.heads": 2},
    ("discrete_sac", "probe/Memory-v0"): {"algo.memory.kind": "lstm", "algo.memory.size": 8},
}
"""What must be remembered, and how. An episode of a probe ends within a rollout or window, one of Hopper's after it."""
for _case, _kind in MEMORY.items():
    EXACT[_case[0]] += (_case[1],)
    _kind["algo.memory.window"] = 8

ACTING: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "Hopper-v5"): {
        "algo.use_sde": True,
        "algo.sde_sample_freq": 5,
        "algo.action.smoothing": 0.5,
        "algo.memory.kind": "gru",
        "algo.memory.size": 8,
        "algo.memory.window": 8,
    },
    ("ppo", "probe/IdentityHybrid-v0"): {"algo.distribution": "beta", "algo.action.rate_limit": 0.3},
    ("a2c", "probe/IdentityHybrid-v0"): {"algo.distribution": "squashed", "algo.smoothness.temporal": 0.1},
    ("a2c", "Hopper-v5"): {"algo.distribution": "beta", "algo.smoothness.spatial": 0.1, "algo.smoothness.local": 0.1},
    ("reinforce", "probe/IdentityHybrid-v0"): {"algo.action.smoothing": 0.2},
    ("trpo", "Hopper-v5"): {"algo.distribution": "squashed", "algo.use_sde": True},
    ("sac", "Hopper-v5"): {
        "algo.use_sde": True,
        "algo.sde_sample_freq": 6,
        "algo.action.rate_limit": 0.2,
        "algo.n_steps": 1,
        "algo.smoothness.spatial": 1.0,
    },
    ("td3", "Hopper-v5"): {
        "algo.action_noise": "ornstein_uhlenbeck",
        "algo.action.smoothing": 0.5,
        "algo.action.rate_limit": [0.2, 0.1, 0.3],
        "algo.action.rest": [0.5, 0.0, -0.5],
        "algo.n_steps": 1,
        "algo.smoothness.local": 1.0,
    },
}
"""Ways to draw actions, to smooth them, and to remember the last one and the noise, several at once."""
for _name, _env in ACTING:
    EXACT[_name] += (_env,)

_PIXELS: dict[str, Any] = {"env_kwargs": {"pixels": 20}, "frame_stack": 2, "algo.n_steps": 1}
SEEING: dict[tuple[str, str], dict[str, Any]] = {
    ("td3", "habilis/ReacherPixels-v0"): {**_PIXELS, "plugins": {"random_shift": {"pad": 1}, "contrastive": {}}},
    ("sac", "habilis/HopperPixels-v0"): {
        **_PIXELS,
        "algo.memory.kind": "gru",
        "algo.memory.window": 4,
        "plugins": {"random_shift": {}, "next_state_prediction": {"hidden": 8}},
    },
    ("ppo", "habilis/ReacherPixels-v0"): {
        "env_kwargs": {"pixels": 20},
        "plugins": {"reconstruction": {"batch_size": 16}, "contrastive": {"batch_size": 20}},
    },
    ("dqn", "habilis/Catch-v0"): {"plugins": {"random_shift": {"pad": 1}, "reconstruction": {}}},
    ("discrete_sac", "habilis/Catch-v0"): {"plugins": {"next_state_prediction": {}}},
}
"""What is seen, and the plugins that help to see, each of them in one case at least."""
for _name, _env in SEEING:
    EXACT[_name] += (_env,)

RESIDUAL = {
    ("droq", "HalfCheetah-v5"): {"algo.network": "simba_v2"},
    ("td3", "HalfCheetah-v5"): {"algo.network": "simba"},
}
"""Networks with a way around; those of `simba_sac` are put back to their spheres after each step."""

INEXACT = {"a3c"}
"""Algorithms that are outside the promise of exact resumption, and of the same bits from the same seed."""

FRESH = dict.fromkeys(SMALL, "Pendulum-v1") | dict.fromkeys((*DQN_NAMES, "discrete_sac"), "CartPole-v1")
FRESH |= dict.fromkeys(TABULAR_NAMES, "MountainCar-v0")
"""An environment that cannot, where Gymnasium runs it."""

SPECIAL: dict[tuple[str, str], dict[str, Any]] = {
    # tables that are arrays; the others are dictionaries
    **{(name, "habilis/GridWorld-v0"): {"algo.rounding": []} for name in TABULAR_NAMES},
    **{case: {"env_backend": "gymnasium"} for case in FRESH.items()},
    **{case: {"algo.goal_selection_strategy": strategy} for case, strategy in HINDSIGHT.items()},
    **MEMORY,
    **ACTING,
    **SEEING,
    **RESIDUAL,
}
"""What an algorithm needs in one environment."""


def small_config(algorithm: str, env: str, **overrides: Any) -> TrainConfig:
    base = {"total_timesteps": 2000, "env_threads": 1, "threads": 1}
    given = {**base, **SMALL[algorithm], **SPECIAL.get((algorithm, env), {}), **overrides}
    return default_config(algorithm, env, **given)


def small_trainer(algorithm: str, env: str, **overrides: Any) -> Trainer:
    return build_trainer(small_config(algorithm, env, **overrides))


def iterate(trainer: Trainer, count: int) -> None:
    for _ in range(count):
        trainer.iterate()


def fingerprint(trainer: Trainer) -> str:
    """One hash of every bit that decides how the run goes on."""
    digest = hashlib.sha256()
    for name, state in sorted(components(trainer).items()):
        structure, tensors = flatten(state, where=name)
        digest.update(json.dumps(structure, sort_keys=True, default=str).encode())
        for key, tensor in sorted(tensors.items()):
            digest.update(key.encode())
            digest.update(torch.as_tensor(tensor).reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(trainer: Trainer, path: Any) -> None:
    save_checkpoint(path, components(trainer), meta={"exact": True})


assert ALGORITHMS
