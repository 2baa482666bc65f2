"""A window on one environment as it runs: MuJoCo's own viewer for native environments."""

from __future__ import annotations

import os
import sys
from typing import Any

from habilis.core.errors import EnvError


def has_screen() -> bool:
    """Whether a window can be opened here."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


class Viewer:
    """MuJoCo's viewer on environment `index` of a native `env`; the user may look around while the policy acts.

    Raises:
        EnvError: if the environment is no simulation, or no window can be opened.
    """

    def __init__(self, env: Any, index: int = 0) -> None:
        if not hasattr(env, "simulation"):
            raise EnvError(f"{env.spec.id} is no MuJoCo simulation that a viewer could show: record a video of it")
        # the viewer goes by what glfw finds, which must not be the off-screen context that rendering may have asked for
        import mujoco
        import mujoco.viewer

        self._simulation = env.simulation
        self._index = index
        self._model = self._simulation.get_model(index)
        self._data = self._simulation.get_data(index)
        self._copy = mujoco.mj_copyData
        try:
            self._window = mujoco.viewer.launch_passive(
                self._model, self._data, show_left_ui=False, show_right_ui=False
            )
        except Exception as error:  # glfw raises its own
            raise EnvError(f"MuJoCo's viewer cannot open a window here ({error}): record a video instead") from error

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed the window."""
        return bool(self._window.is_running())

    def show(self) -> None:
        """Show the environment as it is now."""
        with self._window.lock():
            self._copy(self._data, self._model, self._simulation.get_data(self._index))
        self._window.sync()

    def close(self) -> None:
        """Close the window."""
        self._window.close()
