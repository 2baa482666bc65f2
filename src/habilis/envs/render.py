"""Frames of one environment as pictures: through MuJoCo for native environments, through the environment for others.

MuJoCo opens its OpenGL context for a window by default; where there is no screen this module asks for EGL instead,
which renders off screen, in software if there is no GPU (about 22 frames a second at 320x240 on one core).
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from habilis.core.errors import ConfigError, EnvError


@dataclass(frozen=True)
class View:
    """Where a camera stands that moves with nothing."""

    lookat: tuple[float, float, float]
    """What is in the middle of the picture, m."""
    distance: float
    """From there to the camera, m."""
    elevation: float = 0.0
    """Of the direction in which it looks, degrees: -90 is straight down."""
    azimuth: float = 90.0
    """Of the same about the vertical, degrees: at 90 the x axis points to the right."""


class Renderer:
    """Takes pictures of environment `index` of `env`.

    A native environment is looked at through `camera`, or else through the model's camera called `track`, or else from
    a free camera that follows the first body that moves freely. Any other environment must have been made with
    `render_mode="rgb_array"` and draws itself, in its own size.

    Args:
        env: a `VecEnv`.
        index: which of its environments.
        width: of a native environment's frames, in pixels.
        height: of the same.
        camera: name of a camera of the model, or where to put one; native environments only.
        quick: leave out shadows, reflections, the sky and smooth edges: for small pictures that a policy sees, about
            two thousand a second; native environments only.
        even: light everything from everywhere, so that small things show their own colours; native environments only.

    Raises:
        ConfigError: if there is no such camera.
        EnvError: if no picture can be taken, here or of this environment.
    """

    def __init__(
        self,
        env: Any,
        index: int = 0,
        *,
        width: int = 640,
        height: int = 480,
        camera: str | View | None = None,
        quick: bool = False,
        even: bool = False,
    ) -> None:
        _render_without_a_screen()
        self._env = env
        self._index = index
        self._simulation = getattr(env, "simulation", None)
        if self._simulation is None:
            if not hasattr(env, "render"):
                raise no_picture(env)
            if camera is not None or index != 0:
                raise ConfigError(
                    f"{env.spec.id} draws its first environment from its own camera: only a native environment offers "
                    f"others, got camera {camera!r} and index {index}"
                )
            return
        import mujoco

        model = self._simulation.get_model(index)
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        # a finer map of shadows is not seen at the size of a film, and takes a third of the time in software
        model.vis.quality.shadowsize = min(2048, model.vis.quality.shadowsize)
        if quick:
            model.vis.quality.offsamples, model.vis.quality.numslices, model.vis.quality.numstacks = 0, 12, 8
        if even:
            light = model.vis.headlight
            light.ambient[:], light.diffuse[:], light.specular[:] = 0.8, 0.2, 0.0
        self._model, self._data = model, mujoco.MjData(model)
        self._camera = _choose_camera(model, camera)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # every OpenGL backend raises its own
            raise EnvError(
                f"MuJoCo cannot render here with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} ({error}): install a "
                "driver for it (say libegl1) or set MUJOCO_GL to egl, osmesa or glfw"
            ) from error
        if quick:
            for flag in ("SHADOW", "REFLECTION", "SKYBOX"):
                self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False

    def frame(self, index: int | None = None) -> np.ndarray:
        """Return `[height, width, 3]` uint8: the environment as it is now.

        Args:
            index: another environment than that of the renderer; native environments only.
        """
        if self._simulation is None:
            return np.asarray(self._env.render(), dtype=np.uint8)
        index = self._index if index is None else int(index)
        self._simulation.copy_to(index, self._model, self._data)
        self._renderer.update_scene(self._data, self._camera)
        return np.asarray(self._renderer.render())

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._simulation is not None:
            self._renderer.close()


def has_screen() -> bool:
    """Whether a window can be opened here."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def no_picture(env: Any) -> EnvError:
    """Return the error that says why there is no picture of an environment that has no `render`."""
    id = env.spec.id
    if env.spec.backend == "envpool":
        return EnvError(
            f"EnvPool draws no pictures of {id}: show the policy in the environment of that name that is not EnvPool's "
            f"(--env {id}), or else in one with the same observations and actions (--env ID)"
        )
    return EnvError(f"{id} has no picture: it is made of numbers alone, which `habilis evaluate` sums up")


def _render_without_a_screen() -> None:
    """Let MuJoCo (and what renders through it) use EGL where there is no screen and the user has chosen nothing."""
    if has_screen() or os.environ.get("MUJOCO_GL"):
        return
    os.environ["MUJOCO_GL"] = "egl"
    if "mujoco.rendering.classic.gl_context" in sys.modules:  # it has read the variable already
        importlib.reload(sys.modules["mujoco.rendering.classic.gl_context"])


def _choose_camera(model: Any, name: str | View | None) -> Any:
    """Return what `mujoco.Renderer.update_scene` takes as a camera."""
    import mujoco

    if isinstance(name, View):
        camera = mujoco.MjvCamera()
        camera.lookat[:] = name.lookat
        camera.distance, camera.elevation, camera.azimuth = name.distance, name.elevation, name.azimuth
        return camera
    names = [model.camera(i).name for i in range(model.ncam)]
    if name is not None and name not in names:
        raise ConfigError(f"the model has no camera {name!r}: it has {', '.join(names) or 'none'}")
    if name is not None or "track" in names:
        return name or "track"
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE.value)
    if free.size:
        camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING.value
        camera.trackbodyid = int(model.jnt_bodyid[free[0]])
    return camera
