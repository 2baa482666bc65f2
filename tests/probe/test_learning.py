"""Tiny environments that a correct algorithm solves in seconds, and an incorrect one does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.envs.make import make_vec_env
from habilis.evaluation.evaluator import evaluate
from habilis.presets.dqn import DQN_NAMES
from habilis.presets.sac import SAC_NAMES
from habilis.training.keeping import Trainer

PPO = {
    "num_envs": 16,
    "algo.n_steps": 16,
    "algo.batch_size": 64,
    "algo.n_epochs": 4,
    "algo.hidden": [32],
    "algo.learning_rate": 3e-3,
    "algo.normalize_obs": False,
    "algo.normalize_reward": False,
    "algo.gamma": 0.9,
    "algo.gae_lambda": 0.9,
}
PLAIN = {
    "num_envs": 16,
    "algo.hidden": [32],
    "algo.normalize_obs": False,
    "algo.normalize_reward": False,
    "algo.gamma": 0.9,
}
A2C = PLAIN | {"algo.n_steps": 2, "algo.learning_rate": 3e-3, "algo.gae_lambda": 0.9}
A3C = A2C | {"num_envs": 2, "algo.n_steps": 8, "algo.learning_rate": 6e-3}
ACTOR_CRITIC = PLAIN | {"algo.learning_rate": 3e-3}
REINFORCE = PLAIN | {"algo.n_episodes": 32}
TRPO = PLAIN | {"algo.n_steps": 16, "algo.batch_size": 64, "algo.gae_lambda": 0.9, "algo.target_kl": 0.03}
SAC = {
    "num_envs": 8,
    "algo.train_freq": 1,
    "algo.gradient_steps": 1,
    "algo.learning_starts": 64,
    "algo.batch_size": 64,
    "algo.hidden": [32],
    "algo.learning_rate": 3e-3,
    "algo.tau": 0.05,
    "algo.gamma": 0.9,
    "algo.buffer_size": 20_000,
}
KIN = {
    **{name: SAC | {"algo.policy_delay": 1, "algo.critic_hidden": [32]} for name in SAC_NAMES[1:]},
    "td3": SAC | {"algo.policy_delay": 2},
    "fast_td3": SAC
    | {
        "num_envs": 32,
        "algo.gradient_steps": 4,
        "algo.critic_hidden": [32],
        "algo.n_atoms": 25,
        "algo.v_min": -1.0,
        "algo.v_max": 11.0,
        "algo.normalize_obs": False,
    },
    "ddpg": SAC | {"algo.action_noise": "ornstein_uhlenbeck", "algo.action_noise_std": 0.2},
}
KIN["crossq"] |= {"algo.adam_beta1": 0.9}
KIN["simba_sac"] |= {"algo.normalize_obs": False, "algo.normalize_reward": False}
DQN = {
    "num_envs": 8,
    "algo.learning_starts": 64,
    "algo.batch_size": 64,
    "algo.hidden": [32],
    "algo.learning_rate": 3e-3,
    "algo.target_update_interval": 25,
    "algo.gamma": 0.9,
    "algo.buffer_size": 20_000,
    "algo.exploration_fraction": 0.5,
    "algo.n_atoms": 25,
    "algo.v_min": -1.0,
    "algo.v_max": 11.0,
    "algo.n_quantiles": 20,
}
ON_POLICY = {"ppo": PPO, "a2c": A2C, "actor_critic": ACTOR_CRITIC, "reinforce": REINFORCE, "trpo": TRPO, "npg": TRPO}
BASE = {**ON_POLICY, "a3c": A3C, "sac": SAC, "discrete_sac": SAC, **KIN, **dict.fromkeys(DQN_NAMES, DQN)}
IMPLICIT = {"algo.hidden": [32, 32]}
"""Implicit quantiles multiply features that are learnt."""
BASE["iqn"] = DQN | IMPLICIT
STEPS = {
    **dict.fromkeys(ON_POLICY, 16_000),
    "a3c": 5_000,
    **dict.fromkeys(("sac", "discrete_sac", *KIN), 8_000),
    **dict.fromkeys(DQN_NAMES, 4_000),
}


def train(algorithm: str, probe: str, **overrides: Any) -> Trainer:
    base = BASE[algorithm]
    config = default_config(
        algorithm, f"probe/{probe}-v0", **{**base, "total_timesteps": STEPS[algorithm], "threads": 1, **overrides}
    )
    trainer = build_trainer(config)
    for _ in trainer:
        pass
    return trainer


def value(trainer: Trainer, *rows: float) -> list[float]:
    """V of observations: PPO's own, for SAC (temperature near zero) Q of the policy's action, else the best score."""
    obs = {"policy": torch.tensor(rows).unsqueeze(1)}
    algorithm = trainer.algorithm
    with torch.no_grad():
        if hasattr(algorithm, "value"):
            return algorithm.value(obs).tolist()
        if hasattr(algorithm.policy, "scores"):
            return algorithm.policy.scores(obs).amax(-1).tolist()
        action = algorithm.policy.act(obs, deterministic=True).action
        if hasattr(algorithm, "q_values"):
            return algorithm.q_values(obs, action).mean(0).tolist()
        return algorithm.state.critics(obs, action).mean((0, 2)).tolist()


def act(trainer: Trainer, rows: list[list[float]]) -> torch.Tensor:
    return trainer.algorithm.policy.act({"policy": torch.tensor(rows)}, deterministic=True).env_action


@pytest.mark.parametrize(
    ("strategy", "low", "high"),
    [("future", 0.95, 1.0), ("final", 0.4, 1.0), ("episode", 0.2, 1.0), ("none", 0.0, 0.1)],
)
def test_bits_are_flipped_in_hindsight_alone(strategy: str, low: float, high: float) -> None:
    trainer = train(
        "dqn",
        "BitFlip",
        **{"env_kwargs": {"bits": 12}, "algo.goal_selection_strategy": strategy, "algo.gradient_steps": 2},
        **{"algo.learning_rate": 1e-3, "algo.target_update_interval": 1, "algo.tau": 0.05, "algo.gamma": 0.98},
        **{"algo.hidden": [128, 128], "algo.batch_size": 128, "algo.exploration_fraction": 0.3},
        total_timesteps=8000,
    )
    result = evaluate(trainer.algorithm.policy, make_vec_env("probe/BitFlip-v0", 50, bits=12), episodes=100, seed=1)
    assert low <= result.success_rate <= high


POLICIES = pytest.mark.parametrize("algorithm", [*ON_POLICY, "sac"])
CRITICS = pytest.mark.parametrize("algorithm", KIN)
# a fixed, tiny temperature: the soft value is then the value
COLD: dict[str, dict[str, Any]] = {name: {"algo.ent_coef": 1e-4} for name in SAC_NAMES}


@POLICIES
def test_constant_reward(algorithm: str) -> None:
    trainer = train(algorithm, "ConstantRewardContinuous", **COLD.get(algorithm, {}), total_timesteps=4000)
    assert value(trainer, 0.0) == pytest.approx([1.0], abs=0.05)


@POLICIES
def test_reward_that_depends_on_the_observation(algorithm: str) -> None:
    trainer = train(algorithm, "ObservationRewardContinuous", **COLD.get(algorithm, {}))
    assert value(trainer, -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.1)


@POLICIES
def test_credit_over_two_steps(algorithm: str) -> None:
    trainer = train(algorithm, "TwoStepCreditContinuous", **COLD.get(algorithm, {}))
    assert value(trainer, 0.0, 1.0) == pytest.approx([0.9, 1.0], abs=0.08)


@POLICIES
def test_truncation_is_not_termination(algorithm: str) -> None:
    # 1 / (1 - 0.9); a learner that takes truncation for termination finds at most 1 + 0.9 + ... + 0.9^4 = 4.1
    trainer = train(
        algorithm, "TruncationValueContinuous", **COLD.get(algorithm, {}), total_timesteps=2 * STEPS[algorithm]
    )
    assert value(trainer, 0.0) == pytest.approx([10.0], abs=0.7)


@CRITICS
def test_values_of_actions(algorithm: str) -> None:
    trainer = train(algorithm, "TwoStepCreditContinuous", **COLD.get(algorithm, {}))
    assert value(trainer, 0.0, 1.0) == pytest.approx([0.9, 1.0], abs=0.1)
    trainer = train(
        algorithm, "TruncationValueContinuous", **COLD.get(algorithm, {}), total_timesteps=2 * STEPS[algorithm]
    )
    assert value(trainer, 0.0) == pytest.approx([10.0], abs=1.0)


@CRITICS
def test_actions_that_climb_critics(algorithm: str) -> None:
    # the running statistics, by which CrossQ's policy acts, trail those by which it learns
    steps = 24_000 if algorithm == "crossq" else STEPS[algorithm]
    trainer = train(algorithm, "ActionObservationRewardContinuous", **COLD.get(algorithm, {}), total_timesteps=steps)
    assert act(trainer, [[-1.0], [1.0]]).flatten().tolist() == pytest.approx([-0.5, 0.5], abs=0.15)


@pytest.mark.parametrize(("algorithm", "network"), [("sac", "simba"), ("sac", "simba_v2"), ("td3", "simba_v2")])
def test_residual_networks_and_normalised_rewards(algorithm: str, network: str) -> None:
    settings = {**COLD.get(algorithm, {}), "algo.network": network, "algo.normalize_reward": True}
    trainer = train(algorithm, "ActionObservationRewardContinuous", **settings)
    assert act(trainer, [[-1.0], [1.0]]).flatten().tolist() == pytest.approx([-0.5, 0.5], abs=0.15)


def test_choices_by_critics() -> None:
    cold = {"algo.ent_coef": 1e-3}
    assert act(train("discrete_sac", "ActionObservationReward", **cold), [[-1.0], [1.0]]).tolist() == [0, 1]
    trainer = train("discrete_sac", "Identity", total_timesteps=16_000)
    assert act(trainer, torch.eye(4).tolist()).tolist() == [0, 1, 2, 3]
    trainer = train("discrete_sac", "TruncationValue", **cold, total_timesteps=16_000)
    with torch.no_grad():
        best = trainer.algorithm.state.critics({"policy": torch.zeros(1, 1)}).amin(0).amax()
    assert best.item() == pytest.approx(10.0, abs=0.7)


def test_truncation_with_n_step_targets() -> None:
    trainer = train("sac", "TruncationValueContinuous", **COLD["sac"], **{"algo.n_steps": 3}, total_timesteps=16_000)
    assert value(trainer, 0.0) == pytest.approx([10.0], abs=0.7)


@POLICIES
def test_action_that_depends_on_the_observation(algorithm: str) -> None:
    trainer = train(algorithm, "ActionObservationRewardContinuous", **COLD.get(algorithm, {}))
    assert act(trainer, [[-1.0], [1.0]]).flatten().tolist() == pytest.approx([-0.5, 0.5], abs=0.12)


@POLICIES
def test_continuous_identity(algorithm: str) -> None:
    trainer = train(algorithm, "IdentityContinuous", total_timesteps=3 * STEPS[algorithm])
    rows = [[-0.8, 0.4], [0.1, -0.5], [0.6, 0.7]]
    assert act(trainer, rows).flatten().tolist() == pytest.approx(torch.tensor(rows).flatten().tolist(), abs=0.2)


@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_discrete_choices(algorithm: str) -> None:
    assert act(train(algorithm, "ActionReward"), [[0.0]]).item() == 1
    assert act(train(algorithm, "ActionObservationReward"), [[-1.0], [1.0]]).tolist() == [0, 1]
    trainer = train(algorithm, "Identity", total_timesteps=32_000)
    assert act(trainer, torch.eye(4).tolist()).tolist() == [0, 1, 2, 3]


def test_workers_that_share_a_network() -> None:
    assert value(train("a3c", "TruncationValueContinuous"), 0.0) == pytest.approx([10.0], abs=0.7)
    assert act(train("a3c", "ActionObservationReward"), [[-1.0], [1.0]]).tolist() == [0, 1]


def test_reinforce_without_a_baseline() -> None:
    plain = {"algo.baseline": False, "algo.normalize_advantage": False}
    assert act(train("reinforce", "ActionObservationReward", **plain), [[-1.0], [1.0]]).tolist() == [0, 1]
    trainer = train("reinforce", "Identity", **plain, total_timesteps=64_000)
    assert act(trainer, torch.eye(4).tolist()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_several_discrete_choices_at_once(algorithm: str) -> None:
    trainer = train(algorithm, "IdentityMultiDiscrete", total_timesteps=48_000)
    rows = [[float(a == i) for i in range(3)] + [float(b == i) for i in range(2)] for a in range(3) for b in range(2)]
    assert act(trainer, rows).tolist() == [[a, b] for a in range(3) for b in range(2)]


@pytest.mark.parametrize(
    ("algorithm", "distribution"),
    [("ppo", "squashed"), ("ppo", "beta"), ("a2c", "beta"), ("reinforce", "squashed"), ("trpo", "beta")],
)
def test_bounded_policies(algorithm: str, distribution: str) -> None:
    trainer = train(algorithm, "IdentityContinuous", **{"algo.distribution": distribution}, total_timesteps=48_000)
    rows = [[-0.8, 0.4], [0.1, -0.5], [0.6, 0.7]]
    assert act(trainer, rows).flatten().tolist() == pytest.approx(torch.tensor(rows).flatten().tolist(), abs=0.3)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "sac"])
def test_state_dependent_noise(algorithm: str) -> None:
    trainer = train(algorithm, "IdentityContinuous", **{"algo.use_sde": True}, total_timesteps=3 * STEPS[algorithm])
    rows = [[-0.8, 0.4], [0.1, -0.5], [0.6, 0.7]]
    assert act(trainer, rows).flatten().tolist() == pytest.approx(torch.tensor(rows).flatten().tolist(), abs=0.2)


@pytest.mark.parametrize(("algorithm", "distribution"), [("ppo", "gaussian"), ("a2c", "squashed"), ("ppo", "beta")])
def test_values_and_choices_at_once(algorithm: str, distribution: str) -> None:
    trainer = train(algorithm, "IdentityHybrid", **{"algo.distribution": distribution}, total_timesteps=64_000)
    result = evaluate(trainer.algorithm.policy, make_vec_env("probe/IdentityHybrid-v0", 50), episodes=100, seed=1)
    # at best 8; always 0 would be paid 8 / 3 for a third of the choices, less 8 / 3 for the values
    assert result.mean > 7.5


FAMILY = pytest.mark.parametrize("algorithm", DQN_NAMES)


@FAMILY
def test_values_of_choices(algorithm: str) -> None:
    trainer = train(algorithm, "ObservationReward")
    assert value(trainer, -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.15)
    trainer = train(algorithm, "TwoStepCredit")
    assert value(trainer, 0.0, 1.0) == pytest.approx([0.9, 1.0], abs=0.15)


@FAMILY
def test_truncation_is_not_termination_for_choices(algorithm: str) -> None:
    trainer = train(algorithm, "TruncationValue", total_timesteps=9_000)
    assert value(trainer, 0.0) == pytest.approx([10.0], abs=0.7)


@FAMILY
def test_choices_that_depend_on_the_observation(algorithm: str) -> None:
    assert act(train(algorithm, "ActionObservationReward"), [[-1.0], [1.0]]).tolist() == [0, 1]


@pytest.mark.parametrize(
    "overrides",
    [
        {"algo.exploration": "boltzmann", "algo.exploration_final_eps": 0.1},
        {"algo.exploration_schedule": "exponential", "algo.exploration_decay": 0.99},
        {"algo.huber_threshold": None, "algo.tau": 0.05, "algo.target_update_interval": 1},
        {"algo.head": "quantile", "algo.risk_level": 0.5, "algo.dueling": True, "algo.huber_threshold": 0.0},
        IMPLICIT
        | {"algo.head": "implicit_quantile", "algo.risk_level": 0.5, "algo.prioritized": True, "algo.n_steps": 3},
        {"algo.head": "categorical", "algo.risk_level": 0.5, "algo.exploration": "noisy", "algo.double_q": True},
    ],
    ids=str,
)
def test_ways_of_value_based_learning(overrides: dict[str, Any]) -> None:
    trainer = train("dqn", "Identity", **overrides, total_timesteps=10_000)
    assert act(trainer, torch.eye(4).tolist()).tolist() == [0, 1, 2, 3]


def return_of_cues(algorithm: str, kind: str, **overrides: Any) -> float:
    """The mean return where a cue has to be remembered for three steps, after learning from replay."""
    probe = "Memory" if algorithm in ("dqn", "discrete_sac") else "MemoryContinuous"
    memory = {"algo.memory.kind": kind, "algo.memory.window": 4, "algo.memory.size": 16}
    trainer = train(algorithm, probe, **memory, **overrides)
    return evaluate(trainer.algorithm.policy, make_vec_env(f"probe/{probe}-v0", 50), episodes=200, seed=1).mean


@pytest.mark.parametrize("kind", ["gru", "lstm", "transformer"])
def test_choices_that_depend_on_what_was_seen(kind: str) -> None:
    assert return_of_cues("dqn", kind) == 1.0


def test_choices_of_a_policy_that_depend_on_what_was_seen() -> None:
    assert return_of_cues("discrete_sac", "lstm", total_timesteps=4000) == 1.0


@pytest.mark.parametrize("kind", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_actions_that_depend_on_what_was_seen(algorithm: str, kind: str) -> None:
    assert return_of_cues(algorithm, kind, total_timesteps=6000) > -0.1


def test_what_is_forgotten_cannot_be_answered() -> None:
    # at best half of the choices are right, and an action in the middle of both cues is 0.5 from either
    assert abs(return_of_cues("dqn", "none")) < 0.3
    assert return_of_cues("sac", "none", total_timesteps=4000) < -0.2


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [*((name, kind) for name in ("ppo", "a2c") for kind in ("gru", "lstm", "transformer")), ("a2c", "none")],
)
def test_what_was_seen_first_is_remembered_by_who_has_a_memory(algorithm: str, kind: str) -> None:
    memory = {"algo.memory.kind": kind, "algo.memory.size": 16, "algo.memory.window": 8, "algo.n_steps": 16}
    trainer = train(algorithm, "Memory", **memory, total_timesteps=6000)
    result = evaluate(trainer.algorithm.policy, make_vec_env("probe/Memory-v0", 16), episodes=64, seed=0)
    # with a coin for a memory the mean of 64 is within 0.4 of 0 once in a thousand times
    assert abs(result.mean) < 0.4 if kind == "none" else result.mean == 1.0
