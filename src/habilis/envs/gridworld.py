"""`habilis/GridWorld-v0`: an agent on a grid of cells that looks for the goal, around obstacles.

Actions are up, right, down and left. Stepping onto the goal pays +10 and ends the episode; stepping onto an obstacle
pays -5 and leaves the agent where it was; any other step pays -0.1, one against the wall included, which keeps the
agent in place too. On slippery ground the agent goes, with probability `slip`, to one of the two sides of where it
wanted to go. States are counted row by row from the top left; on 4 x 4 the best return is 9.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import torch

from habilis.core.config import episode_limit, require
from habilis.envs.finite import Dynamics, FiniteEnv
from habilis.envs.grid_drawing import GridDrawing

Cell = tuple[int, int]
"""Row and column, from the top left."""

MOVES: tuple[Cell, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""What up, right, down and left add to row and column; the sides of action a are a - 1 and a + 1, round the compass."""

STEP, GOAL, OBSTACLE = -0.1, 10.0, -5.0
"""Rewards."""

SECONDS_A_STEP = 0.4
"""How long a film shows a step."""


@dataclass(frozen=True)
class Grid:
    """Where what lies."""

    rows: int
    columns: int
    start: Cell
    goal: Cell
    obstacles: tuple[Cell, ...]

    def __post_init__(self) -> None:
        for cell in (self.start, self.goal, *self.obstacles):
            require(
                len(cell) == 2 and self.holds(cell),
                f"the cell {cell} lies outside the grid of {self.rows} rows and {self.columns} columns",
            )
        require(self.start != self.goal, f"start and goal are the same cell, {self.goal}: set them apart")
        for name in ("start", "goal"):
            require(getattr(self, name) not in self.obstacles, f"there is an obstacle on the {name}: move one of them")
        require(self.goal in self._reachable(), f"obstacles shut {self.goal} off from {self.start}: open a way")

    @classmethod
    def read(cls, lines: Sequence[str]) -> Grid:
        """Read a map: one line of text a row, of `S` start, `G` goal, `#` obstacle and `.` free."""
        require(
            not isinstance(lines, str) and bool(lines) and len({len(line) for line in lines}) == 1,
            f"a map needs a list of lines of equal length, got {lines!r}",
        )
        cells = {(r, c): mark for r, line in enumerate(lines) for c, mark in enumerate(line)}
        found = {mark: tuple(cell for cell, at in cells.items() if at == mark) for mark in "SG#."}
        require(
            len(found["S"]) == len(found["G"]) == 1 and sum(map(len, found.values())) == len(cells),
            f"a map needs one S, one G and else # and . only, got {list(lines)}",
        )
        return cls(len(lines), len(lines[0]), found["S"][0], found["G"][0], found["#"])

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Grid:
        """Read what `to_dict` returned."""
        cells = {"start": tuple(tree["start"]), "goal": tuple(tree["goal"])}
        return cls(**{**tree, **cells, "obstacles": tuple(map(tuple, tree["obstacles"]))})

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as JSON values."""
        return asdict(self)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, in the order of the states."""
        return [(row, column) for row in range(self.rows) for column in range(self.columns)]

    @property
    def free(self) -> list[Cell]:
        """The cells that an agent acts in: all but obstacles and the goal."""
        return [cell for cell in self.cells if cell != self.goal and cell not in self.obstacles]

    def holds(self, cell: Cell) -> bool:
        """Whether a cell lies on the grid."""
        return 0 <= cell[0] < self.rows and 0 <= cell[1] < self.columns

    def state(self, cell: Cell) -> int:
        """Return the number of a cell."""
        return cell[0] * self.columns + cell[1]

    def cell(self, state: int) -> Cell:
        """Return the cell of a number."""
        return divmod(state, self.columns)

    def move(self, cell: Cell, direction: int) -> tuple[Cell, float]:
        """Return where a step leads and what it pays."""
        ahead = (cell[0] + MOVES[direction][0], cell[1] + MOVES[direction][1])
        if ahead in self.obstacles:
            return cell, OBSTACLE
        if not self.holds(ahead):
            return cell, STEP
        return ahead, GOAL if ahead == self.goal else STEP

    def dynamics(self, slip: float) -> Dynamics:
        """Return the tables of the process; nothing leads out of the goal, nor out of an obstacle, where nobody is."""
        turns = (0, -1, 1) if slip else (0,)
        states = range(self.rows * self.columns)
        closed = {self.state(cell) for cell in (self.goal, *self.obstacles)}
        outcomes = [
            [
                [(s, 0.0) if s in closed else self._outcome(s, (action + turn) % 4) for turn in turns]
                for action in range(4)
            ]
            for s in states
        ]
        table = torch.tensor(outcomes, dtype=torch.float64)  # [S, 4, K, 2]
        probability = torch.tensor([1 - slip, slip / 2, slip / 2] if slip else [1.0], dtype=torch.float64)
        return Dynamics(
            next_state=table[..., 0].long(),
            reward=table[..., 1].float(),
            probability=probability.expand(table.shape[:-1]).contiguous(),
            terminal=torch.arange(len(states)) == self.state(self.goal),
            start=self.state(self.start),
        )

    def _outcome(self, state: int, direction: int) -> tuple[int, float]:
        cell, reward = self.move(self.cell(state), direction)
        return self.state(cell), reward

    def _reachable(self) -> set[Cell]:
        found, frontier = {self.start}, [self.start]
        while frontier:
            here = frontier.pop()
            fresh = {self.move(here, direction)[0] for direction in range(4)} - found
            found |= fresh
            frontier += fresh
        return found


