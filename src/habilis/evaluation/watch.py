"""A policy at work before one's eyes, in real time."""

from __future__ import annotations

import time
from contextlib import closing

from habilis.core.protocols import Policy, VecEnv
from habilis.envs.viewer import Viewer
from habilis.evaluation.evaluator import rollout
from habilis.evaluation.video import steps_a_second


def watch(policy: Policy, env: VecEnv, *, seed: int, episodes: int | None = None, deterministic: bool = True) -> None:
    """Show `policy` in the first environment of `env` until the window is closed.

    Args:
        policy: what acts; left as it was found.
        env: one environment, reset here; one of Gymnasium's must draw itself (`render_mode="human"`).
        seed: as in `evaluate`.
        episodes: how many to show; None for no end.
        deterministic: whether the policy acts by its mode or mean instead of drawing.

    Raises:
        EnvError: if no window can be opened.
    """
    seconds = 1 / steps_a_second(env)
    ended = 0
    with closing(rollout(policy, env, seed=seed, deterministic=deterministic)) as steps:
        viewer = None if env.spec.backend == "gymnasium" else Viewer(env)
        try:
            due = time.monotonic()
            for step in steps:
                if viewer is not None:
                    viewer.show()
                    due = max(due + seconds, time.monotonic() - seconds)  # after a stall, do not race to catch up
                    time.sleep(max(0.0, due - time.monotonic()))
                ended += bool(step.done[0])
                if ended == episodes or (viewer is not None and not viewer.is_open):
                    break
        finally:
            if viewer is not None:
                viewer.close()
