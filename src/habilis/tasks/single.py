"""One copy of a task as an ordinary `gymnasium.Env`, for libraries that know no other kind."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from habilis.core.specs import BoxAction, DiscreteAction
from habilis.core.types import Obs
from habilis.envs.make import make_vec_env
from habilis.envs.render import Renderer

FRAMES_PER_SECOND = 30
"""Of a task that does not know how long a step takes."""


class SingleTask(gymnasium.Env):
    """The N = 1 of a registered task: observations are its group `policy`; info holds its terms as numbers.

    Args:
        id: a task that `habilis.tasks` registers.
        render_mode: `"rgb_array"`; `"ansi"` for text, which a grid world has; or None.
        width: of a frame, in pixels; a task that is no simulation has a size of its own.
        height: of a frame, in pixels; the same.
        **kwargs: arguments of the task.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 50}  # noqa: RUF012  (the name Gymnasium reads)

    def __init__(
        self, id: str, render_mode: str | None = None, width: int = 640, height: int = 480, **kwargs: Any
    ) -> None:
        self.task = make_vec_env(id, 1, backend="native", threads=1, **kwargs)
        self.render_mode = render_mode
        self._size = (width, height)
        self._renderer: Renderer | None = None
        self._closed = False
        group, action = self.task.spec.obs["policy"], self.task.spec.action
        self.observation_space: spaces.Space
        if group.is_image:
            self.observation_space = spaces.Box(0, 255, group.shape, np.uint8)
        elif len(group.one_hot) == 1:
            self.observation_space = spaces.Discrete(group.size)
        else:
            self.observation_space = spaces.Box(-np.inf, np.inf, group.shape, np.float32)
        assert isinstance(action, BoxAction | DiscreteAction)
        self.action_space: spaces.Space = (
            spaces.Box(action.low, action.high) if isinstance(action, BoxAction) else spaces.Discrete(action.n)
        )
        modes = ["rgb_array", "ansi"] if hasattr(self.task, "text") else ["rgb_array"]
        control_dt = self.task.spec.control_dt
        frames = round(1.0 / control_dt) if control_dt else FRAMES_PER_SECOND
        self.metadata = {"render_modes": modes, "render_fps": frames}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
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
        """Return the group `policy` of the one environment: an array, or the number of a discrete state."""
        row = obs["policy"][0]
        return int(row.argmax()) if isinstance(self.observation_space, spaces.Discrete) else row.numpy()

    def close(self) -> None:
        """Free the threads and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if not self._closed:
            self.task.close()
        self._closed = True
