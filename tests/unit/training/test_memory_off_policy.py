"""Learning from windows of history: what is stored is what acting had, and who reads what of a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from habilis.api import default_config
from habilis.build import build_trainer
from habilis.core.batches import MEMORY, VALID
from habilis.core.errors import ConfigError
from habilis.core.tree import tree_join

CASES = [
    ("sac", "InvertedPendulum-v5", "gru"),
    ("sac", "InvertedPendulum-v5", "transformer"),
    ("td3", "InvertedPendulum-v5", "lstm"),
    ("discrete_sac", "CartPole-v1", "gru"),
    ("dqn", "CartPole-v1", "lstm"),
    ("rainbow", "CartPole-v1", "gru"),
]
every_case = pytest.mark.parametrize(("algorithm", "env", "kind"), CASES)
WINDOW = 4

SHOWN_MORE = """
import gymnasium
from gymnasium.spaces import Box, Dict, Discrete

class ShownMore(gymnasium.Env):
    observation_space = Dict(policy=Box(-1, 1, (2,)), critic=Box(-1, 1, (3,)))
    action_space = Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}

gymnasium.register("ShownMore-v0", ShownMore, max_episode_steps=10)
"""


def build(algorithm, env, kind, say=lambda text: None, **overrides):
    """A trainer that acts uniformly at first, then by its policy, and whose steps are too small to change anything."""
    settings = {
        "num_envs": 3,
        "algo.learning_starts": 60,
        "algo.train_freq": 4,
        "algo.gradient_steps": 1,
        "algo.batch_size": 8,
        "algo.hidden": [8],
        "algo.learning_rate": 1e-30,
        "algo.memory.kind": kind,
        "algo.memory.size": 8,
        "algo.memory.window": WINDOW,
        "algo.memory.heads": 2,
        "algo.buffer_size": 600,
        "threads": 1,
    }
    return build_trainer(default_config(algorithm, env, **settings | overrides), say)


NORMALIZED = {"algo.normalize_reward": True, "algo.v_min": -5.0, "algo.v_max": 5.0}


def test_what_atoms_span_is_told():
    told = []
    build("c51", "CartPole-v1", "none", told.append, **{"algo.v_max": 50.5})
    build("fast_td3", "Pendulum-v1", "none", told.append, **{"algo.v_min": -7.0, "algo.v_max": 3.0})
    build("fast_td3", "Pendulum-v1", "none", told.append, **NORMALIZED)
    build("dqn", "CartPole-v1", "none", told.append)
    atoms = [line.partition(":")[0] for line in told if "atoms" in line]
    assert atoms == ["atoms from 0 to 50.5", "atoms from -7 to 3", "atoms from -5 to 5 standard deviations"]


def test_goals_that_are_not_learnt_of_in_hindsight_are_told_of():
    for strategy, told_of in (("none", True), ("final", False)):
        told = []
        build("td3", "habilis/PointReachGoal-v0", "none", told.append, **{"algo.goal_selection_strategy": strategy})
        assert any(line.startswith("not in hindsight of the goals") for line in told) == told_of


def test_a_group_for_critics_that_nothing_reads_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "shown_more.py").write_text(SHOWN_MORE)
    monkeypatch.syspath_prepend(tmp_path)
    for algorithm, told_of in (("dqn", True), ("discrete_sac", False)):
        told = []
        build(algorithm, "shown_more:ShownMore-v0", "none", told.append)
        assert any(line.startswith("the group critic is not read") for line in told) == told_of


def test_observations_of_any_size_are_told_of_where_a_network_expects_one():
    for normalizes in (True, False):
        told = []
        settings = {"algo.network": "simba", "algo.normalize_obs": normalizes}
        build("sac", "Pendulum-v1", "none", told.append, **settings)
        assert any("which simba expects: --algo.normalize-obs" in line for line in told) != normalizes


def test_a_run_that_ends_before_it_learns_is_told_of():
    told = []
    build("sac", "Pendulum-v1", "none", told.append, total_timesteps=60)
    assert told[-1] == "nothing will be learnt: learning_starts is 60, and the run ends before"


def run(trainer, iterations):
    for _ in range(iterations):
        trainer.iterate()
    return trainer


def at(obs, index):
    return {name: rows[index] for name, rows in obs.items()}


@every_case
def test_what_is_stored_is_what_acting_had(algorithm, env, kind):
    trainer = run(build(algorithm, env, kind), 30)
    buffer, encoder = trainer.buffer, trainer.algorithm.policy.encoder
    memory, ended = encoder.fresh(3), 0
    memories = buffer.windows.memories.by_row(3, 120)
    with torch.no_grad():
        for row in range(120):
            starts = torch.from_numpy(buffer.windows.fresh[row])
            ended += int(starts.sum())
            memory = torch.where(starts.unsqueeze(1), 0.0, memory)
            if kind == "transformer":
                assert memories[row].shape == (3, 0)
            else:
                torch.testing.assert_close(memories[row], memory)
            index = 3 * row + np.arange(3)
            shown = buffer._shown.read(index)
            features, memory = encoder.step(at(shown, (slice(None), -1)), memory)
            # a window gives the newest step the features that it had when it was acted on
            torch.testing.assert_close(encoder(shown), features)
            following = buffer._shown.successors(index)
            torch.testing.assert_close(encoder(following), encoder.step(at(following, (slice(None), -1)), memory)[0])
    assert ended > 12  # episodes, and most of them longer than a window
    now = torch.where(torch.from_numpy(buffer.windows.fresh[120, :, None]), 0.0, memory)
    torch.testing.assert_close(trainer.collector.memory["network"], now)


def draws_of(trainer, batch):
    """What an update leaves to chance, once for all that are compared."""
    algorithm = trainer.algorithm
    if hasattr(algorithm, "_gradient"):
        return algorithm._draw(len(batch.reward))
    return {} if batch.action.dim() == 1 else {"noise": torch.zeros_like(batch.action)}


def gradient_of(trainer, batch, drawn):
    """What policy and critics learn from a batch, before any step; DQN has one network, called critics here."""
    algorithm = trainer.algorithm
    if hasattr(algorithm, "_gradient"):
        return {"critics": algorithm._compute_gradient(batch.columns() | drawn)}
    return {
        "critics": algorithm._compute_critic_gradient(batch.columns() | {f"next_{k}": x for k, x in drawn.items()}),
        "policy": algorithm._compute_policy_gradient(tree_join(obs=batch.obs) | drawn),
    }


def shifted(batch, part, name, where):
    """The batch with 1 added to some places of one group."""
    obs = getattr(batch, part)
    rows = obs[name].clone()
    rows[where] += 1.0
    return replace(batch, **{part: {**obs, name: rows}})


@every_case
def test_who_reads_what(algorithm, env, kind):
    trainer = run(build(algorithm, env, kind), 30)
    batch = trainer.buffer.sample(64)
    drawn = draws_of(trainer, batch)
    before = gradient_of(trainer, batch, drawn)

    def moved(part, name, where):
        after = gradient_of(trainer, shifted(batch, part, name, where), drawn)
        return {who: not torch.equal(before[who]["gradient"], after[who]["gradient"]) for who in before}

    everyone = dict.fromkeys(before, True)
    of_critics = {who: who == "critics" for who in before}
    oldest = (batch.obs[VALID].all(1), 0)
    assert moved("obs", "policy", oldest) == everyone  # the steps before the newest count
    assert moved("obs", "policy", ~batch.obs[VALID]) == dict.fromkeys(before, False)  # those of others do not
    oldest = (batch.next_obs[VALID].all(1), 0)
    assert moved("next_obs", "policy", oldest) == of_critics  # the targets read windows
    assert moved("next_obs", "policy", ~batch.next_obs[VALID]) == dict.fromkeys(before, False)
    if kind == "transformer":
        assert MEMORY not in batch.obs
    else:
        remembered = moved("obs", MEMORY, slice(None))
        # what was stored is the policy's: of its kind there is none for a critic, and DQN's network is its policy
        assert remembered == ({"critics": True} if "policy" not in before else {"critics": False, "policy": True})
        assert moved("next_obs", MEMORY, slice(None)) == of_critics


@pytest.mark.parametrize(("algorithm", "env", "kind"), [case for case in CASES if case[2] != "transformer"])
def test_burning_in_leaves_losses_and_shortens_gradients(algorithm, env, kind):
    whole, burnt = (run(build(algorithm, env, kind, **{"algo.memory.burn_in": n}), 30) for n in (0, WINDOW - 1))
    batch = whole.buffer.sample(64)
    drawn = draws_of(whole, batch)
    one, other = gradient_of(whole, batch, drawn), gradient_of(burnt, batch, drawn)
    for who, results in one.items():
        for name, value in results.items():
            same = torch.equal(value, other[who][name])
            # the temperature's gradient does not pass through the memory
            assert same == (name not in ("gradient", "grad_norm")), (who, name)


@pytest.mark.parametrize(("kind", "size"), [("gru", 33), ("lstm", 65), ("transformer", 1)])
def test_the_size_is_said_before_it_is_allocated(kind, size):
    said: list[str] = []
    # 100,000 transitions of 4 + 1 + 1 float32, three flags and an int32
    buffer = build("sac", "InvertedPendulum-v5", kind, said.append, **{"algo.buffer_size": 100_000}).buffer
    ring = f"replay memory: 100,000 transitions, {(31 + size) / 10:.0f} MB, and up to 2 MB more"
    assert any(line.startswith(ring) for line in said)
    assert buffer.windows.fresh.nbytes + buffer.windows.memories.values.nbytes == size * buffer.rows * 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"600,000,000 transitions .* takes [\d,.]+ GB"):
        build("sac", "InvertedPendulum-v5", "gru", **{"algo.memory.size": 100_000, "algo.buffer_size": 600_000_000})


def test_without_memory_there_are_no_windows():
    buffer = run(build("sac", "InvertedPendulum-v5", "none"), 10).buffer
    assert buffer.windows is None
    assert set(buffer.sample(4).obs) == {"policy"}


def test_goals_in_hindsight_and_memory():
    goal = {"algo.goal_selection_strategy": "future", "algo.normalize_obs": True}
    trainer = run(build("sac", "habilis/PointReachGoal-v0", "gru", **goal, **{"algo.learning_rate": 1e-3}), 30)
    batch = trainer.buffer.sample(100)
    assert batch.obs["desired_goal"].shape[:2] == (100, WINDOW)
    assert all(isinstance(x, Tensor) and x.isfinite().all() for x in trainer.iterate().metrics.values())
