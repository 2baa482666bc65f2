"""The replay ring against a twin that keeps every transition in a Python list."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis.checkpoint.state_tree import flatten
from habilis.core.errors import ConfigError
from habilis.core.random import generator_state, set_generator_state
from habilis.core.specs import BoxAction, DiscreteAction, EnvSpec, MultiDiscreteAction, ObsGroup
from habilis.core.types import Step
from habilis.data.replay import ReplayBuffer

CHEETAH = EnvSpec("test", {"policy": ObsGroup((17,))}, BoxAction(-np.ones(6, np.float32), np.ones(6, np.float32)))
SPEC = EnvSpec("test", {"policy": ObsGroup((1,)), "camera": ObsGroup((1, 1, 1), "uint8")}, DiscreteAction(9))
GAMMA = 0.5


class Feed:
    """Makes steps whose every observation is another number, and remembers each transition in a list."""

    def __init__(self, num_envs, buffer=None):
        self.num_envs = num_envs
        self.count = 0
        self.history = [[] for _ in range(num_envs)]
        self.buffer = buffer
        self.obs = None

    def fresh(self):
        values = torch.arange(self.count, self.count + self.num_envs, dtype=torch.float32)
        self.count += self.num_envs
        return {"policy": values[:, None], "camera": (values % 251).to(torch.uint8).view(-1, 1, 1, 1)}

    def start(self):
        for past in self.history:
            if past and not past[-1]["done"]:
                past[-1]["done"] = True  # what it reached stays its successor
        self.obs = self.fresh()
        self.buffer.start(self.obs)

    def step(self, kinds, separate=False):
        """One step; a kind is (ending: "go", "end" or "cut"; valid)."""
        terminated = torch.tensor([ending == "end" for ending, _ in kinds])
        truncated = torch.tensor([ending == "cut" for ending, _ in kinds])
        valid = torch.tensor([ok for _, ok in kinds])
        done = terminated | truncated
        action = torch.arange(self.count, self.count + self.num_envs) % 9
        reward = torch.arange(self.count, self.count + self.num_envs) % 7 - 3.0
        next_obs = obs = self.fresh()
        if separate or done.any():
            reset = self.fresh()
            pick = lambda a, b: torch.where(done.view(-1, *[1] * (a.dim() - 1)), a, b)  # noqa: E731
            obs = {name: pick(reset[name], next_obs[name]) for name in next_obs}
        for n, past in enumerate(self.history):
            past.append(
                {
                    "obs": float(self.obs["policy"][n]),
                    "action": int(action[n]),
                    "reward": float(reward[n]),
                    "terminated": bool(terminated[n]),
                    "done": bool(done[n]),
                    "valid": bool(valid[n]),
                    "next_obs": float(next_obs["policy"][n]),
                }
            )
        self.buffer.add(action, Step(obs, next_obs, reward, terminated, truncated, valid))
        self.obs = obs

    def expected(self, held, n_steps):
        """What may be sampled: the transition by the number of its observation."""
        table = {}
        for past in self.history:
            window = past[-held:]
            for i, first in enumerate(window):
                if not first["valid"]:
                    continue
                total, discount = 0.0, 1.0
                for j in range(i, min(i + n_steps, len(window))):
                    total += discount * window[j]["reward"]
                    discount *= GAMMA
                    if window[j]["done"] or j + 1 == len(window) or not window[j + 1]["valid"]:
                        break
                last = window[j]
                table[first["obs"]] = (first["action"], total, last["terminated"], last["next_obs"], discount)
        return table


def rows_of(batch):
    """The sampled rows as a table by the number of the observation; the same row is always the same."""
    columns = (batch.obs["policy"][:, 0], batch.action, batch.reward, batch.terminated, batch.next_obs["policy"][:, 0])
    for obs, image, action, reward, terminated, next_obs, next_image, discount in zip(
        columns[0].tolist(),
        batch.obs["camera"].flatten().tolist(),
        *(c.tolist() for c in columns[1:]),
        batch.next_obs["camera"].flatten().tolist(),
        batch.discount.tolist(),
        strict=True,
    ):
        assert (image, next_image) == (obs % 251, next_obs % 251)  # every group comes from the same row
        yield obs, (action, reward, terminated, next_obs, discount)


KIND = st.tuples(st.sampled_from(["go", "go", "go", "end", "cut"]), st.sampled_from([True, True, True, False]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_sample_is_what_the_twin_holds(data):
    num_envs, held, n_steps = data.draw(st.tuples(st.integers(1, 3), st.integers(4, 9), st.sampled_from([1, 2, 3, 4])))
    buffer = ReplayBuffer(
        SPEC, held * num_envs, num_envs, generator=np.random.default_rng(0), n_steps=n_steps, gamma=GAMMA
    )
    feed = Feed(num_envs, buffer)
    feed.start()
    for _ in range(data.draw(st.integers(0, 2 * held))):
        feed.step([("go", True)] * num_envs)
    for event in data.draw(
        st.lists(
            st.one_of(st.just("start"), st.lists(KIND, min_size=num_envs, max_size=num_envs)), min_size=1, max_size=40
        )
    ):
        if event == "start":
            feed.start()
        else:
            feed.step(event, separate=data.draw(st.booleans()))
    expected = feed.expected(held, n_steps)
    assert len(buffer) == num_envs * min(held, len(feed.history[0]))
    if not expected:
        with pytest.raises(ConfigError, match=r"holds no transition|is empty"):
            buffer.sample(4)
        return
    seen = dict(rows_of(buffer.sample(40 * held * num_envs)))
    assert seen.keys() <= expected.keys()
    assert all(value == expected[obs] for obs, value in seen.items())
    assert len(seen) == len(expected)


def run(buffer, steps, seed=0, ends=0.2, invalid=0.0, feed=None):
    rng = np.random.default_rng(seed)
    feed = feed or Feed(buffer.num_envs, buffer)
    feed.start()
    for _ in range(steps):
        kinds = [
            (rng.choice(["go", "end", "cut"], p=[1 - ends, ends / 2, ends / 2]), rng.random() >= invalid)
            for _ in range(buffer.num_envs)
        ]
        feed.step(kinds)
    return feed


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize(("num_envs", "held"), [(1, 11), (3, 6)])
def test_after_many_turns_of_the_ring(num_envs, held, n_steps):
    buffer = ReplayBuffer(
        SPEC, held * num_envs, num_envs, generator=np.random.default_rng(0), n_steps=n_steps, gamma=GAMMA
    )
    feed = Feed(num_envs, buffer)
    for steps in (held + 1, 2 * held, 5 * held + 3):
        run(buffer, steps, seed=steps, ends=0.15, invalid=0.1, feed=feed)
        assert dict(rows_of(buffer.sample(60 * held * num_envs))) == feed.expected(held, n_steps)


def test_transitions_are_drawn_uniformly_from_the_valid_ones():
    buffer = ReplayBuffer(SPEC, 40, 2, generator=np.random.default_rng(1), gamma=GAMMA)
    feed = run(buffer, 97, invalid=0.3)
    expected = feed.expected(20, 1)
    draws = 100_000
    batch = buffer.sample(draws)
    _, counts = torch.unique(batch.obs["policy"], return_counts=True)
    assert len(counts) == len(expected)
    share = draws / len(expected)
    # the largest of some 28 normal deviations stays below 5
    assert float((counts - share).abs().max()) < 5 * share**0.5


def test_side_store_is_reused():
    buffer = ReplayBuffer(SPEC, 50, 1, generator=np.random.default_rng(0))
    run(buffer, 5000, ends=0.9)
    ring = buffer.observations
    stored = next(iter(ring._final.values())).values
    used = ring.final_slot[ring.final_slot >= 0].tolist()
    assert len(stored) == 64  # one block holds what 50 transitions can end
    assert len(set(used)) == len(used)
    assert sorted([*used, *ring._free]) == list(range(64))  # none lost, none twice


def test_side_store_grows_when_many_episodes_end():
    buffer = ReplayBuffer(SPEC, 300, 3, generator=np.random.default_rng(0), gamma=GAMMA)
    feed = run(buffer, 60, ends=1.0)  # not so many that all would be written anew after it had grown
    expected = feed.expected(60, 1)
    assert all(value == expected[obs] for obs, value in rows_of(buffer.sample(2000)))


def test_the_side_store_grows_no_further_than_the_ring():
    buffer = ReplayBuffer(SPEC, 150, 2, generator=np.random.default_rng(0), gamma=GAMMA)
    feed = run(buffer, 400, ends=1.0)
    ring = buffer.observations
    stored = next(iter(ring._final.values())).values
    assert ring.places == 152
    assert len(stored) == 64 + 64 + 64  # of which two would not do, and four be too many
    big = ReplayBuffer(SPEC, 600, 2, generator=np.random.default_rng(0), gamma=GAMMA)
    run(big, 400, ends=1.0)
    ring = big.observations
    stored = [column.values for column in ring._final.values()]
    assert [len(values) for values in stored] == [ring.places] * len(stored)
    assert sum(values.nbytes for values in stored) <= ring.places * ring.bytes_needed(SPEC)
    expected = feed.expected(400, 1)
    assert all(value == expected[obs] for obs, value in rows_of(buffer.sample(200)))


@pytest.mark.parametrize(("steps", "n_steps"), [(7, 1), (31, 3), (33, 1)])
def test_a_loaded_state_goes_on_bit_for_bit(steps, n_steps):
    def make(seed):
        return ReplayBuffer(SPEC, 60, 2, generator=np.random.default_rng(seed), n_steps=n_steps, gamma=GAMMA)

    one, two = make(1), make(2)
    feed = run(one, steps, invalid=0.1)
    run(two, 45, seed=9)  # what it held before must not matter
    state = copy.deepcopy(one.state_dict())
    kept = copy.deepcopy(state)
    set_generator_state(two._generator, generator_state(one._generator))
    two.load_state_dict(state)
    twin = Feed(2, two)
    twin.count, twin.obs = feed.count, feed.obs
    for _ in range(50):
        for each in (feed, twin):
            each.step([("cut", True), ("go", True)] if each.count % 5 == 0 else [("go", True), ("end", False)])
        assert list(rows_of(one.sample(8))) == list(rows_of(two.sample(8)))
    for (name, now), then in zip(flatten(state)[1].items(), flatten(kept)[1].values(), strict=True):
        assert torch.equal(now, then), name  # nothing is written into what was loaded


def test_a_state_of_another_size_is_refused():
    state = ReplayBuffer(SPEC, 60, 2, generator=np.random.default_rng(0)).state_dict()
    with pytest.raises(ConfigError, match="31 rows of 2 environments and this one 21 of 3"):
        ReplayBuffer(SPEC, 60, 3, generator=np.random.default_rng(0)).load_state_dict(state)


def test_a_million_transitions_of_halfcheetah():
    needed = ReplayBuffer.bytes_needed(CHEETAH, 1_000_000)
    # 17 + 6 + 1 float32, three flags and an int32
    assert needed == 103_000_000
    buffer = ReplayBuffer(CHEETAH, 1_000_000, 1, generator=np.random.default_rng(0))
    ring = buffer.observations
    columns = [*ring.columns.values(), *ring._final.values(), buffer.actions, buffer.rewards, buffer.terminated]
    stores = [*(column.values for column in columns), buffer.done, buffer.valid, ring.final_slot, ring.first]
    taken = sum(store.nbytes for store in stores)
    assert needed <= taken <= 150e6
    assert taken - needed < 1000


def test_the_state_holds_no_empty_room():
    buffer = ReplayBuffer(CHEETAH, 1_000_000, 1, generator=np.random.default_rng(0))
    zero = {"policy": torch.zeros(1, 17)}
    buffer.start(zero)
    no = torch.zeros(1, dtype=torch.bool)
    buffer.add(torch.zeros(1, 6), Step(zero, zero, torch.zeros(1), no, no, ~no))
    state = buffer.state_dict()
    assert len(state["rewards"]) == len(state["obs"]["policy"]) == 2


def test_kinds_of_actions():
    for action, stored in [
        (MultiDiscreteAction((3, 2)), torch.tensor([[2, 1]])),
        (BoxAction(-np.ones(2, np.float32), np.ones(2, np.float32)), torch.tensor([[0.5, -2.0]])),
    ]:
        spec = EnvSpec("test", {"policy": ObsGroup((1,))}, action)
        buffer = ReplayBuffer(spec, 10, 1, generator=np.random.default_rng(0))
        obs = {"policy": torch.zeros(1, 1)}
        buffer.start(obs)
        no = torch.zeros(1, dtype=torch.bool)
        buffer.add(stored, Step(obs, obs, torch.zeros(1), no, no, ~no))
        assert torch.equal(buffer.sample(3).action, stored.expand(3, 2))


def test_too_small_for_its_targets():
    with pytest.raises(ConfigError, match=r"holds 2 of each of 2 environments.*raise buffer_size"):
        ReplayBuffer(SPEC, 4, 2, generator=np.random.default_rng(0), n_steps=3)
