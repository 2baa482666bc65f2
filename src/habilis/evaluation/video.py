"""A film of a policy at work, in real time, as an mp4 file that every browser plays (extra `video`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from habilis.core.errors import HabilisError, MissingExtraError, explain_os_error
from habilis.core.protocols import Policy, VecEnv
from habilis.envs.render import Renderer
from habilis.evaluation.evaluator import evaluation_seed, rollout
from habilis.evaluation.grid_policy import show_policy

FRAMES_PER_SECOND = 30
"""What a film comes near to; also the speed at which an environment that does not know its `control_dt` is shown."""


def record_video(
    policy: Policy,
    env: VecEnv,
    path: Path,
    *,
    seed: int,
    episodes: int = 1,
    seconds: float = 20.0,
    width: int = 640,
    height: int = 480,
    camera: str | None = None,
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
        seconds: the film's greatest length.
        width: in pixels, for native environments.
        height: in pixels, for native environments.
        camera: name of a camera of the model; None for one that follows the robot.
        deterministic: whether the policy acts by its mode or mean instead of drawing.
        device: where the policy computes; None for where its parameters are.

    Raises:
        MissingExtraError: if imageio or its ffmpeg is not installed.
        EnvError: if the environment cannot be rendered.
        HabilisError: if the film cannot be written.
    """
    rate = 1 / env.spec.control_dt if env.spec.control_dt else FRAMES_PER_SECOND
    stride = max(1, round(rate / FRAMES_PER_SECOND))
    shows_ends = getattr(env, "shows_ends", False)
    show_policy(policy, env)
    path = Path(path)
    ended = 0
    with (
        _published(path) as partial,
        _film(partial, rate / stride) as film,
        closing(Renderer(env, width=width, height=height, camera=camera)) as renderer,
        closing(rollout(policy, env, seed=seed, deterministic=deterministic, device=device)) as steps,
    ):
        env.reset(evaluation_seed(seed))  # where the rollout begins too
        film.append_data(renderer.frame())
        for count, step in enumerate(steps, start=1):
            done = bool(step.done[0])
            # after the last step most environments show their next episode
            if count % stride == 0 and (not done or shows_ends):
                film.append_data(renderer.frame())
            ended += done
            if ended == episodes or count + 1 >= seconds * rate:
                break
    return path


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """Give a place for a file, which takes the name `path` when the block has ended well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            yield Path(folder) / path.name
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        # of ffmpeg, to which the frames go, nothing is heard but that it has gone
        raise HabilisError(f"{path} could not be written ({explain_os_error(error, named=True)})") from error


def _film(path: Path, frames_per_second: float) -> Any:
    """Open an mp4 file that frames are appended to."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # type: ignore[import-untyped]  # noqa: F401  imageio finds it by itself
    except ImportError:
        raise MissingExtraError("imageio with imageio-ffmpeg", "video") from None
    return imageio.get_writer(
        path,
        fps=frames_per_second,
        codec="libx264",
        macro_block_size=2,  # what yuv420p needs; the usual 16 would stretch the picture
        output_params=["-crf", "24", "-movflags", "+faststart"],
    )
