"""Tables find what there is to find: the truth of planning in the grid world, and no more than the truth on a chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.functional.planning import value_iteration
from habilis.presets.tabular import TABULAR_NAMES
from habilis.training.tabular import TabularTrainer

GRID = "habilis/GridWorld-v0"
EVERY = pytest.mark.parametrize("algorithm", TABULAR_NAMES)


def make(algorithm: str, env: str, **overrides: Any) -> TabularTrainer:
    trainer = build_trainer(default_config(algorithm, env, **overrides))
    assert isinstance(trainer, TabularTrainer)
    return trainer


def after_episodes(count: int, algorithm: str, seed: int, **overrides: Any) -> TabularTrainer:
    """Train on the grid world until so many episodes have ended."""
    trainer = make(algorithm, GRID, **{"seed": seed, "algo.train_freq": 1, **overrides})
    while trainer.collector.episodes.count < count:
        trainer.iterate()
    return trainer


def greedy_actions(trainer: TabularTrainer) -> torch.Tensor:
    return trainer.algorithm.policy({"policy": torch.eye(16)})[0]


def greedy_return(trainer: TabularTrainer) -> float:
    """The return of one greedy episode, by the matrices; of 50 steps if it does not end."""
    dynamics, actions = trainer.collector.env.dynamics, greedy_actions(trainer)
    state, total = dynamics.start, 0.0
    for _ in range(50):
        total += float(dynamics.rewards[state, actions[state]])
        state = int(dynamics.next_state[state, actions[state], 0])
        if dynamics.terminal[state]:
            break
    return total


@pytest.mark.parametrize("seed", range(20))
def test_q_learning_is_optimal_in_every_cell_after_500_episodes(seed: int) -> None:
    trainer = after_episodes(500, "q_learning", seed)
    assert greedy_return(trainer) == pytest.approx(9.8, abs=1e-5)
    dynamics = trainer.collector.env.dynamics
    truth = value_iteration(dynamics.transitions, dynamics.rewards, 0.99)
    chosen = truth.gather(1, greedy_actions(trainer)[:, None])[:, 0]
    assert torch.allclose(chosen, truth.amax(1), atol=1e-6)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_all_of_them_find_the_best_way(algorithm: str, seed: int) -> None:
    assert greedy_return(after_episodes(500, algorithm, seed)) == pytest.approx(9.8, abs=1e-5)


def test_one_agent_alone_finds_it_with_the_general_settings() -> None:
    overrides = {"num_envs": 1, "algo.learning_rate": 0.1, "algo.exploration_decay": 0.99}
    assert greedy_return(after_episodes(500, "q_learning", 0, **overrides)) == pytest.approx(9.8, abs=1e-5)


def test_values_are_those_of_planning_on_slippery_ground() -> None:
    settings = {"algo.learning_rate": 1.0, "algo.learning_rate_power": 0.7, "algo.exploration_decay": 1.0}
    trainer = make("q_learning", GRID, env_kwargs={"slip": 0.2}, **settings)
    for _ in range(400):
        trainer.iterate()
    dynamics = trainer.collector.env.dynamics
    truth = value_iteration(dynamics.transitions, dynamics.rewards, 0.99)
    learnt = trainer.algorithm.policy.values[0]
    visited = trainer.algorithm.policy.visits[0] > 300
    assert visited.sum() >= 50
    assert (learnt - truth)[visited].abs().max() < 0.6
    assert (learnt - truth)[visited].abs().mean() < 0.15


def value_of_left(algorithm: str) -> float:
    """What is expected of going left, averaged over the last three quarters of a run that tries everything alike."""
    trainer = make(
        algorithm,
        "probe/MaximizationBias-v0",
        **{"num_envs": 8, "algo.gamma": 1.0, "algo.exploration_final_eps": 1.0, "algo.train_freq": 1},
    )
    seen = []
    for _ in range(1000):
        trainer.iterate()
        seen.append(float(trainer.algorithm.policy.values[:, 0, :5].mean()))
    return sum(seen[250:]) / 750


def test_the_maximum_misleads_one_table_and_not_two() -> None:
    # left is worth -0.1, and right nothing: one table goes left
    assert value_of_left("q_learning") > 0.15
    assert value_of_left("double_q_learning") == pytest.approx(-0.1, abs=0.08)


@EVERY
def test_truncation_is_not_termination(algorithm: str) -> None:
    settings = {"algo.gamma": 0.9, "algo.rounding": [1.0], "algo.learning_rate": 0.2}
    trainer = make(algorithm, "probe/TruncationValue-v0", **settings)
    for _ in range(60):
        trainer.iterate()
    # 1 / (1 - 0.9); a learner that takes truncation for termination finds at most 1 + 0.9 + ... + 0.9^4 = 4.1
    assert float(trainer.algorithm.policy.scores({"policy": torch.zeros(1, 1)}).max()) == pytest.approx(10.0, abs=0.5)


@EVERY
def test_credit_and_choices(algorithm: str) -> None:
    settings = {"algo.gamma": 0.9, "algo.rounding": [1.0], "algo.learning_rate": 0.2}
    credit = make(algorithm, "probe/TwoStepCredit-v0", **settings)
    choice = make(algorithm, "probe/ActionObservationReward-v0", **settings)
    identity = make(algorithm, "probe/Identity-v0", **{**settings, "algo.gamma": 0.1})  # what comes next is chance
    for trainer, iterations in ((credit, 20), (choice, 20), (identity, 30)):
        for _ in range(iterations):
            trainer.iterate()
    values = credit.algorithm.policy.scores({"policy": torch.tensor([[0.0], [1.0]])}).amax(1)
    assert values.tolist() == pytest.approx([0.9, 1.0], abs=0.02)
    assert choice.algorithm.policy.predict(torch.tensor([[-1.0], [1.0]]).numpy())[0].tolist() == [0, 1]
    assert identity.algorithm.policy.predict(torch.eye(4).numpy())[0].tolist() == [0, 1, 2, 3]
