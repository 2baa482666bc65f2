"""The viewer where there is nothing to show, or nothing to show it on; with a screen it is looked at by eye."""

from __future__ import annotations

import sys

import pytest

import habilis.tasks  # noqa: F401  (registers)
from habilis.core.errors import EnvError
from habilis.envs.make import make_vec_env
from habilis.envs.render import Renderer, has_screen
from habilis.envs.viewer import Viewer


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
@pytest.mark.parametrize("display", [None, ":987"])
def test_a_screen_that_cannot_be_reached_is_an_error_and_not_a_wait(display, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    assert has_screen() == (display is not None)
    env = make_vec_env("InvertedPendulum-v5", threads=1)
    with pytest.raises(EnvError, match="no screen"):
        Viewer(env)
    env.close()


def test_what_is_no_simulation_has_no_viewer():
    with pytest.raises(EnvError, match="record a video of it"):
        Viewer(make_vec_env("habilis/GridWorld-v0"))


@pytest.mark.parametrize("show", [Viewer, Renderer])
def test_why_there_is_no_picture_is_told(show):
    with pytest.raises(EnvError, match="probe/Memory-v0 has no picture"):
        show(make_vec_env("probe/Memory-v0"))
    pytest.importorskip("envpool")
    with pytest.raises(EnvError, match=r"EnvPool draws no pictures of CartPole-v1: .* \(--env CartPole-v1\)"):
        show(make_vec_env("CartPole-v1", backend="envpool"))