def make_gridworld(
    id: str,
    num_envs: int = 1,
    *,
    seed: int = 0,
    threads: int | None = None,
    size: int = 4,
    start: Sequence[int] = (0, 0),
    goal: Sequence[int] | None = None,
    obstacles: Sequence[Sequence[int]] = ((1, 1),),
    map: Sequence[str] | None = None,
    slip: float = 0.0,
    max_episode_steps: int | None = None,
) -> FiniteEnv:
    """Make N grid worlds.

    Args:
        id: what it is called.
        num_envs: N.
        seed: where the random stream of the slips starts.
        threads: not used: there is nothing to compute in parallel.
        size: rows and columns.
        start: row and column.
        goal: row and column; None for the top right.
        obstacles: rows and columns.
        map: lines of `S` start, `G` goal, `#` obstacle and `.`; takes the place of all of the above.
        slip: probability of going to a side instead, in [0, 1].
        max_episode_steps: steps after which an episode is truncated; None for 100, -1 sets no limit.

    Raises:
        ConfigError: the cells do not make a grid on which the goal can be reached.
    """
    require(isinstance(slip, int | float) and 0 <= slip <= 1, f"slip is a probability, got {slip!r}")
    require(
        isinstance(size, Integral) and size > 1, f"size is the number of rows and columns, at least 2, got {size!r}"
    )
    require(isinstance(obstacles, Sequence), f"obstacles are a list of cells, [[1, 1]] say, got {obstacles!r}")
    if map is not None:
        grid = Grid.read(map)
    else:
        end = (0, size - 1) if goal is None else _cell(goal)
        grid = Grid(size, size, _cell(start), end, tuple(_cell(pair) for pair in obstacles))
    return FiniteEnv(
        id,
        grid.dynamics(slip),
        num_envs,
        seed=seed,
        max_episode_steps=episode_limit(max_episode_steps, 100),
        control_dt=SECONDS_A_STEP,
        drawing=GridDrawing(grid),
    )


def _cell(pair: Sequence[int]) -> Cell:
    whole = isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(number, Integral) for number in pair)
    require(whole, f"a cell is a row and a column, [0, 3] say, got {pair!r}")
    return int(pair[0]), int(pair[1])
