"""A film of a policy at work, in real time, as an mp4 file that every browser plays (extra `video`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from habilis.core.config import require
from habilis.core.errors import HabilisError, explain_os_error, import_extra
from habilis.core.protocols import Policy, VecEnv
from habilis.core.specs import require_made_for
from habilis.envs.render import Renderer
from habilis.evaluation.evaluator import evaluation_seed, rollout
from habilis.evaluation.grid_policy import show_policy

FRAMES_PER_SECOND = 30
"""What a film comes near to; also the steps a second of an environment that does not know them."""


def steps_a_second(env: VecEnv) -> float:
    """Return how many steps of an environment are a second, for who looks at it."""
    if env.spec.control_dt:
        return 1 / env.spec.control_dt
    return getattr(env, "render_fps", None) or FRAMES_PER_SECOND


def record_video(
    policy: Policy,
    env: VecEnv,
    path: Path,
    *,
    seed: int,
    episodes: int = 1,
    seconds: float | None = 20.0,
    width: int = 640,
    height: int = 480,
    deterministic: bool = True,
    device: str | torch.device | None = None,
) -> Path:
    """Film `policy` in the first environment of `env` and return `path`; a grid world shows the policy in every cell.

    Args:
        policy: what acts; left as it was found.
        env: one environment, reset here; one that is not native needs `render_mode="rgb_array"`.
        path: an mp4 file, which appears when it is complete.
        seed: as in `evaluate`: the film of a seed shows the episodes that the evaluation with one environment counts.
        episodes: how many to show.
        seconds: the film's greatest length; None: as long as the episodes take.
        width: in pixels, for native environments.
        height: in pixels, for native environments.
        deterministic: whether the policy acts by its mode or mean instead of drawing.
        device: where the policy computes; None for where its parameters are.

    Raises:
        ConfigError: if `path` is no mp4 file's, `episodes` is not positive, or the policy was made for another kind of
            environment.
        MissingExtraError: if imageio or its ffmpeg is not installed.
        EnvError: if the environment cannot be rendered.
        HabilisError: if the film cannot be written.
    """
    require_film(path)
    require(episodes > 0, f"episodes must be positive, got {episodes}")
    require_made_for(policy, env.spec)
    rate = steps_a_second(env)
    stride = max(1, round(rate / FRAMES_PER_SECOND))
    shows_ends = getattr(env, "shows_ends", False)
    show_policy(policy, env)
    ended = 0
    with (
        _published(path) as partial,
        _film(partial, rate / stride) as film,
        closing(Renderer(env, width=width, height=height)) as renderer,
        closing(rollout(policy, env, seed=seed, deterministic=deterministic, device=device)) as steps,
    ):
        env.reset(evaluation_seed(seed))  # where the rollout begins too
        film.append_data(_even(renderer.frame()))
        for count, step in enumerate(steps, start=1):
            done = bool(step.done[0])
            # after the last step most environments show their next episode
            if count % stride == 0 and (not done or shows_ends):
                film.append_data(_even(renderer.frame()))
            ended += done
            if ended == episodes or (seconds is not None and count + 1 >= seconds * rate):
                break
    return path


def require_film(path: Path) -> None:
    """Raise unless a film can be written to a path.

    Raises:
        ConfigError: the path is not that of an mp4 file.
        MissingExtraError: imageio or its ffmpeg is not installed.
    """
    require(path.suffix == ".mp4", f"a film is an mp4 file, and {path} does not end in .mp4: name it so")
    for package in ("imageio", "imageio_ffmpeg"):  # which imageio finds by itself
        import_extra(package, "video")


def _even(frame: np.ndarray) -> np.ndarray:
    """Return a picture of even sides, as the codec needs them: with its last row or column twice where one is odd."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge") if height % 2 or width % 2 else frame


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """Give a place for a file, which takes the name `path` when the block has ended well; no empty folder stays."""
    new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            yield Path(folder) / path.name
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        # of ffmpeg, to which the frames go, nothing is heard but that it has gone
        raise HabilisError(f"{path} could not be written ({explain_os_error(error, named=True)})") from error
    finally:
        if new:
            with suppress(OSError):  # it holds something
                path.parent.rmdir()


def _film(path: Path, frames_per_second: float) -> Any:
    """Open an mp4 file that frames are appended to."""
    return import_extra("imageio.v2", "video").get_writer(
        path,
        fps=frames_per_second,
        codec="libx264",
        macro_block_size=2,  # what yuv420p needs; the usual 16 would stretch the picture
        output_params=["-crf", "24", "-movflags", "+faststart"],
    )
