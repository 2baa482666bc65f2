"""F3: robots and tasks of our own. Importing this package registers them with `make_vec_env` and with Gymnasium.

The simulator is imported when a task is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from habilis.core.protocols import VecEnv
from habilis.envs.make import register_native


def _quadruped_walk(id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    from habilis.tasks.quadruped import make_quadruped_walk

    return make_quadruped_walk(id, num_envs, **kwargs)


_TASKS = {"habilis/QuadrupedWalk-v0": _quadruped_walk}

for _id, _builder in _TASKS.items():
    register_native(_id, _builder)
    # the task truncates its own episodes, so Gymnasium is given no limit to add
    gymnasium.register(_id, entry_point="habilis.tasks.single:SingleTask", kwargs={"id": _id})
