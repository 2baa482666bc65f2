"""From an observation to the number of a state, for learners that keep a table.

`ArrayStates` reads the number off one-hot codes: an array has a row for each. `DictionaryStates` cuts real values into
bins or rounds them, and gives every combination that it meets the next free number, which a dictionary remembers.
Both are modules, so that what they know is saved, loaded and exported with the policy.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from habilis.core.types import Obs
from habilis.nn.constants import stay_as_saved

NEVER = torch.iinfo(torch.int64).min
"""Fills the keys of states that were not met yet; no observation has it."""
FARTHEST = 2.0**62
"""Cells end there: what is farther counts as this far."""

FIRST_CAPACITY = 1024


class ArrayStates(nn.Module):
    """The number of a vector of one-hot codes: the codes' digits in mixed radix, the last one running fastest.

    Args:
        sizes: of the codes, side by side.
        name: the observation group that they are read from.
    """

    def __init__(self, sizes: tuple[int, ...], name: str = "policy") -> None:
        super().__init__()
        self.sizes = sizes
        self.names = (name,)
        self.capacity = prod(sizes)

    def forward(self, obs: Obs) -> Tensor:
        """Return the number `[N]` of each observation's state."""
        state: Tensor | int = 0
        for code in obs[self.names[0]].split(self.sizes, -1):
            state = state * code.shape[-1] + code.argmax(-1)
        assert isinstance(state, Tensor)
        return state

    def rows(self, obs: Obs, *, add: bool = False) -> Tensor:
        """Return what calling it returns: every state has its number from the beginning."""
        number: Tensor = self(obs)
        return number

    def denormalize(self, drawn: Obs) -> dict[str, Tensor]:
        """Return one-hot codes for what a checker drew: the largest value of each code."""
        codes = [
            nn.functional.one_hot(code.argmax(-1), code.shape[-1]).to(code.dtype)
            for code in drawn[self.names[0]].split(self.sizes, -1)
        ]
        return {self.names[0]: torch.cat(codes, -1)}


class DictionaryStates(nn.Module):
    """The number of a cell of a regular grid over `dim` real values, in the order in which cells were met.

    Value i falls into cell `floor((x_i - offset_i) / width_i)`, and beyond the grid into the outermost. Number 0 is
    every cell that was never met.

    Args:
        offset: `[dim]`: where cell 0 begins.
        width: `[dim]` of a cell.
        cells: `[dim]`: how many there are from 0 up; None for no end on either side.
        name: the observation group that is read.
    """

    offset: Tensor
    width: Tensor
    last: Tensor
    keys: Tensor
    """`[capacity, dim]` int64: the cell of each number."""

    def __init__(self, offset: Tensor, width: Tensor, cells: Tensor | None, name: str = "policy") -> None:
        super().__init__()
        self.names = (name,)
        self.bounded = cells is not None
        self.register_buffer("offset", offset)
        self.register_buffer("width", width)
        self.register_buffer("last", torch.zeros_like(width) if cells is None else cells.to(width.dtype) - 1)
        stay_as_saved(self, "offset", "width", "last")
        self.register_buffer("keys", torch.full((FIRST_CAPACITY, len(width)), NEVER))
        self._numbers: dict[tuple[int, ...], int] = {}

    @property
    def capacity(self) -> int:
        """Numbers there is room for, at least one more than there are states."""
        return len(self.keys)

    @property
    def count(self) -> int:
        """States met so far."""
        return len(self._numbers)

    def cells(self, obs: Obs) -> Tensor:
        """Return the cell `[N, dim]` of each observation, int64."""
        cell = ((obs[self.names[0]].flatten(1) - self.offset) / self.width).floor()
        cell = torch.minimum(cell.clamp_min(0), self.last) if self.bounded else cell.clamp(-FARTHEST, FARTHEST)
        return cell.long()

    def forward(self, obs: Obs) -> Tensor:
        """Return the number `[N]` of each observation's state by comparing it with all keys: what is exported."""
        same: Tensor = (self.cells(obs)[:, None] == self.keys).all(-1)
        return same.int().argmax(-1)  # the first of equals where none is the same: 0

    def rows(self, obs: Obs, *, add: bool = False) -> Tensor:
        """Return the same by looking it up; with `add`, states that were not met get a number."""
        cells = [tuple(cell) for cell in self.cells(obs).tolist()]
        if add:
            for cell in cells:
                if cell not in self._numbers:
                    self._append(cell)
        return torch.tensor([self._numbers.get(cell, 0) for cell in cells], dtype=torch.int64)

    def _append(self, cell: tuple[int, ...]) -> None:
        number = self.count + 1
        if number == self.capacity:
            self.keys = torch.cat([self.keys, torch.full_like(self.keys, NEVER)])
        self.keys[number] = torch.tensor(cell)
        self._numbers[cell] = number

    def restore(self, keys: Tensor) -> None:
        """Take the numbers and the capacity that `keys` was saved with."""
        self.keys = keys.clone()
        known = keys[1 : int((keys[:, 0] != NEVER).sum()) + 1].tolist()
        self._numbers = {tuple(cell): number for number, cell in enumerate(known, start=1)}

    def denormalize(self, drawn: Obs) -> dict[str, Tensor]:
        """Return observations for what a checker drew: places within the states that were met, where there are any."""
        rows = drawn[self.names[0]]
        within = (rows.flatten(1) - rows.flatten(1).floor()).clamp(0.01, 0.99)
        known = self.keys[1 : self.count + 1] if self.count else torch.zeros_like(self.keys[:1])
        cells = known[torch.arange(len(rows)) % len(known)]
        return {self.names[0]: (self.offset + self.width * (cells + within)).view_as(rows)}
