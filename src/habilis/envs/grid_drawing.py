"""How a grid world looks: as a picture of coloured cells, and as lines of text.

`show` lays a policy under the agent: an arrow in each cell for the action and a colour for the value. Shapes are drawn
from their distance to each pixel (negative inside), which gives smooth edges at any size without a drawing library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from habilis.envs.gridworld import Cell, Grid

ARROWS = "↑→↓←"
"""Up, right, down, left."""

HEAT = ((251, 243, 228), (249, 205, 134), (238, 131, 84), (176, 48, 105))
"""Colours from the lowest value to the highest."""
PAPER, FREE, INK = (247, 246, 243), (236, 234, 227), (45, 42, 50)
OBSTACLE, GOAL, AGENT, WHITE = (58, 63, 71), (11, 132, 87), (36, 89, 214), (255, 255, 255)

LONGEST_SIDE = 480
"""Pixels of the longer side of a picture, about; cells have between 12 and 96."""


class GridDrawing:
    """Pictures and text of one grid.

    Args:
        grid: what is drawn.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._pixels = 2 * max(6, min(48, LONGEST_SIDE // (2 * max(grid.rows, grid.columns))))
        self._actions: Sequence[int] | None = None
        self._ground = self._draw_ground(None)

    def show(self, actions: Sequence[int] | None, values: Sequence[float] | None = None) -> None:
        """Lay a policy under the agent, from now on.

        Args:
            actions: of each state, -1 for no arrow; None for no arrows.
            values: of each state, for the colours; None for no colours.
        """
        self._actions = actions
        self._ground = self._draw_ground(values)

    def picture(self, state: int) -> np.ndarray:
        """Return `[height, width, 3]` uint8 with the agent in `state`."""
        canvas = self._ground.copy()
        self._paint(canvas, self.grid.cell(state), "agent")
        return np.rint(canvas).astype(np.uint8)

    def text(self, state: int) -> str:
        """Return the map in lines: `A` agent, `S` start, `G` goal, `#` obstacle, else the policy's arrow or a dot."""
        marks = {self.grid.start: "S", **dict.fromkeys(self.grid.obstacles, "#")}
        if self._actions is not None:
            marks |= {cell: (ARROWS + ".")[self._actions[self.grid.state(cell)]] for cell in self.grid.free}
        marks |= {self.grid.goal: "G", self.grid.cell(state): "A"}
        rows = range(self.grid.rows)
        return "\n".join(" ".join(marks.get((r, c), ".") for c in range(self.grid.columns)) for r in rows)

    def _draw_ground(self, values: Sequence[float] | None) -> np.ndarray:
        """Draw everything but the agent."""
        grid, side = self.grid, self._pixels
        canvas = np.full((grid.rows * side, grid.columns * side, 3), PAPER, np.float64)
        colours = {} if values is None else heat(grid, values)
        for cell in grid.cells:
            if cell == grid.goal:
                self._paint(canvas, cell, "cell", GOAL)
                self._paint(canvas, cell, "target", WHITE)
            elif cell in grid.obstacles:
                self._paint(canvas, cell, "cell", OBSTACLE)
            else:
                self._paint(canvas, cell, "cell", colours.get(cell, FREE))
                ink = ink_on(colours.get(cell, FREE))
                if cell == grid.start:
                    self._paint(canvas, cell, "rim", ink)
                if self._actions is not None and self._actions[grid.state(cell)] >= 0:
                    self._paint(canvas, cell, f"arrow {self._actions[grid.state(cell)]}", ink)
        return canvas

    def _paint(self, canvas: np.ndarray, cell: Cell, shape: str, colour: tuple[int, ...] = AGENT) -> None:
        """Paint a shape into a cell."""
        side = self._pixels
        window = canvas[cell[0] * side : (cell[0] + 1) * side, cell[1] * side : (cell[1] + 1) * side]
        if shape == "agent":
            _blend(window, _disc(side, 0.29), WHITE)
            _blend(window, _disc(side, 0.25), AGENT)
        elif shape == "target":
            _blend(window, np.maximum(_disc(side, 0.28), -_disc(side, 0.2)), colour)
            _blend(window, _disc(side, 0.1), colour)
        elif shape == "rim":
            _blend(window, np.maximum(_tile(side, 0.07, 0.1), -_tile(side, 0.1, 0.08)), colour)
        elif shape == "cell":
            _blend(window, _tile(side, 0.04), colour)
        else:
            _blend(window, _arrow(side, int(shape[-1])), colour)


def ink_on(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Return what can be read on a colour: white where its three channels together are below 420, else dark."""
    return WHITE if sum(colour) < 420 else INK


def heat(grid: Grid, values: Sequence[float], limits: tuple[float, float] | None = None) -> dict[Cell, tuple[int, ...]]:
    """Return the colour of every cell that an agent acts in.

    Args:
        grid: the cells.
        values: of each state.
        limits: the values of the first and the last colour; None for the lowest and the highest.
    """
    low, high = limits or value_range(grid, values)
    stops = np.linspace(0.0, 1.0, len(HEAT))
    colours = {}
    for cell in grid.free:
        level = (values[grid.state(cell)] - low) / (high - low) if high > low else 0.0
        colours[cell] = tuple(int(np.interp(level, stops, channel)) for channel in zip(*HEAT, strict=True))
    return colours


def value_range(grid: Grid, values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value of the cells that an agent acts in."""
    free = [values[grid.state(cell)] for cell in grid.free]
    return min(free), max(free)


def _blend(window: np.ndarray, distance: np.ndarray, colour: tuple[int, ...]) -> None:
    """Colour what lies within a shape; `distance` in pixels."""
    inside = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    window += inside * (np.array(colour) - window)


def _points(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the pixels of a cell, from its middle, in cells: x to the right, y down."""
    ticks = (np.arange(side) + 0.5) / side - 0.5
    return np.meshgrid(ticks, ticks)


def _disc(side: int, radius: float) -> np.ndarray:
    x, y = _points(side)
    return (np.hypot(x, y) - radius) * side


def _tile(side: int, gap: float, corner: float = 0.12) -> np.ndarray:
    x, y = (np.abs(p) - (0.5 - gap - corner) for p in _points(side))
    return (np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - corner) * side


def _arrow(side: int, direction: int) -> np.ndarray:
    """Return the distance to a shaft and two barbs, turned from up to `direction` quarters clockwise."""
    lines = (((0, 0.22), (0, -0.22)), ((0, -0.22), (-0.15, -0.07)), ((0, -0.22), (0.15, -0.07)))
    distance = np.min([_segment(side, *line) for line in lines], axis=0) - 0.03 * side
    return np.rot90(distance, -direction)


def _segment(side: int, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    x, y = _points(side)
    along = (b[0] - a[0], b[1] - a[1])
    share = np.clip(((x - a[0]) * along[0] + (y - a[1]) * along[1]) / (along[0] ** 2 + along[1] ** 2), 0.0, 1.0)
    return np.hypot(x - a[0] - share * along[0], y - a[1] - share * along[1]) * side
