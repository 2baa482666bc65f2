"""Films and pictures of native and of Gymnasium's environments, looked at with an eye of numbers."""

from __future__ import annotations

import sys
from typing import ClassVar

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers)
from habilis.core.errors import ConfigError, EnvError, MissingExtraError
from habilis.core.types import PolicyStep
from habilis.envs.gymnasium import make_gymnasium
from habilis.envs.make import make_vec_env
from habilis.envs.mujoco import make_native
from habilis.envs.render import Renderer
from habilis.evaluation.evaluator import evaluate, evaluation_seed
from habilis.evaluation.video import record_video, require_film
from habilis.evaluation.watch import watch


class Still:
    """Does nothing, and counts how often it was asked to by its mode and by drawing."""

    def __init__(self, dim):
        self.dim = dim
        self.asked = {True: 0, False: 0}

    def act(self, obs, memory=None, *, deterministic=False, generator=None):
        self.asked[deterministic] += 1
        action = torch.zeros(len(obs["policy"]), self.dim)
        return PolicyStep(action, action)


def test_a_native_environment_is_pictured_as_it_is_now():
    env = make_native("HalfCheetah-v5", num_envs=2, seed=0)
    env.reset(0)
    renderer = Renderer(env, 1, width=160, height=120)
    before = renderer.frame()
    assert before.shape == (120, 160, 3)
    assert before.dtype == np.uint8
    assert before.std() > 20  # a robot before a floor and a sky, not an empty picture
    np.testing.assert_array_equal(renderer.frame(), before)
    for _ in range(10):
        env.step(torch.tensor([[0.0] * 6, [1.0] * 6]))
    now = renderer.frame().astype(int)
    assert np.abs(now - before).mean() > 1.0
    other = Renderer(env, 0, width=160, height=120)
    assert np.abs(now - other.frame()).mean() > 1.0
    np.testing.assert_array_equal(renderer.frame(0), other.frame())  # one renderer pictures any of them
    np.testing.assert_array_equal(renderer.frame(), now)
    env.simulation.expand("geom_rgba")[0, :, :3] = (1.0, 0.0, 0.0)  # what differs between them is seen at once
    red = np.array(other.frame(), dtype=int)
    assert (red[:, :, 0] - red[:, :, 1]).mean() > 10
    np.testing.assert_array_equal(renderer.frame(), now)
    other.close()
    quick = Renderer(env, 1, width=160, height=120, quick=True)
    floor = quick.frame()[100:].astype(int)  # below the sky, which is left out, it differs by shadows and reflections
    assert 0.1 < np.abs(floor - now[100:]).mean() < 40
    quick.close()
    renderer.close()
    with pytest.raises(ConfigError, match="no camera 'tarck': it has track"):
        Renderer(env, camera="tarck")
    env.close()


def test_what_is_no_simulation_is_not_watched_for_ever():
    with pytest.raises(EnvError, match="record a video"):
        watch(Still(3), make_vec_env("habilis/PointReach-v0"), seed=0)
    pytest.importorskip("envpool")
    with pytest.raises(EnvError, match="EnvPool draws no pictures"):
        watch(Still(1), make_vec_env("Pendulum-v1", backend="envpool"), seed=0)


def test_film_of_a_native_environment_is_in_real_time(tmp_path):
    env = make_native("HalfCheetah-v5", num_envs=1, seed=0)
    path = record_video(Still(6), env, tmp_path / "deep" / "film.mp4", seed=0, seconds=1.0, width=160, height=120)
    frames = iio.imread(path)
    assert frames.shape == (20, 120, 160, 3)  # a second at the task's 20 Hz
    assert iio.immeta(path)["fps"] == 20.0
    assert frames.std() > 20
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]
    env.close()


def test_film_of_episodes_that_are_asked_for_has_no_limit_of_time(tmp_path):
    env = make_native("InvertedPendulum-v5", num_envs=1, seed=0, max_episode_steps=10)
    settings = {"seed": 0, "episodes": 3, "width": 64, "height": 48}
    lengths = evaluate(Still(1), env, episodes=3, seed=0).lengths
    whole = iio.imread(record_video(Still(1), env, tmp_path / "whole.mp4", seconds=None, **settings))
    assert len(whole) >= sum(lengths) - 2
    assert len(iio.imread(record_video(Still(1), env, tmp_path / "cut.mp4", seconds=0.2, **settings))) < len(whole) / 2
    with pytest.raises(ConfigError, match="episodes must be positive, got 0"):
        record_video(Still(1), env, tmp_path / "none.mp4", seed=0, episodes=0)
    env.close()


