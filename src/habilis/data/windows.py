"""Windows of history for learners with memory: the last steps of a transition's episode, and what came before them.

`Windows` reads the observations of a replay buffer's ring not one by one but W at a time, up to the one that is asked
for. It knows at which places of the ring a policy began to remember afresh, and keeps what the policy remembered at
each place, where it remembers anything. Nothing else is stored for a window, however long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from habilis.core.batches import MEMORY, VALID
from habilis.core.config import require
from habilis.core.specs import DESIRED
from habilis.core.tree import beside
from habilis.core.types import State, Step
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
        shape, device = observations.final_slot.shape, observations.final_slot.device
        # true where the observation is the first that the policy remembers
        self.fresh = torch.zeros(shape, dtype=torch.bool, device=device)
        self.memories = torch.zeros(*shape, self.memory_dim, device=device)

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
        self.fresh[(row + 1) % len(self.fresh)] = step.done | ~step.valid
        if self.memory_dim:
            self.memories[row] = 0.0 if memory is None else memory

    def read(self, index: Tensor) -> dict[str, Tensor]:
        """Return the windows whose newest observations are at places `[B]`."""
        places, valid = self._reach(index)
        obs = self._observations.read(places.flatten())
        windows = {name: rows.unflatten(0, places.shape) for name, rows in obs.items()}
        return self._complete(windows, valid, places[:, 0])

    def successors(self, index: Tensor) -> dict[str, Tensor]:
        """Return the windows that end with the true successors of the steps at places `[B]`."""
        places, valid = self._reach(index)
        places, valid = places[:, 1:], valid[:, 1:]
        before = self._observations.read(places.flatten())
        windows = {
            name: torch.cat([before[name].unflatten(0, places.shape), newest.unsqueeze(1)], 1)
            for name, newest in self._observations.successors(index).items()
        }
        return self._complete(windows, torch.cat([valid, torch.ones_like(valid[:, :1])], 1), places[:, 0])

    def _reach(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of the last W steps up to places `[B]`, `[B, W]`, and which belong to one episode."""
        num_envs = self.fresh.shape[1]
        steps = torch.arange(1 - self.length, 1, device=index.device)
        places = (index.unsqueeze(1) + steps * num_envs) % self.fresh.numel()
        # a step belongs to the newest one's episode where none after it begins another
        begun = self.fresh.take(places[:, 1:]).flip(1).cumsum(1).flip(1)
        return places, torch.cat([begun == 0, torch.ones_like(places[:, :1], dtype=torch.bool)], 1)

    def _complete(self, windows: dict[str, Tensor], valid: Tensor, first: Tensor) -> dict[str, Tensor]:
        """Add the groups that observations have not, for windows that begin at places `first` `[B]`."""
        windows[VALID] = valid
        if self.memory_dim:
            windows[MEMORY] = self.memories.flatten(0, 1).index_select(0, first) * valid.all(1, keepdim=True)
        return windows

    def replace_goals(self, windows: dict[str, Tensor], goals: Goals) -> None:
        """Let all steps of a window want the goal given in hindsight; what was remembered of another is forgotten."""
        shown = windows[DESIRED]
        windows[DESIRED] = torch.where(beside(goals.replaced, shown), goals.given.unsqueeze(1), shown)
        if self.memory_dim:
            windows[MEMORY] = windows[MEMORY] * ~goals.replaced.unsqueeze(1)

    def state_dict(self, used: int) -> State:
        """Return what the first `used` rows hold; the tensors are its own."""
        return {"fresh": self.fresh[:used], "memories": self.memories[:used]}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        for name, column in (("fresh", self.fresh), ("memories", self.memories)):
            column.zero_()[: len(state[name])] = state[name]
