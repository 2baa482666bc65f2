"""Windows of history for learners with memory: the last steps of a transition's episode, and what came before them.

`Windows` reads the observations of a replay buffer's ring not one by one but W at a time, up to the one that is asked
for. It knows at which places of the ring a policy began to remember afresh, and keeps what the policy remembered at
each place, where it remembers anything. Nothing else is stored for a window, however long.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from habilis.core.batches import MEMORY, VALID
from habilis.core.config import require
from habilis.core.specs import DESIRED
from habilis.core.tree import beside
from habilis.core.types import State, Step
from habilis.data.columns import Column, Places, located
from habilis.data.hindsight import Goals
from habilis.data.observations import ObservationRing


class Windows:
    """Reads `[B, W, *shape]` where an `ObservationRing` reads `[B, *shape]`, with two groups more.

    `VALID` `[B, W]` bool says which steps belong to the episode of the newest one; what the others show means nothing.
    `MEMORY` `[B, memory_dim]` is what the policy remembered before the window's first step, zero where the episode
    begins within the window; it is left out where nothing is remembered.

    Args:
        length: W, steps of a window, the newest last.
        memory_dim: numbers that the policy remembers from step to step; 0 where the window is all it knows.

    Raises:
        ConfigError: a window of one step, which shows no history.
    """

    def __init__(self, length: int, memory_dim: int) -> None:
        require(length > 1, f"a window of history needs at least 2 steps, got {length}")
        self.length = length
        self.memory_dim = memory_dim

    def bytes_needed(self, capacity: int) -> int:
        """Return how many bytes are kept for `capacity` transitions."""
        return (4 * self.memory_dim + 1) * capacity

    def reserve(self, observations: ObservationRing) -> None:
        """Make room beside a ring of observations: what a buffer does when it is made."""
        self._observations = observations
        # true where the observation is the first that the policy remembers
        self.fresh = np.zeros_like(observations.final_slot, np.bool_)
        self.memories = Column(torch.zeros(observations.places, self.memory_dim, device=observations.device))

    def start(self, row: int) -> None:
        """Begin new episodes with the observations of `row`."""
        self.fresh[row] = True

    def add(self, row: int, step: Step, memory: Tensor | None) -> None:
        """Follow the episodes by one step of each environment.

        Args:
            row: where it is stored.
            step: what came of it.
            memory: `[N, memory_dim]`, what the policy remembered when it acted; None for nothing yet.
        """
        # a step that is not valid leads nowhere: what comes after it is remembered by itself
        self.fresh[(row + 1) % len(self.fresh)] = (step.done | ~step.valid).numpy(force=True)
        if self.memory_dim:
            places = self._observations.of(row)
            self.memories.values[places] = 0.0 if memory is None else memory

    def read(self, index: Places) -> dict[str, Tensor]:
        """Return the windows whose newest observations are at places `[B]`."""
        places, valid = self._reach(index)
        obs = self._observations.read(places.flatten())
        windows = {name: rows.unflatten(0, places.shape) for name, rows in obs.items()}
        return self._complete(windows, valid, places[:, 0])

    def successors(self, index: Places) -> dict[str, Tensor]:
        """Return the windows that end with the true successors of the steps at places `[B]`."""
        places, valid = self._reach(index)
        places, valid = places[:, 1:], valid[:, 1:]
        before = self._observations.read(places.flatten())
        windows = {
            name: torch.cat([before[name].unflatten(0, places.shape), newest.unsqueeze(1)], 1)
            for name, newest in self._observations.successors(index).items()
        }
        return self._complete(windows, np.hstack([valid, np.ones_like(valid[:, :1])]), places[:, 0])

    def _reach(self, index: Places) -> tuple[Places, np.ndarray]:
        """Return the places of the last W steps up to places `[B]`, `[B, W]`, and which belong to one episode."""
        steps = np.arange(1 - self.length, 1)
        places = (index[:, None] + steps * self._observations.num_envs) % self.fresh.size
        # a step belongs to the newest one's episode where none after it begins another
        begun = np.logical_or.accumulate(self.fresh.take(places[:, :0:-1]), 1)[:, ::-1]
        return places, np.hstack([~begun, np.ones_like(begun[:, :1])])

    def _complete(self, windows: dict[str, Tensor], valid: np.ndarray, first: Places) -> dict[str, Tensor]:
        """Add the groups that observations have not, for windows that begin at places `first` `[B]`."""
        windows[VALID] = torch.from_numpy(valid).to(self._observations.device)
        if self.memory_dim:
            before = self.memories.take(located(first, self._observations.device))
            windows[MEMORY] = torch.where(windows[VALID].all(1, keepdim=True), before, 0.0)
        return windows

    def replace_goals(self, windows: dict[str, Tensor], goals: Goals) -> None:
        """Let all steps of a window want the goal given in hindsight; what was remembered of another is forgotten."""
        shown = windows[DESIRED]
        windows[DESIRED] = torch.where(beside(goals.replaced, shown), goals.given.unsqueeze(1), shown)
        if self.memory_dim:
            windows[MEMORY] = windows[MEMORY] * ~goals.replaced.unsqueeze(1)

    def state_dict(self, used: int) -> State:
        """Return what the first `used` rows hold; the memory itself."""
        return {"fresh": self.fresh[:used], "memories": self.memories.by_row(self.fresh.shape[1], used)}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self.fresh.fill(False)
        self.fresh[: len(state["fresh"])] = state["fresh"]
        self.memories.by_row(self.fresh.shape[1], len(state["memories"]))[:] = state["memories"]
