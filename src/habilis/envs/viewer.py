"""A window on one environment as it runs: MuJoCo's own viewer for native environments."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from habilis.core.errors import EnvError
from habilis.envs.render import has_screen, no_picture


class Viewer:
    """MuJoCo's viewer on environment `index` of a native `env`; the user may look around while the policy acts.

    Raises:
        EnvError: if the environment is no simulation, or no window can be opened.
    """

    def __init__(self, env: Any, index: int = 0) -> None:
        if not hasattr(env, "simulation"):
            if not hasattr(env, "render"):
                raise no_picture(env)
            raise EnvError(f"{env.spec.id} is no MuJoCo simulation that a viewer could show: record a video of it")
        import glfw
        import mujoco
        import mujoco.viewer

        # MuJoCo would wait for ever for a window that its thread cannot open
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reachable = has_screen() and glfw.init()
        if not reachable:
            raise EnvError(
                "no window can be opened here, since there is no screen to be reached: record a video instead"
            )
        self._simulation = env.simulation
        self._index = index
        self._model = self._simulation.get_model(index)
        self._data = self._simulation.get_data(index)
        others = set(threading.enumerate())
        self._window = mujoco.viewer.launch_passive(self._model, self._data, show_left_ui=False, show_right_ui=False)
        self._threads = set(threading.enumerate()) - others

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed the window."""
        return bool(self._window.is_running())

    def show(self) -> None:
        """Show the environment as it is now."""
        with self._window.lock():
            self._simulation.copy_to(self._index, self._model, self._data)
        self._window.sync()

    def close(self) -> None:
        """Close the window and wait until it is: a process that ends while it is being closed crashes."""
        self._window.close()
        for thread in self._threads:
            thread.join(timeout=5.0)
