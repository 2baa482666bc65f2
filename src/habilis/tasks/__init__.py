"""F3: robots and tasks of our own. Importing this package registers them with `make_vec_env` and with Gymnasium.

The simulator is imported when a task is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from habilis.core.protocols import VecEnv
from habilis.envs.gridworld import make_gridworld
from habilis.envs.make import NativeBuilder, register_native
from habilis.tasks.no_velocity import NO_VELOCITY, make_no_velocity


def _quadruped_walk(id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    from habilis.tasks.quadruped import make_quadruped_walk

    return make_quadruped_walk(id, num_envs, **kwargs)


def _object_sorting(id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    from habilis.tasks.object_sorting import ObjectSorting

    return ObjectSorting(id, num_envs, camera="Camera" in id, **kwargs)


def _point_reach(id: str, num_envs: int, *, threads: int | None = None, **kwargs: Any) -> VecEnv:
    from habilis.tasks.point_reach import PointReach

    return PointReach(id, num_envs, discrete="Discrete" in id, goal="Goal" in id, **kwargs)


def _catch(id: str, num_envs: int, *, threads: int | None = None, **kwargs: Any) -> VecEnv:
    from habilis.tasks.catch import Catch

    return Catch(id, num_envs, **kwargs)


def _pixels(id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    from habilis.envs.mujoco import make_native

    return make_native(id, num_envs, **kwargs)


_SEEN = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "InvertedDoublePendulum", "InvertedPendulum", "Pusher")
_SEEN += ("Reacher", "Swimmer", "Walker2d")
"""The native twins of Gymnasium's tasks, each of which can be seen by a camera."""

_TASKS: dict[str, NativeBuilder] = {
    "habilis/Catch-v0": _catch,
    "habilis/GridWorld-v0": make_gridworld,
    "habilis/ObjectSorting-v0": _object_sorting,
    "habilis/ObjectSortingCamera-v0": _object_sorting,
    "habilis/PointReach-v0": _point_reach,
    "habilis/PointReachDiscrete-v0": _point_reach,
    "habilis/PointReachGoal-v0": _point_reach,
    "habilis/QuadrupedWalk-v0": _quadruped_walk,
    **{f"habilis/{name}Pixels-v0": _pixels for name in _SEEN},
    **dict.fromkeys(NO_VELOCITY, make_no_velocity),
}

for _id, _builder in _TASKS.items():
    register_native(_id, _builder)
    # the task truncates its own episodes, so Gymnasium is given no limit to add
    gymnasium.register(_id, entry_point="habilis.tasks.single:SingleTask", kwargs={"task": _id})
