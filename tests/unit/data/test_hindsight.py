"""Goals in hindsight against a twin that keeps whole episodes in lists."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from habilis.core.errors import ConfigError, EnvError
from habilis.core.random import generator_state, set_generator_state
from habilis.core.specs import ACHIEVED, DESIRED, DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Step
from habilis.data.hindsight import CHECKED, Hindsight
from habilis.data.priorities import Priorities
from habilis.data.replay import ReplayBuffer

ONE = ObsGroup((1,))
SPEC = EnvSpec("goals", {"policy": ONE, ACHIEVED: ONE, DESIRED: ONE}, DiscreteAction(3))
GAMMA = 0.5
STRATEGIES = ["final", "future", "episode"]


def pays(achieved, desired):
    return (3 * achieved + desired) % 7 - 3


def ends(achieved, desired):
    return (achieved + desired) % 13 == 0


def env_of(reward=pays, terminated=ends, spec=SPEC):
    return SimpleNamespace(
        spec=spec,
        compute_reward=reward and (lambda a, d: reward(a, d)[:, 0]),
        compute_terminated=terminated and (lambda a, d: terminated(a, d)[:, 0]),
    )


def make(strategy="future", held=8, num_envs=1, n_steps=1, seed=0, priorities=None, env=None, **options):
    generator = np.random.default_rng(seed)
    hindsight = Hindsight(env or env_of(), strategy=strategy, generator=generator, **options)
    return ReplayBuffer(
        SPEC,
        held * num_envs,
        num_envs,
        generator=generator,
        n_steps=n_steps,
        gamma=GAMMA,
        priorities=priorities,
        hindsight=hindsight,
    )


class Feed:
    """Makes steps whose every observation is another number, the goal achieved as well, and remembers all of them.

    The goals that are wanted are negative: another for each episode. An environment that resets late ends an episode
    with its last observation, and its next step is not valid.
    """

    def __init__(self, buffer, late=False):
        self.buffer, self.late = buffer, late
        self.n = buffer.num_envs
        self.count, self.wanted_count = 0, 0
        self.history = [[] for _ in range(self.n)]
        self.ended = [True] * self.n

    def start(self):
        for past in self.history:
            if past and past[-1]["valid"]:
                past[-1]["done"] = True
        self.ended = [False] * self.n
        self.wanted = [self.goal() for _ in range(self.n)]
        self.now = [self.number() for _ in range(self.n)]
        self.buffer.start(self.show(self.now, self.wanted))

    def number(self):
        self.count += 1
        return self.count

    def goal(self):
        self.wanted_count -= 1
        return self.wanted_count

    @staticmethod
    def show(now, wanted):
        now, wanted = (torch.tensor(x, dtype=torch.float32)[:, None] for x in (now, wanted))
        return {"policy": now, ACHIEVED: now, DESIRED: wanted}

    def step(self, kinds):
        """One step; a kind is (ending besides that by the goal: "go", "fall" or "cut"; valid)."""
        following = [self.number() for _ in range(self.n)]
        reward = [pays(a, g) for a, g in zip(following, self.wanted, strict=True)]
        valid = [ok and not (self.late and was) for (_, ok), was in zip(kinds, self.ended, strict=True)]
        terminated = [
            ok and (kind == "fall" or ends(a, g))
            for (kind, _), ok, a, g in zip(kinds, valid, following, self.wanted, strict=True)
        ]
        cut = [kind == "cut" and ok and not t for (kind, _), ok, t in zip(kinds, valid, terminated, strict=True)]
        done = [t or c for t, c in zip(terminated, cut, strict=True)]
        for i in range(self.n):
            self.history[i].append(
                {
                    "obs": self.now[i],
                    "next": following[i],
                    "goal": self.wanted[i],
                    "fell": terminated[i] and not ends(following[i], self.wanted[i]),
                    "terminated": terminated[i],
                    "done": done[i],
                    "valid": valid[i],
                }
            )
        next_obs = obs = self.show(following, self.wanted)
        fresh = [d if not self.late else not ok for d, ok in zip(done, valid, strict=True)]
        if any(fresh):
            self.wanted = [self.goal() if f else g for f, g in zip(fresh, self.wanted, strict=True)]
            if not self.late:
                following = [self.number() if f else a for f, a in zip(fresh, following, strict=True)]
            obs = self.show(following, self.wanted)
        flags = (torch.tensor(x) for x in (terminated, cut, valid))
        step = Step(obs, obs if self.late else next_obs, torch.tensor(reward, dtype=torch.float32), *flags)
        self.buffer.add(torch.zeros(self.n, dtype=torch.long), step)
        self.now, self.ended = following, done

    def episodes(self, past):
        """Cut what one environment did into episodes."""
        episode = []
        for step in past:
            if step["valid"]:
                episode.append(step)
            if step["done"] or not step["valid"]:
                yield episode
                episode = []
        yield episode

    def expected(self, held, n_steps, strategy):
        """Every transition by the number of its observation: its goals, and by goal what a sample must be."""
        table = {}
        for past in self.history:
            kept = {id(step) for step in past[-held:]}
            for whole in self.episodes(past):
                episode = [step for step in whole if id(step) in kept]
                for i, step in enumerate(episode):
                    sources = {"final": episode[-1:], "future": episode[i:], "episode": episode}[strategy]
                    goals = [source["next"] for source in sources]
                    outcome = {g: self.outcome(episode[i : i + n_steps], g) for g in goals}
                    outcome[step["goal"]] = self.outcome(episode[i : i + n_steps], step["goal"])
                    table[step["obs"]] = (step["goal"], goals, outcome)
        return table

    @staticmethod
    def outcome(window, goal):
        total, discount = 0.0, 1.0
        for step in window:
            total += discount * pays(step["next"], goal)
            discount *= GAMMA
            terminated = bool(ends(step["next"], goal) or step["fell"])
            if terminated:
                break
        return total, terminated, step["next"], discount


def rows_of(batch):
    assert torch.equal(batch.obs[DESIRED], batch.next_obs[DESIRED])
    for obs in (batch.obs, batch.next_obs):
        assert torch.equal(obs["policy"], obs[ACHIEVED])
    columns = (batch.obs["policy"][:, 0], batch.obs[DESIRED][:, 0], batch.reward, batch.terminated)
    columns += (batch.next_obs["policy"][:, 0], batch.discount)
    for obs, goal, *outcome in zip(*(column.tolist() for column in columns), strict=True):
        yield obs, goal, tuple(outcome)


def check(feed, held, n_steps, strategy, samples):
    """Hold every sample to the twin, and the goals of each transition to all that the strategy may choose."""
    expected = feed.expected(held, n_steps, strategy)
    seen = {}
    for obs, goal, outcome in rows_of(feed.buffer.sample(samples)):
        wanted, goals, outcomes = expected[obs]
        assert goal == wanted or goal in goals
        assert outcome == outcomes[goal]
        seen.setdefault(obs, set()).add(goal)
    return seen, {obs: {wanted, *goals} for obs, (wanted, goals, _) in expected.items()}


KIND = st.tuples(st.sampled_from(["go"] * 4 + ["fall", "cut"]), st.sampled_from([True] * 5 + [False]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_sample_is_what_the_twin_holds(data):
    num_envs, held = data.draw(st.integers(1, 3)), data.draw(st.integers(4, 9))
    n_steps, strategy = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from(STRATEGIES))
    buffer = make(strategy, held, num_envs, n_steps)
    feed = Feed(buffer, late=data.draw(st.booleans()))
    feed.start()
    events = st.one_of(st.just("start"), *[st.lists(KIND, min_size=num_envs, max_size=num_envs)] * 6)
    for event in data.draw(st.lists(events, min_size=1, max_size=40)):
        feed.start() if event == "start" else feed.step(event)
    if feed.expected(held, n_steps, strategy):
        check(feed, held, n_steps, strategy, 300)


def run(feed, steps, seed=0, ends=0.1, invalid=0.1):
    rng = np.random.default_rng(seed)
    feed.start()
    for _ in range(steps):
        endings = rng.choice(["go", "fall", "cut"], size=feed.n, p=[1 - ends, ends / 2, ends / 2])
        feed.step(list(zip(endings.tolist(), (rng.random(feed.n) >= invalid).tolist(), strict=True)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("num_envs", "held", "n_steps", "late"), [(1, 11, 1, False), (3, 6, 3, False), (2, 9, 1, True)]
)
def test_every_goal_is_drawn_after_many_turns_of_the_ring(num_envs, held, n_steps, late, strategy):
    feed = Feed(make(strategy, held, num_envs, n_steps), late)
    for steps in (3, held + 1, 5 * held + 3):
        for chance in (0.1, 0.0):  # without other ends, episodes are longer than the ring
            run(feed, steps, seed=steps, ends=chance, invalid=chance)
            seen, expected = check(feed, held, n_steps, strategy, 400 * held * num_envs)
            assert seen == expected


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_goal_that_changes_within_an_episode_is_the_next_one_where_it_is_kept(n_steps):
    buffer = make("future", 20, n_steps=n_steps)
    feed = Feed(buffer)
    feed.start()
    shown = {1: -1}
    for _ in range(16):
        feed.step([("go", True)])
        shown[feed.now[0]] = feed.wanted[0]
        feed.wanted = [feed.goal()]  # seen from the next step on
    batch = buffer.sample(2000)
    kept = batch.obs[DESIRED][:, 0] < 0  # those in hindsight are positive
    assert 100 < int(kept.sum()) < 900
    assert torch.equal(batch.obs[DESIRED][~kept], batch.next_obs[DESIRED][~kept])
    for obs in (batch.obs, batch.next_obs):
        assert obs[DESIRED][kept, 0].tolist() == [shown[int(number)] for number in obs["policy"][kept, 0]]


def test_goals_by_priority():
    priorities = Priorities(alpha=1.0)
    feed = Feed(make("future", 20, 2, priorities=priorities))
    run(feed, 73)
    batch = feed.buffer.sample(500)
    feed.buffer.update_priorities(batch.index, torch.rand(500, generator=torch.Generator().manual_seed(0)))
    seen, expected = check(feed, 20, 1, "future", 20_000)
    assert seen == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_goals_are_drawn_evenly_and_one_in_five_is_kept(strategy):
    feed = Feed(make(strategy, 10))
    feed.start()
    for _ in range(4):
        feed.step([("go", True)])
    rows = [row for row in rows_of(feed.buffer.sample(40_000)) if row[0] == 2]  # the second of four under way
    counts = Counter(goal for _, goal, _ in rows)
    goals = {"final": [5], "future": [3, 4, 5], "episode": [2, 3, 4, 5]}[strategy]
    assert set(counts) == {-1, *goals}
    assert counts[-1] / len(rows) == pytest.approx(0.2, abs=0.02)
    for goal in goals:
        assert counts[goal] / len(rows) == pytest.approx(0.8 / len(goals), abs=0.02)


def test_the_number_of_sampled_goals_sets_the_share():
    feed = Feed(make("final", 50, n_sampled_goal=1))
    run(feed, 40)
    goals = feed.buffer.sample(20_000).obs[DESIRED]
    assert float((goals < 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_an_end_that_the_goal_explains_is_none_for_another_goal():
    feed = Feed(make("final", 50))
    feed.start()
    while not feed.history[0] or not feed.history[0][-1]["terminated"]:
        feed.step([("go", True)])
    batch = feed.buffer.sample(200)
    last = batch.obs["policy"][:, 0] == feed.history[0][-1]["obs"]
    kept = batch.obs[DESIRED][:, 0] < 0
    assert batch.terminated[last & kept].all()
    given = ends(batch.next_obs[ACHIEVED], batch.obs[DESIRED])[:, 0]
    assert torch.equal(batch.terminated[last & ~kept], given[last & ~kept])
    assert (last & ~kept).any()


@pytest.mark.parametrize(("steps", "late"), [(7, False), (45, False), (44, True)])
def test_a_loaded_state_goes_on_bit_for_bit(steps, late):
    one, two = (make("episode", 15, 2, n_steps=2, seed=seed) for seed in (1, 2))
    feed, other = Feed(one, late), Feed(two, late)
    run(feed, steps)
    run(other, 64, seed=9)  # what it held before must not matter
    set_generator_state(two._generator, generator_state(one._generator))
    two.load_state_dict(one.state_dict())
    for name in ("count", "wanted_count", "ended", "wanted", "now", "history"):
        setattr(other, name, list(value) if isinstance(value := getattr(feed, name), list) else value)
    rng = np.random.default_rng(3)
    for _ in range(40):
        kinds = [(rng.choice(["go", "go", "fall", "cut"]), rng.random() < 0.9) for _ in range(2)]
        other.history = [list(past) for past in feed.history]
        feed.step(kinds)
        other.step(kinds)
        assert list(rows_of(one.sample(16))) == list(rows_of(two.sample(16)))


def test_a_state_without_episodes_is_refused():
    plain = ReplayBuffer(SPEC, 8, 1, generator=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="knows no episodes"):
        make(held=8).load_state_dict(plain.state_dict())


def test_batches_drawn_together_have_as_many_goals_each():
    feed = Feed(make("future", 100))
    run(feed, 120)
    shares = [float((batch.obs[DESIRED] < 0).float().mean()) for batch in feed.buffer.batches(256, 8)]
    assert max(abs(share - 0.2) for share in shares) < 0.1


def test_memory():
    hindsight = make(held=10).hindsight
    per_place = hindsight._since.itemsize + hindsight._left.itemsize
    assert Hindsight.bytes_needed(10) == 10 * per_place


class TestWhatIsRefused:
    """Environments of which hindsight would learn something wrong."""

    def test_no_goals(self):
        spec = EnvSpec("plain", {"policy": ONE}, DiscreteAction(3))
        with pytest.raises(ConfigError, match="plain has no goals"):
            make(env=env_of(spec=spec))

    def test_pictures_of_goals_in_stacks(self):
        picture = ObsGroup((4, 4, 6), "uint8")
        obs = {"policy": ONE, ACHIEVED: picture, DESIRED: picture}
        with pytest.raises(ConfigError, match="frame_stack 2 would stack them"):
            make(env=env_of(spec=EnvSpec("seen", obs, DiscreteAction(3), frame_stack=2)))

    def test_no_reward_function(self):
        with pytest.raises(EnvError, match="does not say what reaching a goal pays"):
            make(env=env_of(reward=None))

    def test_an_end_without_a_function_of_it(self):
        feed = Feed(make(held=50, env=env_of(terminated=None)))
        feed.start()
        feed.step([("go", True)])
        with pytest.raises(EnvError, match="does not say which goals do: give it compute_terminated"):
            feed.step([("fall", True)])

    def test_no_end_needs_no_function(self):
        feed = Feed(make(held=400, env=env_of(terminated=None)))
        feed.start()
        for _ in range(200):
            if ends(feed.count + 1, feed.wanted[0]):
                feed.start()
            else:
                feed.step([("go", True)])
        assert not feed.buffer.sample(500).terminated.any()

    def test_rewards_that_do_not_follow_from_the_goals(self):
        # one in fifty is enough, one in a hundred may be rounding
        for wrong, refused in ((2, True), (1, False)):
            buffer = make(held=500, env=env_of(reward=lambda a, d: pays(a, d) + (a % 100 < wrong)))  # noqa: B023
            feed = Feed(buffer)
            feed.start()
            for _ in range(CHECKED - 1):
                feed.step([("go", True)])
            if refused:
                with pytest.raises(EnvError, match=r"something else than its compute_reward in [23] of 100 steps"):
                    feed.step([("go", True)])
            else:
                feed.step([("go", True)])

    def test_no_strategy(self):
        with pytest.raises(ConfigError, match="needs a goal_selection_strategy"):
            make("none")
