"""Priorities: the tree against plain arrays, and a prioritised buffer against a twin that keeps a dictionary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis.checkpoint import load_checkpoint, save_checkpoint
from habilis.core.errors import ConfigError
from habilis.core.random import generator_state, set_generator_state
from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.data.priorities import FAN, SMALLEST, Priorities, SumTree
from habilis.data.replay import ReplayBuffer

SPEC = EnvSpec("test", {"policy": ObsGroup((1,))}, DiscreteAction(2))
SIZES = st.sampled_from([1, 2, FAN - 1, FAN, FAN + 1, 3 * FAN + 5, FAN * FAN, FAN * FAN + 1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_tree_holds_what_was_set_and_its_sums_do_not_drift(data):
    size = data.draw(SIZES)
    tree, values = SumTree(size), np.zeros(size)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 30))):
        index = rng.integers(size, size=rng.integers(0, 40))  # some places stand there several times
        new = rng.exponential(size=len(index)) ** 5 * (rng.random(len(index)) < 0.8)
        tree.set(index, new)
        for place, value in zip(index, new, strict=True):
            values[place] = value
    assert np.array_equal(tree.values, values)
    assert tree.total == pytest.approx(math.fsum(values), rel=1e-14)
    afresh = SumTree(size)
    afresh.set(np.arange(size), 7.0)
    afresh.fill(values[: np.flatnonzero(values).max(initial=-1) + 1])
    assert all(np.array_equal(one, other) for one, other in zip(tree.levels, afresh.levels, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_find_is_the_first_place_whose_running_sum_exceeds_the_mass(data):
    size = data.draw(SIZES)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.integers(0, 5, size).astype(float)  # whole numbers, whose sums are exact
    values[rng.integers(size)] = 3.0
    tree = SumTree(size)
    tree.fill(values)
    running = values.cumsum()
    mass = np.concatenate([[0.0], running[running < tree.total], rng.random(50) * tree.total])
    assert np.array_equal(tree.find(mass), np.searchsorted(running, mass, side="right"))


@settings(max_examples=100, deadline=None)
@given(SIZES, st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=9), st.integers(0, 2**32))
def test_a_place_without_value_is_never_found(size, some, seed):
    rng = np.random.default_rng(seed)
    tree = SumTree(size)
    tree.set(rng.integers(size, size=len(some)), np.array(some))
    total = tree.total
    edges = np.array([0.0, np.nextafter(total, 0), total, np.nextafter(total, np.inf), 2 * total])
    mass = np.concatenate([edges, rng.random(100) * total])
    assert (tree.values[tree.find(mass)] > 0).all()


def make_priorities(values, alpha=0.6, beta=0.4):
    priorities = Priorities(alpha=alpha, beta=beta)
    priorities.reserve(len(values))
    priorities.update(np.arange(len(values)), np.asarray(values, dtype=np.float64))
    return priorities


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_draws_are_in_proportion_to_the_power_of_the_error(alpha):
    errors = np.array([0.5, -2.0, 0.0, 1.0, 8.0])
    priorities = make_priorities(errors, alpha)
    index = np.concatenate([priorities.draw(7, np.random.default_rng(seed))[0] for seed in range(6000)])
    expected = (np.abs(errors) + SMALLEST) ** alpha
    expected = expected / expected.sum() * len(index)
    counts = np.bincount(index, minlength=5)
    # stratified draws vary less than independent ones, of which 5 deviations are allowed
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()


def test_draws_are_stratified():
    priorities = make_priorities(np.ones(64))
    for seed in range(20):
        index, _ = priorities.draw(64, np.random.default_rng(seed))
        assert sorted(index) == list(range(64))


def test_importance_weights_are_the_papers():
    errors = np.arange(1.0, 11.0)
    priorities = make_priorities(errors, alpha=0.7, beta=0.5)
    index, weight = priorities.draw(6, np.random.default_rng(0))
    probability = (errors + SMALLEST) ** 0.7 / ((errors + SMALLEST) ** 0.7).sum()
    expected = (len(errors) * probability[index]) ** -0.5
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, expected / expected.max(), rtol=1e-6)
    priorities.anneal(1.0)
    index, weight = priorities.draw(6, np.random.default_rng(0))
    np.testing.assert_allclose(weight, probability[index].min() / probability[index], rtol=1e-6)


def test_beta_grows_evenly_to_one():
    priorities = Priorities(beta=0.4)
    for progress, beta in ((0.0, 0.4), (0.5, 0.7), (1.0, 1.0), (1.5, 1.0), (-1.0, 0.4)):
        priorities.anneal(progress)
        assert priorities.beta == pytest.approx(beta)


def test_new_transitions_are_as_likely_as_the_likeliest_has_ever_been():
    priorities = make_priorities([0.5, 3.0, 0.1], alpha=0.5)
    assert priorities.largest == 3.0 + SMALLEST
    priorities.update(np.array([1]), np.array([0.2]))
    priorities.enter(np.array([0, 2]), np.array([True, False]))
    assert priorities.tree.values.tolist() == [(3.0 + SMALLEST) ** 0.5, (0.2 + SMALLEST) ** 0.5, 0.0]
    fresh = Priorities()
    fresh.reserve(2)
    fresh.enter(np.array([1]), np.array([True]))
    assert fresh.tree.values.tolist() == [0.0, 1.0]


def test_the_last_of_equal_places_counts_and_what_is_not_finite_does_not():
    priorities = make_priorities([1.0, 1.0, 1.0], alpha=1.0)
    priorities.update(np.array([0, 1, 0, 2]), np.array([5.0, math.nan, -2.0, math.inf], dtype=np.float32))
    assert priorities.tree.values.tolist() == [2.0 + SMALLEST, 1.0 + SMALLEST, 1.0 + SMALLEST]
    assert priorities.largest == 5.0 + SMALLEST


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 1.1}, {"beta": -0.1}, {"beta": 1.1}])
def test_exponents_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Priorities(**wrong)


@pytest.mark.parametrize("size", [1, 1000, 1_000_001])
def test_bytes_of_a_tree(size):
    assert SumTree.bytes_needed(size) == sum(level.nbytes for level in SumTree(size).levels)


class Twin:
    """Keeps every transition's number and priority in a dictionary; what it observes is the number itself."""

    def __init__(self, buffer, held):
        self.buffer, self.held, self.n = buffer, held, buffer.num_envs
        self.added, self.largest = 0, 1.0
        self.priority, self.done, self.valid = {}, {}, {}

    def obs(self, shift=0.0):
        return {"policy": torch.arange(self.n).view(-1, 1) + self.added * self.n + shift}

    def start(self):
        for number in range((self.added - 1) * self.n, self.added * self.n):
            self.done[number] = True
        self.buffer.start(self.obs())

    def add(self, done, valid):
        numbers = range(self.added * self.n, (self.added + 1) * self.n)
        last = self.obs(0.5)
        for number, ended, ok in zip(numbers, done, valid, strict=True):
            self.done[number], self.valid[number] = ended, ok
            if ok:
                self.priority[number] = self.largest
        self.added += 1
        for number in [k for k in self.priority if k < (self.added - self.held) * self.n]:
            del self.priority[number]
        done, valid = torch.tensor(done), torch.tensor(valid)
        step = Step(self.obs(), last, torch.ones(self.n), done & False, done, valid)
        self.buffer.add(torch.zeros(self.n, dtype=torch.long), step)

    def update(self, index, errors):
        for number, error in zip(index.tolist(), errors.tolist(), strict=True):
            if math.isfinite(error) and number in self.priority:
                self.priority[number] = abs(error) + SMALLEST
                self.largest = max(self.largest, abs(error) + SMALLEST)
        self.buffer.update_priorities(index, errors)

    def check(self, alpha):
        values = np.zeros(self.buffer.rows * self.n)
        for number, priority in self.priority.items():
            values[number % len(values)] = priority**alpha
        np.testing.assert_allclose(self.buffer.priorities.tree.values, values, rtol=1e-12)
        assert self.buffer.priorities.largest == pytest.approx(self.largest, rel=1e-12)

    def check_sample(self, batch, n_steps, alpha, beta):
        values = np.array([self.priority[k] ** alpha for k in batch.index.tolist()])
        weight = values**-beta / (values**-beta).max()
        np.testing.assert_allclose(batch.weight.numpy(), weight, rtol=1e-5)
        assert torch.equal(batch.obs["policy"][:, 0], batch.index.float())
        for number, reward in zip(batch.index.tolist(), batch.reward.tolist(), strict=True):
            steps, k = 1, number
            while steps < n_steps and not self.done[k] and self.valid.get(k + self.n, False):
                steps, k = steps + 1, k + self.n
            assert reward == steps  # gamma is 1: the rewards of the window


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_prioritised_buffer_is_its_twin(data):
    num_envs, held, n_steps = data.draw(st.tuples(st.integers(1, 3), st.integers(3, 7), st.sampled_from([1, 3])))
    alpha, beta = data.draw(st.sampled_from([(0.6, 0.4), (1.0, 1.0), (0.0, 0.5)]))
    buffer = ReplayBuffer(
        SPEC,
        held * num_envs,
        num_envs,
        generator=np.random.default_rng(data.draw(st.integers(0, 99))),
        n_steps=n_steps,
        gamma=1.0,
        priorities=Priorities(alpha=alpha, beta=beta),
    )
    twin = Twin(buffer, held)
    twin.start()
    waiting = []
    flags = st.lists(st.sampled_from([False, False, False, True]), min_size=num_envs, max_size=num_envs)
    for event in data.draw(st.lists(st.sampled_from("aaaaasssuur"), min_size=5, max_size=50)):
        if event == "a":
            twin.add(data.draw(flags), [not bad for bad in data.draw(flags)])
        elif event == "s" and twin.priority:
            waiting.append(buffer.sample(data.draw(st.sampled_from([1, 8]))))
            twin.check_sample(waiting[-1], n_steps, alpha, beta)
        elif event == "s":
            with pytest.raises(ConfigError, match="holds no transition"):
                buffer.sample(2)
        elif event == "u" and waiting:  # perhaps long after, when the ring has turned
            batch = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            seen = data.draw(st.dictionaries(st.integers(), st.sampled_from([0.0, 0.3, -2.0, 9.0, math.nan])))
            by_number = {k: seen.get(i, 0.7 * i) for i, k in enumerate(dict.fromkeys(batch.index.tolist()))}
            twin.update(batch.index, torch.tensor([by_number[k] for k in batch.index.tolist()]).double())
        elif event == "r":
            twin.start()
        twin.check(alpha)


