"""`habilis/Catch-v0`: a paddle catches balls that fall across a screen of 10 by 10 grey pixels.

A ball starts in the top row, in any column, and falls one row a step while it drifts one column to the left, to the
right or not at all, and bounces off the walls: one frame does not show where to. The paddle is three pixels wide, lies
in the bottom row and moves one pixel a step, or stays. A ball that is caught pays 1 and the next one starts; a ball
that is missed costs 1 and ends the episode; 90 steps, which are ten balls, truncate it. Every ball can be caught from
wherever the paddle caught the last, so the optimal return is 10.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from habilis.core.actions import require_choices
from habilis.core.random import derive_seed, generator_state, set_generator_state
from habilis.core.specs import DiscreteAction, EnvSpec, ObsGroup
from habilis.core.types import Obs, State, Step

SIZE = 10
BOTTOM = SIZE - 1
"""The paddle's row; also the steps that a ball falls."""
BALLS = 10
OPTIMAL_RETURN = float(BALLS)
EPISODE_STEPS = BALLS * BOTTOM
ACTIONS = ("left", "stay", "right")
BALL, PADDLE = 255, 160
"""Their grey values."""
PIXEL = 32
"""Pixels a side of a pixel of the screen in a picture for people."""
COLOURS = {0: (24, 28, 38), PADDLE: (120, 200, 190), BALL: (245, 115, 25)}


class Catch:
    """N screens, with exact state. Observed: an image `[10, 10, 1]` uint8.

    Args:
        id: the name the environment is known by.
        num_envs: N.
        seed: of the stream that balls and paddles start from.
    """

    def __init__(self, id: str, num_envs: int, *, seed: int = 0) -> None:
        self.num_envs = num_envs
        self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._paddle, self._row, self._column, self._drift, self._elapsed = np.zeros((5, num_envs), dtype=np.int64)
        self._all = np.arange(num_envs)
        self.spec = EnvSpec(
            id=id,
            obs={"policy": ObsGroup((SIZE, SIZE, 1), "uint8")},
            action=DiscreteAction(len(ACTIONS)),
            max_episode_steps=EPISODE_STEPS,
            saves_state=True,
            backend="native",
            action_names=ACTIONS,
        )
        self._begin(self._all)

    def reset(self, seed: int | None = None) -> Obs:
        """Start N new episodes, from the seed where one is given."""
        if seed is not None:
            self._generator = np.random.default_rng(derive_seed(seed, "env"))
        self._begin(self._all)
        return self._observe()

    def step(self, action: Tensor) -> Step:
        """Move each paddle by one of `ACTIONS` `[N]`, then each ball."""
        require_choices(self.spec, action, self.num_envs)
        choice = action.numpy(force=True)
        self._paddle = np.clip(self._paddle + choice - 1, 1, SIZE - 2)
        self._row += 1
        column = self._column + self._drift
        bounced = (column < 0) | (column >= SIZE)
        self._drift = np.where(bounced, -self._drift, self._drift)
        self._column = np.where(bounced, self._column + self._drift, column)
        self._elapsed += 1

        down = self._row == BOTTOM
        caught = down & (np.abs(self._column - self._paddle) <= 1)
        missed = down & ~caught
        self._drop(np.flatnonzero(caught))
        truncated = (self._elapsed >= EPISODE_STEPS) & ~missed
        obs = next_obs = self._observe()
        ended = np.flatnonzero(missed | truncated)
        if ended.size:
            self._begin(ended)
            obs = self._observe()
        return Step(
            obs=obs,
            next_obs=next_obs,
            reward=torch.from_numpy(caught.astype(np.float32) - missed),
            terminated=torch.from_numpy(missed),
            truncated=torch.from_numpy(truncated),
            valid=torch.ones(self.num_envs, dtype=torch.bool),
            info={"success": torch.from_numpy(truncated.copy())},
        )

    def render(self) -> np.ndarray:
        """Return `[320, 320, 3]` uint8: the first screen, enlarged and in colour."""
        screen = self._observe()["policy"][0, :, :, 0].numpy()
        picture = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        for grey, colour in COLOURS.items():
            picture[screen == grey] = colour
        return picture.repeat(PIXEL, axis=0).repeat(PIXEL, axis=1)

    def state_dict(self) -> State:
        """Return paddles, balls, counters and the random stream."""
        return {
            "paddle": self._paddle.copy(),
            "row": self._row.copy(),
            "column": self._column.copy(),
            "drift": self._drift.copy(),
            "elapsed": self._elapsed.copy(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        for name in ("paddle", "row", "column", "drift", "elapsed"):
            getattr(self, f"_{name}")[:] = np.asarray(state[name])
        set_generator_state(self._generator, state["generator"])

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _observe(self) -> dict[str, Tensor]:
        """Return fresh images."""
        screen = np.zeros((self.num_envs, SIZE, SIZE, 1), dtype=np.uint8)
        for offset in (-1, 0, 1):
            screen[self._all, BOTTOM, self._paddle + offset] = PADDLE
        screen[self._all, self._row, self._column] = BALL
        return {"policy": torch.from_numpy(screen)}

    def _begin(self, rows: np.ndarray) -> None:
        """Start new episodes in the environments `rows`."""
        self._paddle[rows] = self._generator.integers(1, SIZE - 1, len(rows))
        self._elapsed[rows] = 0
        self._drop(rows)

    def _drop(self, rows: np.ndarray) -> None:
        """Let a new ball fall in the environments `rows`."""
        self._row[rows] = 0
        self._column[rows] = self._generator.integers(0, SIZE, len(rows))
        self._drift[rows] = self._generator.integers(-1, 2, len(rows))
