"""Whole episodes: the first K that are begun, each from its first step to its last, whatever comes between."""

from __future__ import annotations

import pytest
import torch

import habilis.data.whole_episodes as module
from habilis.core.errors import HabilisError
from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import PolicyStep, Step
from habilis.data.whole_episodes import EpisodeBuffer

SPEC = EnvSpec("clock", {"policy": ObsGroup((2,))}, DiscreteAction(2))


class Clock:
    """Shows (episode, step) of N environments, whose episodes take as long as they are told, one list for each."""

    def __init__(self, lengths, invalid=()):
        self.lengths, self.invalid = lengths, set(invalid)
        self.episode, self.time, self.t = [0] * len(lengths), [0] * len(lengths), 0

    def observe(self):
        return {"policy": torch.tensor([[float(e), float(s)] for e, s in zip(self.episode, self.time, strict=True)])}

    def step(self, wanted):
        done, valid = [], []
        for n, lengths in enumerate(self.lengths):
            self.time[n] += 1
            done.append(self.time[n] == lengths[self.episode[n] % len(lengths)])
            valid.append((self.t, n) not in self.invalid)
        next_obs = obs = self.observe()
        for n, over in enumerate(done):
            if over or not valid[n]:
                self.episode[n], self.time[n] = self.episode[n] + 1, 0
        if any(done):
            obs = self.observe()
        self.t += 1
        ended, wanted = torch.tensor(done), torch.ones(len(done), dtype=torch.bool) if wanted is None else wanted
        reward, never = torch.ones(len(done)), torch.zeros(len(done), dtype=torch.bool)
        return Step(obs, next_obs, reward, never, ended, torch.tensor(valid) & wanted)


def collect(clock, n_episodes):
    buffer = EpisodeBuffer(SPEC, n_episodes, len(clock.lengths))
    buffer.start(clock.observe())
    count = torch.zeros(len(clock.lengths), dtype=torch.long)
    while not buffer.full:
        step = clock.step(buffer.wanted)
        buffer.add(PolicyStep(count, count, torch.zeros(len(count))), step)
    return buffer.batch()


def kept(batch):
    """Lengths of the kept episodes of each environment."""
    ends = batch.truncated & batch.valid
    steps = [batch.valid[:, n].sum().item() for n in range(ends.shape[1])]
    return [ends[:, n].sum().item() for n in range(ends.shape[1])], steps


def test_the_first_that_are_begun_are_kept_and_not_the_first_that_end():
    # both begin one; the first environment ends its own at once and begins the third and last
    batch = collect(Clock([[1, 3, 1, 1], [6]]), 3)
    assert kept(batch) == ([2, 1], [4, 6])
    assert len(batch.rewards) == 6
    # those that would be kept by who ends first: four short ones
    assert batch.valid[:, 0].tolist() == [True, True, True, True, False, False]


def test_fewer_episodes_than_environments():
    batch = collect(Clock([[2], [3], [1]]), 2)
    assert kept(batch) == ([1, 1, 0], [2, 3, 0])


def test_two_that_end_together_share_what_is_left():
    batch = collect(Clock([[2, 5], [2, 4]]), 3)
    assert kept(batch) == ([2, 1], [7, 2])


def test_the_mean_length_is_that_of_the_episodes():
    """Lengths are drawn; their mean over many rollouts is the true one, which that of the first to end is not."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.where(torch.rand(3, 3000, generator=g) < 0.5, 1, 9).tolist()
    clock, taken, steps = Clock(lengths), 0, 0
    for _ in range(300):
        clock.time = [0] * 3  # begun anew, with the next length
        clock.episode = [e + 1 for e in clock.episode]
        batch = collect(clock, 4)
        episodes, counts = kept(batch)
        assert sum(episodes) == 4
        taken, steps = taken + 4, steps + sum(counts)
    assert steps / taken == pytest.approx(5.0, abs=0.4)


def test_true_last_observations_are_kept_aside():
    batch = collect(Clock([[2, 1], [3]]), 3)
    t, n = batch.final_index
    found = {(int(a), int(b)): batch.final_obs["policy"][k].tolist() for k, (a, b) in enumerate(zip(t, n, strict=True))}
    assert found[1, 0] == [0.0, 2.0]
    assert found[2, 0] == [1.0, 1.0]
    assert found[2, 1] == [0.0, 3.0]
    assert batch.obs["policy"].shape == (4, 2, 2)


def test_a_step_that_is_not_valid_ends_an_episode_under_way_and_begins_none():
    # (1, 0) cuts the first episode off; (0, 1) comes before the second environment's has a step
    batch = collect(Clock([[4, 2], [3]], invalid=[(1, 0), (0, 1)]), 3)
    assert batch.valid[:, 0].tolist()[:4] == [True, False, True, True]
    assert batch.valid[:, 1].tolist()[:4] == [False, True, True, True]
    assert kept(batch)[0] == [1, 1]


def test_an_episode_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_EPISODE", 20)
    with pytest.raises(HabilisError, match="not ended after 20 steps"):
        collect(Clock([[10**9]]), 1)
    assert kept(collect(Clock([[19]]), 3))[0] == [3]  # many that do end are none
