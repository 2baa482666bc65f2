"""Gymnasium's MuJoCo v5 tasks as native batched twins: the same numbers, many environments in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from habilis.core.config import episode_limit, made_of, require_positive
from habilis.core.errors import ConfigError, did_you_mean
from habilis.envs.mujoco.arms import Pusher, Reacher
from habilis.envs.mujoco.native import NativeMujocoEnv, Pixels
from habilis.envs.mujoco.pendulums import InvertedDoublePendulum, InvertedPendulum
from habilis.envs.mujoco.runners import HalfCheetah, Hopper, Swimmer, Walker2d
from habilis.envs.mujoco.walkers import Ant, Humanoid
from habilis.envs.render import View

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

PIXEL_IDS: dict[str, str] = {f"habilis/{id.removesuffix('-v5')}Pixels-v0": id for id in NATIVE_IDS}
"""Ids of the same tasks seen by a camera, and which task each is."""

PIXEL_SIZE = 64
"""Pixels a side of what a camera shows by default."""

_VIEWS: dict[str, View] = {
    "InvertedDoublePendulum-v5": View((0.0, 0.0, 0.45), 3.0),
    "InvertedPendulum-v5": View((0.0, 0.0, 0.2), 2.6),
    "Pusher-v5": View((0.2, -0.2, -0.2), 1.5, elevation=-60.0),
    # from above, and no farther away than shows wherever fingertip and target may be
    "Reacher-v5": View((0.0, 0.0, 0.01), 0.55, elevation=-90.0),
}
"""Where the camera stands for models without one that follows the robot."""


def make_native(
    id: str,
    num_envs: int,
    *,
    seed: int,
    threads: int | None = None,
    max_episode_steps: int | None = None,
    pixels: int | None = None,
    camera: str | None = None,
    critic_state: bool = False,
    **kwargs: Any,
) -> NativeMujocoEnv:
    """Make the native twin of a Gymnasium MuJoCo environment.

    Args:
        id: one of `NATIVE_IDS` or `PIXEL_IDS`.
        num_envs: how many environments are stepped together.
        seed: of the stream that episodes are started from.
        threads: CPU threads; None measures which number is fastest.
        max_episode_steps: steps after which an episode is truncated; None takes Gymnasium's, -1 sets no limit.
        pixels: show the policy a picture of so many pixels a side instead of the state; None: as the id says.
        camera: of the model, through which the picture is taken; None: one that follows the robot or shows all of it.
        critic_state: with pictures, show the state besides, as the group `critic`.
        kwargs: the arguments of Gymnasium's own class, those of rendering excepted.

    Raises:
        ConfigError: an id without a twin, or an argument that the environment does not have or of another type.
    """
    task = PIXEL_IDS.get(id, id)
    if task not in _ROBOTS:
        raise ConfigError(f"there is no native twin of {id!r}{did_you_mean(id, NATIVE_IDS)}; take another backend")
    robot = made_of(id, _ROBOTS[task], kwargs, "max_episode_steps", "pixels", "camera", "critic_state")
    require_positive(robot, "frame_skip")
    pixels = PIXEL_SIZE if pixels is None and id in PIXEL_IDS else pixels
    if pixels is None and (camera is not None or critic_state):
        raise ConfigError(f"camera and critic_state are for pictures: make {id} with pixels, {PIXEL_SIZE} say")
    if pixels is not None and pixels < 1:
        raise ConfigError(f"pixels must be positive, got {pixels}")
    limit = episode_limit(max_episode_steps, gymnasium.spec(task).max_episode_steps)
    shown = None
    if pixels is not None:
        shown = Pixels(size=pixels, camera=camera or _VIEWS.get(task), critic_state=critic_state)
    return NativeMujocoEnv(id, robot, num_envs, max_episode_steps=limit, seed=seed, threads=threads, pixels=shown)
