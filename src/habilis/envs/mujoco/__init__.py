"""Gymnasium's MuJoCo v5 tasks as native batched twins: the same numbers, many environments in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gymnasium

from habilis.core.errors import ConfigError, did_you_mean
from habilis.envs.mujoco.arms import Pusher, Reacher
from habilis.envs.mujoco.native import NativeMujocoEnv
from habilis.envs.mujoco.pendulums import InvertedDoublePendulum, InvertedPendulum
from habilis.envs.mujoco.runners import HalfCheetah, Hopper, Swimmer, Walker2d
from habilis.envs.mujoco.walkers import Ant, Humanoid

_ROBOTS: dict[str, Callable[..., Any]] = {
    f"{robot.__name__}-v5": robot
    for robot in (
        Ant,
        HalfCheetah,
        Hopper,
        Humanoid,
        InvertedDoublePendulum,
        InvertedPendulum,
        Pusher,
        Reacher,
        Swimmer,
        Walker2d,
    )
}

NATIVE_IDS: tuple[str, ...] = tuple(_ROBOTS)
"""The Gymnasium ids that have a native twin."""


def make_native(
    id: str,
    num_envs: int,
    *,
    seed: int,
    threads: int | None = None,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> NativeMujocoEnv:
    """Make the native twin of a Gymnasium MuJoCo environment.

    Args:
        id: one of `NATIVE_IDS`.
        num_envs: how many environments are stepped together.
        seed: of the stream that episodes are started from.
        threads: CPU threads; None measures which number is fastest.
        max_episode_steps: steps after which an episode is truncated; None takes Gymnasium's.
        kwargs: the arguments of Gymnasium's own class, those of rendering excepted.

    Raises:
        ConfigError: an id without a twin, or an argument the environment does not have.
    """
    if id not in _ROBOTS:
        raise ConfigError(f"there is no native twin of {id!r}{did_you_mean(id, NATIVE_IDS)}; take another backend")
    robot = _ROBOTS[id]
    known = [field.name for field in fields(robot)]  # type: ignore[arg-type]
    for name in kwargs:
        if name not in known:
            raise ConfigError(f"{id} has no argument {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    limit = max_episode_steps or gymnasium.spec(id).max_episode_steps
    assert limit is not None  # every one of these is registered with a limit
    return NativeMujocoEnv(id, robot(**kwargs), num_envs, max_episode_steps=limit, seed=seed, threads=threads)
