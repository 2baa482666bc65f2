"""One copy of a task as an ordinary `gymnasium.Env`, for libraries that know no other kind."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from habilis.envs.make import make_vec_env
from habilis.envs.render import Renderer
from habilis.tasks.task import Task


class SingleTask(gymnasium.Env):
    """The N = 1 of a registered task: observations are its group `policy`, float32; info holds its terms as numbers.

    Args:
        id: a task that `habilis.tasks` registers.
        render_mode: `"rgb_array"`, or None.
        width: of a frame, in pixels.
        height: of a frame, in pixels.
        **kwargs: arguments of the task.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012  (the name Gymnasium reads)

    def __init__(
        self, id: str, render_mode: str | None = None, width: int = 640, height: int = 480, **kwargs: Any
    ) -> None:
        self.task = cast(Task, make_vec_env(id, 1, backend="native", threads=1, **kwargs))
        self.render_mode = render_mode
        self._size = (width, height)
        self._renderer: Renderer | None = None
        self._closed = False
        self.observation_space = spaces.Box(-np.inf, np.inf, self.task.spec.obs["policy"].shape, np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (len(self.task.spec.action_names),), np.float32)
        self.metadata = {**self.metadata, "render_fps": round(1.0 / self.task.control_dt)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        return self.task.reset(seed)["policy"][0].numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action `[nu]`."""
        step = self.task.step(torch.from_numpy(np.asarray(action, dtype=np.float32))[None])
        info = {name: value[0].item() for name, value in step.info.items()}
        return (
            step.next_obs["policy"][0].numpy(),
            step.reward.item(),
            bool(step.terminated),
            bool(step.truncated),
            info,
        )

    def render(self) -> np.ndarray | None:
        """Return a frame `[height, width, 3]` uint8 from the tracking camera."""
        if self.render_mode != "rgb_array":
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.task, width=self._size[0], height=self._size[1])
        return self._renderer.frame()

    def close(self) -> None:
        """Free the threads and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if not self._closed:
            self.task.close()
        self._closed = True