def test_film_of_a_gymnasium_environment_ends_with_its_episode(tmp_path):
    env = make_gymnasium("InvertedPendulum-v5", 1, render_mode="rgb_array", width=96, height=64)
    path = record_video(Still(1), env, tmp_path / "film.mp4", seed=0, episodes=1)
    (length,) = evaluate(Still(1), env, episodes=1, seed=0).lengths
    frames = iio.imread(path)
    assert len(frames) == length  # its beginning; and what follows the last step is the next one's
    env.reset(evaluation_seed(0))
    picture = Renderer(env).frame().astype(int)
    assert np.abs(frames[0].astype(int) - picture).mean() < np.abs(frames[-1].astype(int) - picture).mean()
    env.close()


def test_an_environment_that_draws_nothing_is_named(tmp_path):
    env = make_gymnasium("InvertedPendulum-v5", 1)
    with pytest.raises(EnvError, match="rgb_array"):
        record_video(Still(1), env, tmp_path / "film.mp4", seed=0)
    assert list(tmp_path.iterdir()) == []
    env.close()


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'habilis\[video\]'"):
        record_video(Still(6), make_native("HalfCheetah-v5", num_envs=1, seed=0), tmp_path / "film.mp4", seed=0)
    with pytest.raises(MissingExtraError, match="imageio_ffmpeg"):
        require_film(tmp_path / "film.mp4")  # whoever films last asks first


class Dial(gym.Env):
    """A picture of odd sides whose grey grows with every step; ten steps are a second."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.start = 0, int(self.np_random.integers(100))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 0.0, False, self.time == 30, {}

    def render(self):
        return np.full((101, 67, 3), self.start + 5 * self.time, np.uint8)


def test_a_film_of_gymnasiums_environment_goes_as_fast_as_it_says_and_is_not_scaled(tmp_path, capfd):
    env = make_gymnasium(Dial, 1, render_mode="rgb_array")
    path = record_video(Still(1), env, tmp_path / "dial.mp4", seed=0)
    assert iio.immeta(path)["fps"] == 10
    frames = iio.imread(path)
    assert frames.shape == (30, 102, 68, 3)
    assert capfd.readouterr() == ("", "")


def test_a_film_of_a_quick_environment_leaves_steps_out_and_stays_in_real_time(tmp_path, monkeypatch):
    monkeypatch.setitem(Dial.metadata, "render_fps", 120)
    policy = Still(1)
    env = make_gymnasium(Dial, 1, render_mode="rgb_array")
    path = record_video(policy, env, tmp_path / "dial.mp4", seed=0, deterministic=False)
    assert iio.immeta(path)["fps"] == 30
    greys = iio.imread(path).mean(axis=(1, 2, 3))
    assert greys - greys[0] == pytest.approx([5 * step for step in range(0, 30, 4)], abs=4)
    assert policy.asked == {True: 0, False: 30}


def test_watching_ends_with_the_episodes_that_were_asked_for():
    policy = Still(1)
    watch(policy, make_gymnasium(Dial, 1), seed=0, episodes=2)  # Gymnasium's environments draw themselves
    assert policy.asked == {True: 60, False: 0}
    watch(policy, make_gymnasium(Dial, 1), seed=0, episodes=1, deterministic=False)
    assert policy.asked == {True: 60, False: 30}


def test_what_cannot_be_pictured_leaves_nothing_behind(tmp_path):
    with pytest.raises(EnvError):
        record_video(Still(1), make_gymnasium(Dial, 1), tmp_path / "videos" / "dial.mp4", seed=0)
    with pytest.raises(EnvError):
        record_video(Still(1), make_vec_env("probe/IdentityContinuous-v0"), tmp_path / "videos" / "x.mp4", seed=0)
    assert not any(tmp_path.iterdir())
