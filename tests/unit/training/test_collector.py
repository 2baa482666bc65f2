"""The collector: what begins anew begins from nothing, and what ended is not remembered."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch

from habilis import api
from habilis.build import build_trainer
from habilis.core.types import Step
from habilis.envs.gymnasium import GymnasiumVecEnv
from habilis.envs.make import make_vec_env
from habilis.training.collector import Collector

ENVS, LENGTH = 2, 5  # the length of an episode of the probe
NOTHING = torch.zeros(ENVS, 1)


def started() -> Collector:
    collector = Collector(make_vec_env("probe/TruncationValueContinuous-v0", ENVS))
    collector.reset(seed=0)
    return collector


def test_episodes_under_way_do_not_count_once_new_ones_begin() -> None:
    collector = started()
    memory = {"network": torch.ones(ENVS, 3)}
    for _ in range(3):
        collector.step(NOTHING, memory)
    assert collector.memory is not None
    collector.reset()
    assert collector.memory is None
    assert collector.recorder.dump() == {"env": None, "actions": None}
    for _ in range(LENGTH):
        collector.step(NOTHING)
    assert [(e.length, e.total_reward) for e in collector.episodes.recent] == [(LENGTH, float(LENGTH))] * ENVS


def test_memory_is_nothing_where_an_episode_ended() -> None:
    collector = started()
    memory = {"network": torch.ones(ENVS, 3)}
    for _ in range(LENGTH - 1):
        collector.step(NOTHING, memory)
        assert collector.memory["network"].eq(1).all()
    collector.step(NOTHING, memory)
    assert not collector.memory["network"].any()
    # nor where a step was of no use, which belongs to no episode
    collector.step(NOTHING, memory, wanted=torch.tensor([True, False]))
    assert collector.memory["network"].any(1).tolist() == [True, False]


def test_what_starts_from_an_observation_that_is_not_finite_is_left_out_after_a_reload_too() -> None:
    first, second = (
        Collector(make_vec_env("probe/TruncationValueContinuous-v0", ENVS), skip_nonfinite=True) for _ in range(2)
    )
    for collector in (first, second):
        collector.reset(seed=0)
    inner, row = first.env.step, torch.tensor([1])

    def spoiled(action: torch.Tensor) -> Step:
        step = inner(action)
        return replace(step, obs={name: x.index_fill(0, row, math.nan) for name, x in step.obs.items()})

    first.env.step = spoiled
    assert first.step(NOTHING).valid.tolist() == [True, False]
    first.env.step = inner
    second.step(NOTHING)
    second.load_state_dict(first.state_dict(), seed=0)
    assert second.recorder.dump()["actions"] is None  # those before lead elsewhere
    assert second.step(NOTHING).valid.tolist() == [True, False]
    assert second.skipped_rows == 2
    first.reset()
    assert first.step(NOTHING).valid.all()


class Walk(gym.Env):
    """Counts its steps and cannot save its state; the seed is what it shows first."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.random(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, False, self.time == LENGTH, {}


def test_an_environment_that_saves_nothing_goes_on_with_fresh_episodes() -> None:
    first, second = (Collector(GymnasiumVecEnv(gym.vector.SyncVectorEnv([Walk] * ENVS))) for _ in range(2))
    first.reset(seed=0)
    for _ in range(LENGTH + 2):
        first.step(NOTHING)
    state = first.state_dict()
    second.load_state_dict(state, seed=1)
    assert second.episodes.count == ENVS
    second.reset(seed=1)
    shown = second.obs["policy"].clone()
    second.load_state_dict(state, seed=1)
    assert torch.equal(second.obs["policy"], shown)
    for _ in range(LENGTH):
        second.step(NOTHING)
    assert [e.length for e in second.episodes.recent] == [LENGTH] * 2 * ENVS


def test_what_is_told_at_an_episodes_end_is_no_reason_to_stop_after_fresh_ones_began() -> None:
    class Succeeds(Walk):
        def step(self, action):
            *rest, truncated, info = super().step(action)
            return *rest, truncated, {**info, "is_success": True} if truncated else info

    first, second = (Collector(GymnasiumVecEnv(gym.vector.SyncVectorEnv([Succeeds] * ENVS))) for _ in range(2))
    first.reset(seed=0)
    for _ in range(LENGTH):
        first.step(NOTHING)
    second.load_state_dict(first.state_dict(), seed=1)
    for _ in range(LENGTH):
        second.step(NOTHING)
    assert [e.terms["success"] for e in second.episodes.recent] == [1.0] * 2 * ENVS


def test_replay_learners_normalise_by_what_was_acted_on() -> None:
    """Episodes of one step: the cue that an action depends on is their first observation, and no next one."""
    small = {"num_envs": 4, "total_timesteps": 400, "eval_episodes": 0, "tensorboard": False, "algo.hidden": [8]}
    small |= {"algo.normalize_obs": True, "algo.learning_starts": 10**6}
    config = api.default_config("td3", "probe/IdentityContinuous-v0", **small)
    trainer = build_trainer(config)
    seen = []
    for _ in range(100):
        seen.append(trainer.collector.obs["policy"].clone())
        trainer.iterate()
    statistics = trainer.algorithm.policy.encoder.normalizers["policy"]
    torch.testing.assert_close(statistics.mean, torch.cat(seen).double().mean(0))
    assert (torch.cat(seen).var(0) > 0.01).all()
    torch.testing.assert_close(statistics.var, torch.cat(seen).double().var(0, correction=0))
