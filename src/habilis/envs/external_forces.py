"""`cfrc_ext`, the force and torque from outside on each body, computed by MuJoCo's own threads.

MuJoCo fills it where a sensor asks for it, and never from the last stage of a Runge-Kutta step; Gymnasium calls
`mj_rnePostConstraint` after each step. A batch has no place for such a call, and the contacts that it reads lie in the
arena of each simulation, from which copying them costs more than the function. But engine plugins are called at the end
of every substep, on the thread that made it. So `mj_rnePostConstraint` itself is registered as what a plugin does then:
MuJoCo calls MuJoCo, with the bits of Gymnasium, and nearly for nothing.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

import mujoco

from habilis.core.errors import EnvError
from habilis.envs.mujoco_library import PACKAGE, mujoco_library

PLUGIN = "habilis.external_forces"


def compute_external_forces(spec: mujoco.MjSpec) -> None:
    """Let the model that `spec` is compiled to hold `cfrc_ext` after every substep.

    Raises:
        EnvError: MuJoCo's library or its header is not where its package has it.
    """
    _register()
    spec.activate_plugin(PLUGIN)
    spec.add_plugin(name=PLUGIN, plugin_name=PLUGIN, active=True)


def has_external_forces(model: mujoco.MjModel) -> bool:
    """Return whether `compute_external_forces` was asked for this model."""
    return bool(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_PLUGIN, PLUGIN) >= 0)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
def _no_state(model: int, instance: int) -> int:
    """Return how many numbers the plugin remembers; asked when a model is compiled."""
    return 0


@cache
def _register() -> None:
    """Make the plugin known to MuJoCo, once a process."""
    header = PACKAGE / "include" / "mujoco" / "mjplugin.h"
    library = mujoco_library()
    if library is None or not header.is_file():
        raise EnvError(
            f"MuJoCo's library or {header.name} is not in {PACKAGE}, and without them no external forces are computed: "
            "install mujoco anew from its wheel, or take --env-backend gymnasium"
        )
    plugin = _layout(header.read_text(encoding="utf-8"))()
    library.mjp_defaultPlugin(ctypes.byref(plugin))
    plugin.name = PLUGIN.encode()
    plugin.nstate = ctypes.cast(_no_state, ctypes.c_void_p)
    plugin.advance = ctypes.cast(library.mj_rnePostConstraint, ctypes.c_void_p)
    library.mjp_registerPlugin(ctypes.byref(plugin))  # which copies it


def _layout(header: str) -> type[ctypes.Structure]:
    """Return the struct by which MuJoCo is told of a plugin, as the header of this very version has it."""
    body = re.search(r"struct mjpPlugin_ \{(.*?)\} mjpPlugin;", header, re.DOTALL)
    if body is None:
        raise EnvError("mjplugin.h does not declare mjpPlugin as known: take --env-backend gymnasium")
    fields: list[tuple[str, type]] = []
    for declaration in re.sub("//.*", "", body[1]).split(";")[:-1]:
        function = re.search(r"\(\*(\w+)\)", declaration)
        name = function[1] if function else declaration.split()[-1]
        fields.append((name, ctypes.c_void_p if "*" in declaration else ctypes.c_int))
    fields[0] = ("name", ctypes.c_char_p)
    return type("Plugin", (ctypes.Structure,), {"_fields_": fields})
