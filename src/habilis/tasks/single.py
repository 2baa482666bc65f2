"""One copy of a task as an ordinary `gymnasium.Env`, for libraries that know no other kind."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from habilis.core.errors import EnvError
from habilis.core.specs import ACHIEVED, DESIRED, BoxAction, DiscreteAction, ObsGroup
from habilis.core.types import Obs
from habilis.envs.make import make_vec_env
from habilis.envs.render import Renderer

FRAMES_PER_SECOND = 30
"""Of a task that does not know how long a step takes."""


class SingleTask(gymnasium.Env):
    """The N = 1 of a registered task: observations are its group `policy`; info holds its terms as numbers.

    Where the task has goals, observations are a Dict of `observation`, `achieved_goal` and `desired_goal`.

    Args:
        task: the id of one that `habilis.tasks` registers.
        render_mode: `"rgb_array"`; `"ansi"` for text, which a grid world has; or None.
        width: of a frame, in pixels; a task that is no simulation has a size of its own.
        height: of a frame, in pixels; the same.
        **kwargs: arguments of the task.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 50}  # noqa: RUF012  (the name Gymnasium reads)

    def __init__(
        self, task: str, render_mode: str | None = None, width: int = 640, height: int = 480, **kwargs: Any
    ) -> None:
        self.task = make_vec_env(task, 1, backend="native", threads=1, **kwargs)
        self._seeded = "seed" in kwargs
        self.render_mode = render_mode
        self._size = (width, height)
        self._renderer: Renderer | None = None
        self._closed = False
        spec, action = self.task.spec, self.task.spec.action
        self.observation_space: spaces.Space = _space(spec.obs["policy"])
        if spec.has_goals:
            goals = {name: _space(spec.obs[name]) for name in (ACHIEVED, DESIRED)}
            self.observation_space = spaces.Dict({"observation": self.observation_space, **goals})
        assert isinstance(action, BoxAction | DiscreteAction)
        self.action_space: spaces.Space = (
            spaces.Box(action.low, action.high) if isinstance(action, BoxAction) else spaces.Discrete(action.n)
        )
        modes = ["rgb_array", "ansi"] if hasattr(self.task, "text") else ["rgb_array"]
        control_dt = self.task.spec.control_dt
        frames = round(1.0 / control_dt) if control_dt else FRAMES_PER_SECOND
        self.metadata = {"render_modes": modes, "render_fps": frames}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; without any seed so far, by one of chance, as environments of Gymnasium do."""
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        self._seeded = True
        return self._observation(self.task.reset(seed)), {}

    def step(self, action: np.ndarray | int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply one action: `[dim]`, or the number of a choice."""
        step = self.task.step(torch.from_numpy(np.asarray(action, dtype=self.action_space.dtype))[None])
        info = {name: value[0].item() for name, value in step.info.items()}
        return (
            self._observation(step.next_obs),
            step.reward.item(),
            bool(step.terminated),
            bool(step.truncated),
            info,
        )

    def compute_reward(
        self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any = None
    ) -> np.ndarray | np.float32:
        """Return what reaching a goal pays, for one or a batch of them.

        Raises:
            EnvError: the task has no goals.
        """
        if not self.task.spec.has_goals:
            raise EnvError(f"{self.task.spec.id} has no goals: its rewards follow from more than what was reached")
        goals = (torch.from_numpy(np.asarray(goal, np.float32)) for goal in (achieved_goal, desired_goal))
        return self.task.compute_reward(*goals).numpy()[()]  # type: ignore[attr-defined, no-any-return]

    def render(self) -> np.ndarray | str | None:
        """Return a frame `[height, width, 3]` uint8, or lines of text."""
        if self.render_mode == "ansi":
            return self.task.text()  # type: ignore[attr-defined, no-any-return]
        if self.render_mode != "rgb_array":
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.task, width=self._size[0], height=self._size[1])
        return self._renderer.frame()

    def _observation(self, obs: Obs) -> Any:
        """Return what the one environment shows: an array, the number of a discrete state, or a dict with goals."""
        row = obs["policy"][0]
        if self.task.spec.has_goals:
            return {"observation": row.numpy(), **{name: obs[name][0].numpy() for name in (ACHIEVED, DESIRED)}}
        return int(row.argmax()) if isinstance(self.observation_space, spaces.Discrete) else row.numpy()

    def close(self) -> None:
        """Free the threads and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if not self._closed:
            self.task.close()
        self._closed = True


def _space(group: ObsGroup) -> spaces.Space:
    if group.is_image:
        return spaces.Box(0, 255, group.shape, np.uint8)
    if len(group.one_hot) == 1:
        return spaces.Discrete(group.size)
    return spaces.Box(-np.inf, np.inf, group.shape, np.float32)
