"""`habilis play`: a policy before one's eyes, in MuJoCo's viewer or, where there is no screen, in a video.

A grid world is drawn in the terminal, with what the policy does and expects in every cell, and then filmed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from habilis.api import lay_out, play, record_video
from habilis.cli.parse import KeyValues, Switch, parse, read_env_kwargs
from habilis.core.config import require_positive
from habilis.core.files import numbered
from habilis.envs.grid_drawing import ARROWS, GOAL, OBSTACLE, WHITE, heat, ink_on
from habilis.envs.render import has_screen
from habilis.evaluation.grid_policy import GridPolicy
from habilis.saved import Which, locate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Watch a policy in a window, or record a video where there is no screen."""

    run: tyro.conf.Positional[Path]
    """Directory of a run, or of a checkpoint in one."""
    which: Which = "last"
    """The last checkpoint of a run, or the one that evaluated best."""
    risk_level: float | None = None
    """Act by the mean of this share of the worst returns, where their distribution was learnt."""
    seed: int = 0
    """Which episodes: the same as `habilis evaluate` with this seed and one environment."""
    episodes: int | None = None
    """How many; None: in a window until it is closed, in a video one of at most 20 seconds."""
    stochastic: Switch = False
    """Let the policy draw its actions, as it did in training, instead of taking their mode."""
    env: str | None = None
    """Another environment than the policy was trained in, on the same engine where that has it."""
    env_kwargs: KeyValues = field(default_factory=dict)
    """Arguments of the environment, in pairs, besides those it was trained with; another `--env` has these alone."""
    video: Path | None = None
    """Record a video into this mp4 file, even where there is a screen; None: `videos/` in the run, without a screen."""


def run(argv: Sequence[str]) -> int:
    """Open the viewer, or record and say where the video is; before that, draw a grid world."""
    o = parse(Options, argv, "play")
    require_positive(o, "episodes")
    run_dir, checkpoint = locate(o.run, o.which)
    env_kwargs = read_env_kwargs(o.env_kwargs, record_video)
    chosen = {"which": o.which, "risk_level": o.risk_level}
    settings = {**chosen, "seed": o.seed, "deterministic": not o.stochastic, **env_kwargs}
    laid_out = lay_out(o.run, o.env, **chosen, **env_kwargs)
    if laid_out is not None:
        draw(laid_out)
    elif o.video is None and has_screen():
        print("Close the window, or press Ctrl-C here, to stop.")
        with contextlib.suppress(KeyboardInterrupt):
            play(o.run, o.env, episodes=o.episodes, **settings)
        return 0
    elif o.video is None:
        print("There is no screen here: recording a video.")
    names = numbered(run_dir / "videos" / f"{checkpoint.name}_seed{o.seed}.mp4", ".mp4")
    video = o.video or next(name for name in names if not name.exists())
    length = {} if o.episodes is None else {"episodes": o.episodes, "seconds": None}
    print(record_video(o.run, video, o.env, **length, **settings))
    return 0


def draw(policy: GridPolicy) -> None:
    """Draw a policy on its grid: two lines a row of cells, arrow and value, on colours where the terminal has them."""
    grid, values = policy.grid, policy.values
    colours = {} if values is None else heat(grid, values)
    console = Console(highlight=False)
    for row in range(grid.rows):
        upper, lower = Text(), Text()
        for cell in ((row, column) for column in range(grid.columns)):
            state = grid.state(cell)
            mark, number, colour = (ARROWS + "·")[policy.actions[state]], "", colours.get(cell, WHITE)
            if cell == grid.goal:
                mark, colour = "G", GOAL
            elif cell in grid.obstacles:
                mark, colour = "#", OBSTACLE
            elif values is not None:
                number = f"{values[state]:.2f}"
            style = f"rgb{ink_on(colour)} on rgb{colour}".replace(" ", "").replace("on", " on ")
            upper.append(f"{mark:^8}", f"bold {style}")
            lower.append(f"{number:^8}", style)
        console.print(upper)
        console.print(lower)
