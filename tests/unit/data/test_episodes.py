"""Episode statistics by hand: what is counted, what is not, how terms reduce, and that the state is exact."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from habilis.core.errors import EnvError
from habilis.core.types import NamedRows, Step
from habilis.data.episodes import Episode, EpisodeTracker, summary


def make_step(reward, *, terminated=None, truncated=None, valid=None, **info):
    """A step of `len(reward)` environments; observations do not matter here. `__` in a name of info stands for `/`."""
    n = len(reward)
    flag = lambda value, default: torch.full((n,), default) if value is None else torch.tensor(value, dtype=torch.bool)  # noqa: E731
    obs = {"policy": torch.zeros(n, 1)}
    return Step(
        obs=obs,
        next_obs=obs,
        reward=torch.tensor(reward, dtype=torch.float32),
        terminated=flag(terminated, False),
        truncated=flag(truncated, False),
        valid=flag(valid, True),
        info={name.replace("__", "/"): torch.as_tensor(value) for name, value in info.items()},
    )


def test_returns_and_lengths_by_environment():
    tracker = EpisodeTracker(2)
    assert tracker.update(make_step([1.0, 10.0])) == []
    assert tracker.update(make_step([2.0, 20.0], terminated=[True, False])) == [Episode(0, 3.0, 2)]
    assert tracker.update(make_step([4.0, 30.0], truncated=[False, True])) == [Episode(1, 60.0, 3)]
    assert tracker.update(make_step([5.0, 1.0], truncated=[True, True])) == [Episode(0, 9.0, 2), Episode(1, 1.0, 1)]
    assert len(tracker.recent) == 4


def test_dummy_step_belongs_to_no_episode():
    tracker = EpisodeTracker(1)
    tracker.update(make_step([1.0], truncated=[True]))
    assert tracker.update(make_step([100.0], valid=[False])) == []
    assert tracker.update(make_step([100.0], valid=[False], truncated=[True])) == []
    tracker.update(make_step([2.0]))
    assert tracker.update(make_step([3.0], terminated=[True])) == [Episode(0, 5.0, 2)]


def test_diverged_step_ends_the_episode_and_adds_nothing_to_it():
    tracker = EpisodeTracker(2)
    tracker.update(make_step([1.0, 1.0], tracking_error=[0.5, 0.5], diverged=[0.0, 0.0]))
    (episode,) = tracker.update(
        make_step([float("nan"), 1.0], valid=[False, True], tracking_error=[9.0, 0.5], diverged=[1.0, 0.0])
    )
    assert episode == Episode(0, 1.0, 1, {"diverged": 1.0, "tracking_error": 0.5})
    (other,) = tracker.update(
        make_step([1.0, 1.0], terminated=[False, True], tracking_error=[0.5, 0.5], diverged=[0.0, 0.0])
    )
    assert other.total_reward == 3.0
    assert tracker.summary()["termination/diverged"] == 0.5


@pytest.mark.parametrize("name", ["diverged", "termination__diverged"])
def test_every_divergence_is_counted(name):
    """The first step of an episode that never began, a second one at once, and both beside a sound environment."""
    tracker = EpisodeTracker(2)
    assert "rollout/diverged_steps" not in tracker.summary()
    tracker.update(make_step([0.0, 1.0], valid=[False, True], **{name: [1.0, 0.0]}))
    assert tracker.summary() == {"rollout/diverged_steps": 1}
    tracker.update(make_step([0.0, 0.0], valid=[False, False], **{name: [1.0, 1.0]}))
    tracker.update(make_step([0.0, 1.0], valid=[False, True], **{name: [float("nan"), 0.0]}))  # a dummy
    assert tracker.summary()["rollout/diverged_steps"] == 3
    other = EpisodeTracker(2)
    other.load_state_dict(tracker.state_dict())
    assert other.summary() == tracker.summary()


@pytest.mark.parametrize("known", [(), ("reward/b", "speed", "diverged")])
def test_rows_of_one_tensor_count_as_tensors_of_their_own(known):
    """Also where the tracker knew the names in another order, from a checkpoint that was written with another."""
    names = ("speed", "reward/b", "diverged")
    told = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], [[5.0, 6.0], [7.0, 8.0], [0.0, 1.0]]])
    plain, packed = EpisodeTracker(2), EpisodeTracker(2)
    if known:
        packed.load_state_dict({"names": list(known), "sums": np.zeros((4, 2)), "lengths": np.zeros(2), "recent": []})
    for rows, truncated, valid in zip(
        told, ([False, False], [True, False]), ([True, True], [True, False]), strict=True
    ):
        step = make_step([1.0, 2.0], truncated=truncated, valid=valid)
        ended = packed.update(replace(step, info=NamedRows(names, rows)))
        assert ended == plain.update(replace(step, info=dict(zip(names, rows, strict=True))))
    assert ended[0].terms == {"speed": 3.0, "reward/b": 10.0, "diverged": 0.0}
    assert packed.summary() == plain.summary()


def test_flags_alone_become_numbers():
    tracker = EpisodeTracker(1)
    (episode,) = tracker.update(make_step([1.0], terminated=[True], success=[True]))
    assert type(episode.terms["success"]) is float


def test_terms_reduce_by_their_names():
    tracker = EpisodeTracker(1)
    tracker.update(
        make_step(
            [0.0],
            success=[True],
            success__part=[0.2],
            cost=[1.0],
            reward__a=[0.5],
            tracking_error=[0.2],
            other=[[1.0, 2.0]],
        )
    )
    (episode,) = tracker.update(
        make_step(
            [0.0],
            truncated=[True],
            success=[False],
            success__part=[0.6],
            cost=[2.0],
            reward__a=[0.25],
            tracking_error=[0.4],
            other=[[1.0, 2.0]],
        )
    )
    assert episode.terms == pytest.approx(
        {"success": 0.0, "success/part": 0.6, "cost": 3.0, "reward/a": 0.75, "tracking_error": 0.3}
    )
    assert summary([episode]) == pytest.approx(
        {
            "rollout/ep_rew_mean": 0.0,
            "rollout/ep_len_mean": 2.0,
            "rollout/success_rate": 0.0,
            "success/part": 0.6,
            "rollout/ep_cost_mean": 3.0,
            "reward/a": 0.75,
            "info/tracking_error": 0.3,
        }
    )


def test_return_is_summed_in_float64():
    tracker = EpisodeTracker(1)
    tracker.update(make_step([2.0**24]))
    for _ in range(9):
        tracker.update(make_step([1.0]))
    (episode,) = tracker.update(make_step([1.0], truncated=[True]))
    assert episode.total_reward == 2.0**24 + 10


def test_summary_is_over_the_window_and_empty_before_an_episode():
    tracker = EpisodeTracker(1, window=2)
    assert tracker.summary() == {}
    for reward in (100.0, 1.0, 3.0):
        tracker.update(make_step([reward], terminated=[True], termination__fall=[reward > 2.0]))
    assert tracker.summary() == {"rollout/ep_rew_mean": 2.0, "rollout/ep_len_mean": 1.0, "termination/fall": 0.5}


def test_state_is_exact_in_the_middle_of_an_episode():
    generator = torch.Generator().manual_seed(0)

    def random_step():
        reward = torch.rand(3, generator=generator).tolist()
        done = (torch.rand(3, generator=generator) < 0.2).tolist()
        return make_step(reward, terminated=done, reward__a=reward, success=done)

    tracker = EpisodeTracker(3, window=5)
    for _ in range(40):
        tracker.update(random_step())
    twin = EpisodeTracker(3, window=5)
    twin.load_state_dict(tracker.state_dict())
    for _ in range(40):
        step = random_step()
        assert twin.update(step) == tracker.update(step)
    assert twin.summary() == tracker.summary()
    fresh = EpisodeTracker(3)
    fresh.load_state_dict(EpisodeTracker(3).state_dict())
    assert fresh.update(random_step()) is not None


def test_reset_forgets_the_episodes_under_way():
    tracker = EpisodeTracker(1)
    tracker.update(make_step([7.0]))
    tracker.reset()
    assert tracker.update(make_step([1.0], terminated=[True])) == [Episode(0, 1.0, 1)]


def test_a_missing_key_is_named():
    tracker = EpisodeTracker(1)
    tracker.update(make_step([1.0], cost=[1.0]))
    with pytest.raises(EnvError, match="'cost'"):
        tracker.update(make_step([1.0]))


def test_an_environment_may_show_a_key_late():
    tracker = EpisodeTracker(2)
    tracker.update(make_step([1.0, 1.0], b=[1.0, 1.0]))
    tracker.update(make_step([1.0, 1.0], b=[1.0, 1.0], terminated=[True, False]))
    (late,) = tracker.update(
        make_step([1.0, 1.0], b=[1.0, 1.0], a=[0.0, 6.0], success=[False, True], terminated=[False, True])
    )
    assert late == Episode(1, 3.0, 3, {"b": 1.0, "a": 6.0, "success": 1.0})
    assert tracker.summary()["rollout/success_rate"] == 1.0  # of the one episode of which it is known


def test_a_mean_is_that_of_the_steps_that_told_and_a_sum_needs_all_of_them():
    tracker, unknown = EpisodeTracker(2), float("nan")
    tracker.update(make_step([1.0, 1.0], lap=[unknown, 2.0], cost__a=[1.0, unknown]))
    saved = tracker.state_dict()
    tracker = EpisodeTracker(2)
    tracker.load_state_dict(saved)
    tracker.update(make_step([1.0, 1.0], lap=[unknown, unknown], cost__a=[1.0, 1.0]))
    first, second = tracker.update(make_step([1.0, 1.0], lap=[50.0, 4.0], cost__a=[1.0, 1.0], terminated=[True, True]))
    assert first.terms == {"lap": 50.0, "cost/a": 3.0}
    assert second.terms["lap"] == 3.0
    assert np.isnan(second.terms["cost/a"])
    (none,) = tracker.update(make_step([1.0, 1.0], lap=[unknown, 1.0], cost__a=[1.0, 1.0], terminated=[True, False]))
    assert np.isnan(none.terms["lap"])


def test_a_cost_that_was_not_told_was_none():
    tracker = EpisodeTracker(1)
    tracker.update(make_step([1.0]))
    (episode,) = tracker.update(make_step([1.0], cost=[2.0], terminated=[True]))
    assert episode.terms == {"cost": 2.0}


def test_an_environment_made_anew_may_show_its_numbers_late_again():
    tracker = EpisodeTracker(1)
    tracker.update(make_step([1.0], success=[True]))
    tracker.reset()
    tracker.update(make_step([1.0]))
    (episode,) = tracker.update(make_step([1.0], success=[True], terminated=[True]))
    assert episode == Episode(0, 2.0, 2, {"success": 1.0})


def test_what_is_not_known_of_an_episode_does_not_count():
    scalars = summary([Episode(0, 1.0, 1, {"a": float("nan")}), Episode(0, 1.0, 1, {"a": 4.0})])
    assert scalars["info/a"] == 4.0
    assert "info/a" not in summary([Episode(0, 1.0, 1, {"a": float("nan")})])


def test_an_update_is_cheap():
    """At 60,000 env steps/s with 64 environments a step lasts 1 ms; following it must not be seen in that."""
    tracker = EpisodeTracker(64)
    step = make_step([1.0] * 64, reward__a=[1.0] * 64, reward__b=[1.0] * 64)
    best = min(timed(lambda: tracker.update(step), 200) for _ in range(5))
    assert best < 150e-6


def timed(function, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats
