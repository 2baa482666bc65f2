"""The tabular methods: every target by hand, the order of updates, what a bundle holds, and what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from habilis.algorithms.tabular import LARGEST_ARRAY, Tabular, TabularConfig, make_policy, make_states
from habilis.core.batches import TransitionBatch
from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.nn.states import DictionaryStates

ARRAY = EnvSpec("array", {"policy": ObsGroup((4,), one_hot=(4,))}, DiscreteAction(3))
PLANE = EnvSpec("plane", {"policy": ObsGroup((2,))}, DiscreteAction(3))
KINDS = {
    "q_learning": {},
    "double": {"double_q": True},
    "sarsa": {"target": "sampled"},
    "expected": {"target": "expected", "double_q": True, "learning_rate_power": 0.8},
    "dictionary": {"rounding": (0.5,)},
    "double dictionary": {"bins": (2000, 7), "bins_low": (-9.0,), "bins_high": (9.0,), "double_q": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def learner(spec=ARRAY, num_envs=4, seed=0, **config):
    return Tabular(spec, TabularConfig(**config), num_envs=num_envs, streams=RandomStreams(seed))


def states(*numbers):
    return {"policy": torch.eye(4)[list(numbers)]}


def batch(obs, action, reward, next_obs, terminated=None, gamma=0.9, next_action=None):
    rows = len(action)
    return TransitionBatch(
        states(*obs),
        torch.tensor(action),
        torch.tensor(reward, dtype=torch.float32),
        torch.tensor(terminated or [False] * rows),
        states(*next_obs),
        torch.full((rows,), gamma, dtype=torch.float64),
        next_action=None if next_action is None else torch.tensor(next_action),
    )


def fill(algorithm, *tables):
    algorithm.policy.values.copy_(torch.tensor(tables))


TABLE = [[0.0, 0.0, 0.0], [1.0, 5.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({"target": "greedy"}, 5.0),
        ({"target": "sampled"}, 3.0),
        ({"target": "expected"}, 0.7 * 5.0 + 0.3 * 3.0),
    ],
)
def test_one_update_by_hand(config, value):
    algorithm = learner(learning_rate=0.5, **config)
    algorithm.policy.exploration_level.fill_(0.3)
    fill(algorithm, TABLE)
    metrics = algorithm.update(batch([0], [2], [1.0], [1], next_action=[2]))
    target = 1.0 + 0.9 * value
    changed = torch.tensor([TABLE])
    changed[0, 0, 2] = 0.5 * target
    assert torch.allclose(algorithm.policy.values, changed.double())
    assert float(metrics["td_error"]) == pytest.approx(target)
    assert algorithm.policy.visits[0, 0].tolist() == [0, 0, 1]
    assert algorithm.gradient_steps == 1


def test_td_errors_are_each_tables_own_and_teach_nothing():
    algorithm = learner(double_q=True)
    other = [[0.0, 1.0, 0.0], [4.0, 2.0, 8.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    fill(algorithm, TABLE, other)
    before = algorithm.policy.values.clone()
    errors = algorithm.td_errors(batch([0, 1], [1, 0], [1.0, 2.0], [1, 3], terminated=[False, True]))
    # the first table chooses action 1, the second 2; each is judged by the other, and an end is worth nothing more
    expected = [[1.0 + 0.9 * 2.0, 2.0 - 1.0], [1.0 + 0.9 * 3.0 - 1.0, 2.0 - 4.0]]
    assert torch.allclose(errors, torch.tensor(expected).double())
    assert torch.equal(algorithm.policy.values, before)
    assert not algorithm.policy.visits.any()


def test_a_state_is_worth_its_best_action_by_the_mean_of_the_tables():
    algorithm = learner(double_q=True)
    fill(algorithm, TABLE, [[0.0, 1.0, 0.0], [4.0, 2.0, 8.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert algorithm.value(states(1, 0)).tolist() == [5.5, 0.5]


def test_what_was_planned_is_done_in_the_environments_own_numbers():
    algorithm = learner(dataclasses.replace(ARRAY, action=DiscreteAction(3, start=5)), num_envs=2, target="sampled")
    algorithm.state.planned.copy_(torch.tensor([2, 0]))
    step = algorithm.act(states(0, 1), torch.Generator().manual_seed(0))
    assert step.action.tolist() == [2, 0]
    assert step.env_action.tolist() == [7, 5]


def test_the_end_is_worth_nothing_and_a_truncation_what_follows():
    algorithm = learner(learning_rate=1.0)
    fill(algorithm, TABLE)
    algorithm.update(batch([0, 2], [0, 0], [1.0, 1.0], [1, 1], terminated=[True, False]))
    assert algorithm.policy.values[0, [0, 2], 0].tolist() == pytest.approx([1.0, 1.0 + 0.9 * 5.0])


def test_each_transition_sees_the_table_as_the_one_before_has_left_it():
    """Twice the same entry, then one that bootstraps from it."""
    algorithm = learner(learning_rate=0.5)
    algorithm.update(batch([1, 1, 0], [0, 0, 0], [8.0, 8.0, 0.0], [2, 2, 1], terminated=[True, True, False]))
    assert algorithm.policy.values[0, 1, 0].item() == 6.0  # 0 -> 4 -> 6
    assert algorithm.policy.values[0, 0, 0].item() == pytest.approx(0.5 * 0.9 * 6.0)


def test_the_step_size_falls_with_the_updates_of_an_entry():
    averaging = learner(learning_rate=1.0, learning_rate_power=1.0)
    averaging.update(batch([0] * 4, [0] * 4, [1.0, 5.0, 9.0, 1.0], [1] * 4, terminated=[True] * 4))
    assert averaging.policy.values[0, 0, 0].item() == pytest.approx(4.0)  # their mean
    slower = learner(learning_rate=0.5, learning_rate_power=0.8)
    slower.update(batch([0, 0], [0, 0], [1.0, 1.0], [1, 1], terminated=[True, True]))
    assert slower.policy.values[0, 0, 0].item() == pytest.approx(0.5 + 0.5 / 2**0.8 * 0.5)


def test_double_q_updates_one_table_with_the_value_of_the_other():
    first, second = TABLE, [[0.0] * 3, [7.0, -2.0, 9.0], [0.0] * 3, [0.0] * 3]
    seen = Counter()
    for seed in range(40):
        algorithm = learner(seed=seed, double_q=True, learning_rate=1.0)
        fill(algorithm, first, second)
        algorithm.update(batch([0], [0], [0.0], [1]))
        seen[tuple(round(v, 6) for v in algorithm.policy.values[:, 0, 0].tolist())] += 1
    # the first table chooses action 1, which the second says is worth -2; the second chooses 2, worth 3
    assert set(seen) == {(-1.8, 0.0), (0.0, 2.7)}
    assert min(seen.values()) > 8


def test_with_two_tables_equal_choices_count_alike():
    algorithm = learner(double_q=True)
    fill(
        algorithm,
        [[0.0] * 3, [4.0, 2.0, 4.0], [0.0] * 3, [0.0] * 3],
        [[0.0] * 3, [-5.0, 9.0, 1.0], [0.0] * 3, [0.0] * 3],
    )
    # the first table cannot tell actions 0 and 2 apart, which the second says are worth -5 and 1
    assert algorithm.td_errors(batch([0], [0], [0.0], [1])).tolist() == [[pytest.approx(-1.8)], [pytest.approx(1.8)]]


def test_the_expectation_is_over_what_two_tables_do_together():
    algorithm = learner(double_q=True, target="expected")
    algorithm.policy.exploration_level.fill_(0.3)
    fill(
        algorithm,
        [[0.0] * 3, [1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3],
        [[0.0] * 3, [0.0, 3.0, 0.0], [0.0] * 3, [0.0] * 3],
    )
    # together they are greedy for action 1, worth 3 to the second table and 0 to the first; the means are 1 and 1/3
    errors = algorithm.td_errors(batch([0], [0], [0.0], [1]))
    assert errors.flatten().tolist() == pytest.approx([0.9 * (0.7 * 3.0 + 0.3 * 1.0), 0.9 * 0.3 / 3])


def test_two_tables_act_by_their_mean():
    algorithm = learner(double_q=True)
    fill(algorithm, [[0.0, 4.0, 3.0]] * 4, [[0.0, 1.0, 3.0]] * 4)
    assert algorithm.policy.scores(states(0)).tolist() == [[0.0, 2.5, 3.0]]
    assert algorithm.policy.predict(np.eye(4, dtype=np.float32)[1])[0] == 2


def test_exploration_and_ties():
    algorithm, g = learner(), torch.Generator().manual_seed(0)
    fill(algorithm, [[2.0, 2.0, 0.0]] * 4)
    obs = states(*[0] * 30_000)

    def shares(level):
        algorithm.policy.exploration_level.fill_(level)
        return (torch.bincount(algorithm.policy.act(obs, generator=g).action, minlength=3) / 30_000).tolist()

    assert shares(0.0) == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
    assert shares(0.3) == pytest.approx([0.45, 0.45, 0.1], abs=0.02)
    assert shares(1.0) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert algorithm.policy.act(obs, deterministic=True).action.unique().tolist() == [0]


def test_exploration_decays_with_each_episode():
    algorithm = learner(exploration_initial_eps=0.8, exploration_decay=0.5, exploration_final_eps=0.15)
    levels = []
    for episodes in range(4):
        algorithm.set_progress(0.0, episodes)
        levels.append(float(algorithm.policy.exploration_level))
    assert levels == pytest.approx([0.8, 0.4, 0.2, 0.15])


def test_sarsa_does_what_its_target_assumed():
    algorithm, g = learner(target="sampled", num_envs=500), torch.Generator().manual_seed(0)
    numbers, never = torch.arange(500), torch.zeros(500, dtype=torch.bool)
    obs = states(*(numbers % 4).tolist())
    done = numbers % 5 == 0
    step = Step(obs, obs, torch.zeros(500), done, never, ~never)
    planned = algorithm.plan(step, g)
    action = algorithm.act(obs, g).action
    assert torch.equal(action[~done], planned[~done])
    assert (action[done] != planned[done]).any()  # a new episode: chosen for its own first observation
    algorithm.drop_plans()
    assert (algorithm.act(obs, g).action[~done] != planned[~done]).any()
    assert learner().plan(step, g) is None


def plane_batch(seed, rows=64):
    g = torch.Generator().manual_seed(seed)

    def obs():
        return {"policy": torch.randn(rows, 2, generator=g) * 3}

    ended = torch.rand(rows, generator=g) < 0.2
    action, next_action = torch.randint(3, (2, rows), generator=g)
    reward = torch.randn(rows, generator=g)
    return TransitionBatch(obs(), action, reward, ended, obs(), torch.full((rows,), 0.9), next_action=next_action)


def learn(algorithm, kind, first, last):
    for seed in range(first, last):
        data = plane_batch(seed)
        if "dictionary" not in kind:
            codes = [{"policy": torch.eye(4)[o["policy"].argmax(1)]} for o in (data.obs, data.next_obs)]
            data = dataclasses.replace(data, obs=codes[0], next_obs=codes[1])
        ended, never = data.terminated, torch.zeros_like(data.terminated)
        step = Step(data.next_obs, data.next_obs, data.reward, ended, never, ~never)
        algorithm.plan(step, torch.Generator().manual_seed(seed))
        algorithm.set_progress(0.0, seed)
        metrics = algorithm.update(data)
    return metrics


def make(kind, seed=0):
    return learner(PLANE if "dictionary" in kind else ARRAY, 64, seed, **KINDS[kind])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(same(a[k], b[k]) for k in a) if isinstance(a, dict) else a == b


@every_kind
def test_a_reload_goes_on_bit_for_bit(kind):
    straight, resumed = make(kind), make(kind)
    learn(straight, kind, 0, 30)
    learn(resumed, kind, 0, 20)
    state = resumed.state_dict()
    learn(resumed, kind, 20, 22)  # what was saved does not move
    fresh = make(kind, seed=9)
    learn(fresh, kind, 3, 4)
    fresh.load_state_dict(state)
    assert same(fresh.state_dict(), state)
    learn(fresh, kind, 20, 30)
    assert same(fresh.state_dict(), straight.state_dict())
    alone = make_policy(straight.policy.spec, straight.config, torch.Generator())
    kept = straight.state_dict()["policy"]
    alone.load_state_dict(kept)
    obs = plane_batch(77).obs if "dictionary" in kind else states(0, 1, 2, 3)
    assert torch.equal(alone(obs)[0], straight.policy.act(obs, deterministic=True).action)
    alone.values.zero_()
    assert kept["values"].any()


@every_kind
def test_every_part_of_the_bundle_moves_and_nothing_lies_outside(kind):
    algorithm = make(kind)
    before = algorithm.state_dict()
    metrics = learn(algorithm, kind, 0, 3)
    after = algorithm.state_dict()
    still = {name for name in after if same(before[name], after[name])}
    uses = {"coin": algorithm.config.double_q, "planned": algorithm.config.target == "sampled"}
    assert still == {name for name, used in uses.items() if not used}
    assert set(vars(algorithm)) == {"config", "state"}
    assert all(v.dim() == 0 and v.isfinite() and not v.requires_grad for v in metrics.values())
    assert ("states" in metrics) == ("dictionary" in kind)


def test_a_dictionary_grows_as_states_are_met():
    algorithm = learner(PLANE, 64, 0, **KINDS["double dictionary"] | {"initial_value": 2.0})
    learn(algorithm, "double dictionary", 0, 60)
    policy = algorithm.policy
    assert isinstance(policy.encoder, DictionaryStates)
    assert policy.encoder.count > 1024
    assert policy.values.shape[1] == policy.visits.shape[1] == policy.encoder.capacity
    assert policy.visits.sum() == 60 * 64
    assert policy.visits[:, 0].sum() == 0  # number 0 stands for what was never met, and is never learnt
    assert policy.values[policy.visits == 0].unique().tolist() == [2.0]


def test_a_state_that_was_never_met_has_the_initial_value():
    algorithm = learner(PLANE, rounding=(0.5,), initial_value=2.0)
    learn(algorithm, "dictionary", 0, 2)
    assert algorithm.policy.scores({"policy": torch.tensor([[1e6, 0.0]])}).tolist() == [[2.0, 2.0, 2.0]]


def test_an_empty_batch_changes_nothing():
    for kind in ("q_learning", "dictionary"):
        algorithm = make(kind)
        learn(algorithm, kind, 0, 2)
        before = algorithm.state_dict()
        data = plane_batch(5, rows=0)
        if kind == "q_learning":
            data = dataclasses.replace(data, obs=states(), next_obs=states())
        assert float(algorithm.update(data)["td_error"]) == 0.0
        assert same(before, algorithm.state_dict())


def test_optimism():
    algorithm = learner(initial_value=3.0)
    assert algorithm.policy.values.unique().tolist() == [3.0]
    assert algorithm.policy.initial_value == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": 1.5}, "learning_rate"),
        ({"gamma": -0.1}, "gamma"),
        ({"exploration_decay": 1.1}, "exploration_decay"),
        ({"exploration_final_eps": -0.1}, "exploration_final_eps"),
        ({"learning_rate_power": -1.0}, "learning_rate_power"),
        ({"train_freq": 0}, "train_freq"),
        ({"bins": (4, 0)}, "bins"),
        ({"rounding": (0.0,)}, "rounding"),
        ({"bins": (4,)}, "belong together"),
        ({"bins_low": (0.0,), "bins_high": (1.0,)}, "belong together"),
        ({"bins": (4,), "bins_low": (0.0,), "bins_high": (1.0,), "rounding": (1.0,)}, "exclude each other"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        TabularConfig(**changes)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (PLANE, {}, "--algo.rounding"),
        (PLANE, {"rounding": (1.0, 1.0, 1.0)}, "one for each"),
        (PLANE, {"bins": (4,), "bins_low": (0.0,), "bins_high": (0.0,)}, "below bins_high"),
        (EnvSpec("i", {"policy": ObsGroup((36, 36, 3), "uint8")}, DiscreteAction(2)), {}, "use dqn"),
        (EnvSpec("b", PLANE.obs, BoxAction(np.zeros(1), np.ones(1))), {"rounding": (1.0,)}, "use sac"),
        (
            EnvSpec("h", {"policy": ObsGroup((80,), one_hot=(2,) * 40)}, DiscreteAction(2)),
            {},
            f"{2**40:,} states, too many",
        ),
    ],
)
def test_environments_that_no_table_holds(spec, changes, message):
    assert LARGEST_ARRAY < 2**40
    with pytest.raises(ConfigError, match=message):
        make_policy(spec, TabularConfig(**changes), torch.Generator())


def test_observations_are_cut_and_rounded_as_it_is_set():
    obs = {"policy": torch.tensor([[-1.0, 0.0], [-0.51, 4.9], [-0.5, 5.0], [0.99, 9.9], [-7.0, 99.0]])}
    cut = make_states(PLANE, TabularConfig(bins=(4, 2), bins_low=(-1.0, 0.0), bins_high=(1.0, 10.0)))
    assert cut.cells(obs).tolist() == [[0, 0], [0, 0], [1, 1], [3, 1], [0, 1]]
    rounded = make_states(PLANE, TabularConfig(rounding=(0.5,)))
    assert rounded.cells(obs).tolist() == [[-2, 0], [-1, 10], [-1, 10], [2, 20], [-14, 198]]