def test_every_transition_is_drawn_and_none_that_is_not_valid():
    buffer = ReplayBuffer(SPEC, 40, 2, generator=np.random.default_rng(1), priorities=Priorities(alpha=1.0))
    twin = Twin(buffer, 20)
    twin.start()
    rng = np.random.default_rng(0)
    for _ in range(67):
        twin.add((rng.random(2) < 0.2).tolist(), (rng.random(2) < 0.7).tolist())
    assert set(buffer.sample(4000).index.tolist()) == set(twin.priority)


@pytest.mark.parametrize("steps", [7, 31, 64])
def test_a_loaded_state_goes_on_bit_for_bit(steps, tmp_path):
    def make(seed):
        generator = np.random.default_rng(seed)
        return ReplayBuffer(SPEC, 60, 2, generator=generator, n_steps=2, priorities=Priorities())

    def feed(buffer, count, shift, scale=3.0):
        twin = Twin(buffer, 30)
        twin.added = shift
        if not len(buffer):
            twin.start()
        for k in range(count):
            twin.add([k % 5 == 0, k % 7 == 0], [True, k % 3 != 0])
            batch = buffer.sample(8)
            buffer.update_priorities(batch.index, batch.obs["policy"][:, 0].sin() * scale)
            buffer.anneal(k / 100)

    one, two = make(1), make(2)
    feed(one, steps, 0)
    feed(two, 45, 0, scale=9.0)  # what it held before must not matter
    save_checkpoint(tmp_path / "c", {"replay": one.state_dict()}, meta={"exact": True})
    set_generator_state(two._generator, generator_state(one._generator))
    two.load_state_dict(load_checkpoint(tmp_path / "c")[0]["replay"])
    assert two.priorities.beta == one.priorities.beta > 0.4
    for buffer in (one, two):
        feed(buffer, 50, steps)
    for level, other in zip(one.priorities.tree.levels, two.priorities.tree.levels, strict=True):
        assert np.array_equal(level, other)
    first, second = one.sample(50), two.sample(50)
    assert torch.equal(first.obs["policy"], second.obs["policy"])
    assert torch.equal(first.weight, second.weight)


def test_a_state_without_priorities_is_refused():
    state = ReplayBuffer(SPEC, 60, 2, generator=np.random.default_rng(0)).state_dict()
    buffer = ReplayBuffer(SPEC, 60, 2, generator=np.random.default_rng(0), priorities=Priorities())
    with pytest.raises(ConfigError, match="has no priorities"):
        buffer.load_state_dict(state)


def test_a_uniform_buffer_gives_neither_weights_nor_numbers():
    buffer = ReplayBuffer(SPEC, 10, 1, generator=np.random.default_rng(0))
    twin = Twin(buffer, 10)
    twin.start()
    twin.add([False], [True])
    buffer.anneal(0.5)
    batch = buffer.sample(3)
    assert batch.weight is None
    assert batch.index is None


def test_bytes_of_a_prioritised_buffer():
    buffer = ReplayBuffer(SPEC, 100_000, 1, generator=np.random.default_rng(0), priorities=Priorities())
    tree = sum(level.nbytes for level in buffer.priorities.tree.levels)
    needed = SumTree.bytes_needed(100_000)
    assert needed <= tree <= needed + 8 * 2 * FAN
