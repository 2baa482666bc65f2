"""Which transitions of a replay buffer are drawn, and how often: proportional priorities (Schaul et al. 2016).

`SumTree` holds one value for each place of the buffer and the sums above them; `Priorities` makes values of temporal
differences, draws places in proportion to them and says how much less each draw must weigh. Both work on arrays of
places at once. A place without a transition to learn from has the value 0 and is never drawn.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from habilis.core.config import require
from habilis.core.types import State

FAN = 32
"""Children of a node: a million values need four levels, each of which costs a handful of array operations."""

SMALLEST = 1e-6
"""What is added to the size of a temporal difference, so that no transition is lost for ever."""


class SumTree:
    """Values that are not negative, their sums in blocks of `FAN`, the sums of these, and so on up to one block.

    A sum is always that of its block as it is now, never adjusted by a difference: rounding does not pile up.

    Args:
        size: number of values, all of them 0 at first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.levels = [np.zeros((blocks, FAN)) for blocks in _blocks(size)]

    @staticmethod
    def bytes_needed(size: int) -> int:
        """Return how many bytes a tree over `size` values takes."""
        return 8 * FAN * sum(_blocks(size))

    @property
    def values(self) -> np.ndarray:
        """`[size]` float64: the values themselves, to be read only."""
        return self.levels[0].reshape(-1)[: self.size]

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self.levels[-1].sum())

    def set(self, index: np.ndarray, value: np.ndarray | float) -> None:
        """Set the values at `index`, `[K]` int64; where a place stands there twice, the last one counts."""
        self.levels[0].reshape(-1)[index] = value
        for below, above in pairwise(self.levels):
            index = index // FAN
            above.reshape(-1)[index] = below[index].sum(1)

    def fill(self, values: np.ndarray) -> None:
        """Set the first values and clear the rest."""
        for level in self.levels:
            flat = level.reshape(-1)
            flat[:] = 0.0
            flat[: len(values)] = values
            values = level.sum(1)

    def find(self, mass: np.ndarray) -> np.ndarray:
        """Return the places `[K]` where the running sum of the values first exceeds `mass`, `[K]` in [0, total).

        A place with the value 0 is never returned, whatever the rounding, as long as there is another.
        """
        rows = np.arange(len(mass))
        index = np.zeros(len(mass), np.int64)
        for level in reversed(self.levels):
            sums = level[index].cumsum(1)
            # a block's sum and its running sum may round differently
            mass = np.minimum(mass, np.nextafter(sums[:, -1], 0))
            child = (sums <= mass[:, None]).sum(1)
            mass = mass - np.where(child > 0, sums[rows, child - 1], 0)
            index = index * FAN + child
        return index


class Priorities:
    """Proportional prioritised sampling over the places of a buffer.

    A place is drawn with a probability in proportion to `(|td error| + 1e-6) ** alpha`, one draw from each of equal
    parts of the whole (stratified). A new transition is as likely as the likeliest has ever been. The importance
    weight of a draw is `(size * probability) ** -beta`, divided by the largest of its batch: so weights only shrink a
    step, and the scale of the steps does not hang on one forgotten place with a tiny priority, as it would were they
    divided by the largest of the whole buffer.

    Args:
        alpha: how far the priorities count; 0 draws uniformly.
        beta: how far the weights make up for it at first; `anneal` raises that to 1.
    """

    def __init__(self, *, alpha: float = 0.6, beta: float = 0.4) -> None:
        require(0 <= alpha <= 1, f"the exponent alpha of the priorities must be in [0, 1], got {alpha}")
        require(0 <= beta <= 1, f"the exponent beta of the importance weights must be in [0, 1], got {beta}")
        self.alpha = alpha
        self.beta = self.first_beta = beta
        self.largest = 1.0
        """The largest priority ever given, before the exponent."""
        self.tree = SumTree(0)

    def reserve(self, size: int) -> None:
        """Make room for `size` places, all of them empty: what a buffer does when it is made."""
        self.tree = SumTree(size)

    def anneal(self, progress: float) -> None:
        """Set beta for `progress` in [0, 1] of the run: it grows evenly, to 1 at its end."""
        self.beta = self.first_beta + (1 - self.first_beta) * min(max(progress, 0.0), 1.0)

    def enter(self, index: np.ndarray, drawable: np.ndarray) -> None:
        """Give new transitions at places `[K]` the largest priority so far, and none where not `drawable`, `[K]`."""
        self.tree.set(index, np.where(drawable, self.largest**self.alpha, 0.0))

    def leave(self, index: np.ndarray) -> None:
        """Empty the places `[K]`."""
        self.tree.set(index, 0.0)

    def update(self, index: np.ndarray, td_error: np.ndarray) -> None:
        """Set priorities of places `[K]` by their temporal differences `[K]`; one that is not finite changes none."""
        finite = np.isfinite(td_error)
        priority = np.abs(td_error[finite], dtype=np.float64) + SMALLEST
        self.largest = max(self.largest, float(priority.max(initial=0.0)))
        self.tree.set(index[finite], priority**self.alpha)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return drawn places `[count]` int64 and their importance weights `[count]` float32; one must not be empty."""
        strata = np.arange(count) + generator.random(count)
        index = self.tree.find(strata * (self.tree.total / count))
        values = self.tree.values[index]
        # size and total are the same for the whole batch and drop out
        return index, ((values.min() / values) ** self.beta).astype(np.float32)

    def state_dict(self, used: int) -> State:
        """Return the priorities of the first `used` places and the exponent; the array is the tree's own."""
        return {"values": self.tree.values[:used], "largest": self.largest, "beta": self.beta}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; the sums are those of the values, to the last bit."""
        self.tree.fill(state["values"])
        self.largest, self.beta = state["largest"], state["beta"]


def _blocks(size: int) -> list[int]:
    """Return how many blocks there are on each level, the lowest first."""
    blocks = [max(1, -(-size // FAN))]
    while blocks[-1] > 1:
        blocks.append(-(-blocks[-1] // FAN))
    return blocks
