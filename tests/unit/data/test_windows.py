"""Windows of history against a twin that keeps whole episodes in Python lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import habilis.tasks  # noqa: F401  (registers the falling balls)
from habilis.core.batches import MEMORY, VALID
from habilis.core.errors import ConfigError
from habilis.core.random import generator_state, set_generator_state
from habilis.core.specs import ACHIEVED, DESIRED, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.data.hindsight import Hindsight
from habilis.data.priorities import Priorities
from habilis.data.replay import ReplayBuffer
from habilis.data.windows import Windows
from habilis.envs.frame_stack import stack_frames
from habilis.envs.make import make_vec_env

SPEC = EnvSpec("test", {"policy": ObsGroup((1,)), "camera": ObsGroup((1, 1, 1), "uint8")}, DiscreteAction(9))
GAMMA = 0.5


def make(num_envs=1, held=8, window=3, memory_dim=2, n_steps=1, seed=0, **parts):
    return ReplayBuffer(
        SPEC,
        held * num_envs,
        num_envs,
        generator=np.random.default_rng(seed),
        n_steps=n_steps,
        gamma=GAMMA,
        windows=Windows(window, memory_dim),
        **parts,
    )


class Feed:
    """Makes steps whose every observation is another number, and keeps whole episodes.

    An episode is the list of its observations, and of what was remembered before each of them: a number that tells how
    often the policy has acted since it was fresh, and the observation it acted on last.
    """

    def __init__(self, buffer, seed=0):
        self.buffer = buffer
        self.copies = []  # of the buffer, which get the same steps
        self.num_envs = buffer.num_envs
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.transitions = [[] for _ in range(self.num_envs)]  # (episode, position) of each step, for every environment
        self.episodes = [None] * self.num_envs
        self.obs = None

    def number(self):
        self.count += 1
        return self.count

    def begin(self, env):
        self.episodes[env] = {"obs": [self.number()], "memory": [(0.0, 0.0)]}

    def show(self, numbers):
        values = torch.tensor(numbers, dtype=torch.float32)
        return {"policy": values[:, None], "camera": (values % 251).to(torch.uint8).view(-1, 1, 1, 1)}

    def start(self):
        for env in range(self.num_envs):
            if self.transitions[env]:
                self.transitions[env][-1]["done"] = True
            self.begin(env)
        self.obs = self.show([episode["obs"][-1] for episode in self.episodes])
        self.buffer.start(self.obs)

    def step(self, kinds):
        """One step; a kind is (ending: "go", "end" or "cut"; valid)."""
        memory = torch.tensor([episode["memory"][-1] for episode in self.episodes])
        reached, following = [], []
        for env, (ending, valid) in enumerate(kinds):
            episode, number = self.episodes[env], self.number()
            acted, shown = episode["memory"][-1][0], episode["obs"][-1]
            episode["obs"].append(number)
            episode["memory"].append((acted + 1, float(shown)))
            place = len(episode["obs"]) - 2
            done = ending != "go"
            self.transitions[env].append({"episode": episode, "place": place, "done": done, "valid": valid})
            reached.append(number)
            if done:
                self.begin(env)
            elif not valid:
                # what follows such a step is another beginning, shown as the step's own successor
                self.episodes[env] = {"obs": [number], "memory": [(0.0, 0.0)]}
            following.append(self.episodes[env]["obs"][-1])
        next_obs, obs = self.show(reached), self.show(following)
        terminated = torch.tensor([ending == "end" for ending, _ in kinds])
        truncated = torch.tensor([ending == "cut" for ending, _ in kinds])
        valid = torch.tensor([valid for _, valid in kinds])
        next_obs = obs if reached == following else next_obs
        reward = torch.zeros(self.num_envs)
        action = torch.zeros(self.num_envs, dtype=torch.long)
        for buffer in (self.buffer, *self.copies):
            buffer.add(action, Step(obs, next_obs, reward, terminated, truncated, valid), memory)
        self.obs = obs

    def run(self, steps, ends=0.2, invalid=0.1):
        self.start()
        for _ in range(steps):
            chance = [ends / 2, ends / 2, 1 - ends]
            self.step(
                [(str(self.rng.choice(["end", "cut", "go"], p=chance)), self.rng.random() >= invalid)] * self.num_envs
            )

    def expected(self):
        """What may be sampled by the number of its newest observation: both windows, as `window_at` gives them."""
        table = {}
        for steps in self.transitions:
            steps = steps[-self.buffer.held :]
            for i, first in enumerate(steps):
                if not first["valid"]:
                    continue
                last = i
                while not (
                    last - i + 1 == self.buffer.n_steps
                    or steps[last]["done"]
                    or last + 1 == len(steps)
                    or not steps[last + 1]["valid"]
                ):
                    last += 1
                episode, place = first["episode"], first["place"]
                table[episode["obs"][place]] = (
                    self.window_at(episode, place),
                    self.window_at(steps[last]["episode"], steps[last]["place"] + 1),
                )
        return table

    def window_at(self, episode, place):
        """The observations of the last W steps up to a place, and the memory before them where that many are there."""
        length = self.buffer.windows.length
        shown = episode["obs"][max(0, place + 1 - length) : place + 1]
        memory = episode["memory"][place + 1 - length] if len(shown) == length else (0.0, 0.0)
        return shown, memory


def rows_of(batch):
    """Both windows of every row, as the twin has them, by the number of the newest observation."""
    table = {}
    for row in range(len(batch.reward)):
        found = []
        for obs in (batch.obs, batch.next_obs):
            shown, image = obs["policy"][row, :, 0], obs["camera"][row].flatten()
            valid = obs[VALID][row]
            assert torch.equal((shown % 251).to(torch.uint8), image)  # every group comes from the same places
            assert valid[-1]
            assert valid.diff().sum() <= 1  # what is valid is one piece at the end
            memory = tuple(obs[MEMORY][row].tolist()) if MEMORY in obs else (0.0, 0.0)
            found.append((shown[valid].int().tolist(), memory))
        table.setdefault(found[0][0][-1], tuple(found))
        assert table[found[0][0][-1]] == tuple(found)
    return table


KIND = st.tuples(st.sampled_from(["go", "go", "go", "end", "cut"]), st.sampled_from([True, True, True, False]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_window_is_what_the_twin_holds(data):
    num_envs, held, n_steps, window = data.draw(
        st.tuples(st.integers(1, 3), st.integers(4, 9), st.sampled_from([1, 2, 3, 4]), st.integers(2, 6))
    )
    buffer = make(num_envs, held, window, n_steps=n_steps)
    feed = Feed(buffer)
    feed.start()
    for _ in range(data.draw(st.integers(0, 3 * held))):
        feed.step([("go", True)] * num_envs)
    for event in data.draw(
        st.lists(
            st.one_of(st.just("start"), st.lists(KIND, min_size=num_envs, max_size=num_envs)), min_size=1, max_size=40
        )
    ):
        if event == "start":
            feed.start()
        else:
            feed.step(event)
    expected = feed.expected()
    if not expected:
        return
    seen = rows_of(buffer.sample(20 * held * num_envs))
    assert seen.keys() <= expected.keys()
    assert all(value == expected[obs] for obs, value in seen.items())


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_after_many_turns_of_the_ring(n_steps, prioritized):
    buffer = make(3, 7, 4, n_steps=n_steps, priorities=Priorities() if prioritized else None)
    feed = Feed(buffer)
    for steps in (8, 14, 38, 101):
        feed.run(steps)
        assert rows_of(buffer.sample(1500)) == feed.expected()


def test_windows_longer_than_what_is_held():
    buffer = make(2, 3, 9)
    feed = Feed(buffer)
    feed.run(40, ends=0.05)
    assert rows_of(buffer.sample(400)) == feed.expected()
    assert max(len(shown) for (shown, _), _ in feed.expected().values()) == 9


def test_batches_drawn_together_are_whole_windows():
    buffer = make(1, 50, 4)
    feed = Feed(buffer)
    feed.run(60)
    expected = feed.expected()
    batches = list(buffer.batches(16, 20))
    assert [len(batch.reward) for batch in batches] == [16] * 20
    for batch in batches:
        assert batch.obs["policy"].shape == batch.next_obs["policy"].shape == (16, 4, 1)
        assert rows_of(batch).items() <= expected.items()


def test_without_memory_to_store_there_is_the_window_alone():
    buffer = make(2, 10, 4, memory_dim=0)
    feed = Feed(buffer)
    feed.run(30)
    batch = buffer.sample(200)
    assert set(batch.obs) == {"policy", "camera", VALID}
    assert {obs: row[0][0] for obs, row in rows_of(batch).items()} == {
        obs: row[0][0] for obs, row in feed.expected().items()
    }
    assert buffer.windows.memories.values.numel() == 0


def add_alike(buffer, memories, ends):
    """Start, and add one step after another, of which nothing differs but what was remembered."""
    no = torch.zeros(1, dtype=torch.bool)
    obs = {"policy": torch.zeros(1, 1), "camera": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)}
    buffer.start(obs)
    for memory in memories:
        buffer.add(torch.zeros(1, dtype=torch.long), Step(obs, obs, torch.zeros(1), no, no | ends, ~no), memory)


INFINITE = torch.full((1, 2), torch.inf)


def test_what_is_not_remembered_is_zero_where_the_ring_has_turned():
    buffer = make(1, 4, 2)
    add_alike(buffer, [*[INFINITE] * 9, *[None] * 9], ends=False)
    batch = buffer.sample(50)
    assert (batch.obs[MEMORY] == 0).all()
    assert (batch.next_obs[MEMORY] == 0).all()


def test_what_was_remembered_before_an_episode_is_zero_whatever_lies_there():
    buffer = make(1, 20, 3)
    add_alike(buffer, [INFINITE] * 10, ends=True)
    assert (buffer.sample(50).obs[MEMORY] == 0).all()


@pytest.mark.parametrize(("steps", "n_steps"), [(5, 1), (24, 1), (61, 1), (5, 4), (8, 4)])
def test_a_loaded_state_goes_on_bit_for_bit(steps, n_steps):
    one, two = make(2, 10, 4, seed=1, n_steps=n_steps), make(2, 10, 4, seed=2, n_steps=n_steps)
    feed = Feed(one)
    feed.run(steps)
    Feed(two).run(45)  # what it held before must not matter
    set_generator_state(two._generator, generator_state(one._generator))
    two.load_state_dict(one.state_dict())
    feed.copies.append(two)
    for _ in range(30):
        feed.step([("cut", True), ("go", True)] if feed.count % 5 == 0 else [("go", True), ("end", False)])
        first, second = one.sample(8), two.sample(8)
        assert rows_of(first) == rows_of(second)
        assert torch.equal(first.discount, second.discount)


def test_a_state_without_windows_is_refused():
    plain = ReplayBuffer(SPEC, 8, 1, generator=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="has no memory: resume without"):
        ReplayBuffer(SPEC, 7, 1, generator=np.random.default_rng(0), windows=Windows(2, 3)).load_state_dict(
            plain.state_dict()
        )


def test_a_window_of_one_step_is_refused():
    with pytest.raises(ConfigError, match="at least 2 steps, got 1"):
        Windows(1, 4)


def test_bytes():
    buffer = make(1, 100, 4, memory_dim=5)
    per_row = (buffer.windows.fresh.nbytes + buffer.windows.memories.values.nbytes) / buffer.rows
    assert buffer.windows.bytes_needed(100) == 100 * per_row == 100 * 21


def test_stacked_frames_in_every_step_of_a_window():
    env = stack_frames(make_vec_env("habilis/Catch-v0", 2, seed=0), 3)
    windows = Windows(4, 0)
    buffer = ReplayBuffer(env.spec, 60, 2, generator=np.random.default_rng(0), windows=windows)
    obs = env.reset(3)
    buffer.start(obs)
    past, steps = [[obs["policy"][n]] for n in range(2)], []
    rng = torch.Generator().manual_seed(0)
    for _ in range(90):
        action = torch.randint(3, (2,), generator=rng)
        step = env.step(action)
        buffer.add(action, step)
        for n in range(2):
            shown = [*past[n], step.next_obs["policy"][n]]
            steps.append((shown[-5:-1], shown[-4:]))
            past[n] = [step.obs["policy"][n]] if step.done[n] else shown
    expected = {(len(now), now[-1].numpy().tobytes(), then[-1].numpy().tobytes()): (now, then) for now, then in steps}
    batch = buffer.sample(200)
    for row in range(200):
        now, then = (obs["policy"][row][obs[VALID][row]] for obs in (batch.obs, batch.next_obs))
        key = (len(now), now[-1].numpy().tobytes(), then[-1].numpy().tobytes())
        assert all(torch.equal(torch.stack(kept), seen) for kept, seen in zip(expected[key], (now, then), strict=True))


class TestGoals:
    """Windows of which some want in hindsight what their episode reached."""

    one = ObsGroup((1,))
    spec = EnvSpec("goals", {"policy": one, ACHIEVED: one, DESIRED: one}, DiscreteAction(3))

    def compute_reward(self, achieved, desired):
        return (achieved == desired).float()[:, 0]

    def feed(self, memory_dim):
        self.compute_terminated = None
        hindsight = Hindsight(self, strategy="future", n_sampled_goal=1, generator=np.random.default_rng(1))
        buffer = ReplayBuffer(
            self.spec, 40, 1, generator=np.random.default_rng(0), hindsight=hindsight, windows=Windows(4, memory_dim)
        )
        number, never = 0, torch.zeros(1, dtype=torch.bool)

        def show(goal):
            return {
                "policy": torch.full((1, 1), float(number)),
                ACHIEVED: torch.full((1, 1), float(number)),
                DESIRED: torch.full((1, 1), goal),
            }

        obs = show(-1.0)
        buffer.start(obs)
        for t in range(1, 60):
            number += 1
            done = torch.tensor([t % 7 == 0])
            next_obs = show(float(-1 - (t - 1) // 7))
            number += 1
            obs = show(float(-1 - t // 7)) if done else next_obs
            remembered = torch.full((1, memory_dim), float(t)) if (t - 1) % 7 else torch.zeros(1, memory_dim)
            buffer.add(
                torch.zeros(1, dtype=torch.long), Step(obs, next_obs, torch.zeros(1), never, done, ~never), remembered
            )
        return buffer

    def test_one_goal_for_all_of_a_window_and_no_memory_of_another(self):
        batch = self.feed(2).sample(400)
        replaced = batch.obs[DESIRED][:, -1, 0] > 0
        assert 0.4 < replaced.float().mean() < 0.6
        for obs in (batch.obs, batch.next_obs):
            goals, valid, memory = obs[DESIRED][..., 0], obs[VALID], obs[MEMORY]
            assert (torch.where(valid, goals, goals[:, -1:]) == goals[:, -1:]).all()
            assert (memory[replaced] == 0).all()
            assert (memory[~replaced & valid.all(1)] > 0).any()
        assert torch.equal(batch.obs[DESIRED][:, -1], batch.next_obs[DESIRED][:, -1])
        reached = batch.next_obs[ACHIEVED][:, -1] == batch.next_obs[DESIRED][:, -1]
        assert torch.equal(batch.reward, reached[:, 0].float())

    def test_windows_alone(self):
        batch = self.feed(0).sample(100)
        assert MEMORY not in batch.obs
        assert (batch.obs[DESIRED][:, -1, 0] > 0).any()
