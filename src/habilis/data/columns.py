"""What a replay buffer keeps of its places: one block of numbers each, written and read many at a time.

The numbers lie where learning happens. Which places are meant, where episodes end and what may be learnt from is always
known to the processor, as NumPy's arrays: places are reckoned there, and a device is given those that are read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Places = np.ndarray
"""Flat indices, `row * num_envs + environment`, int64."""


def located(places: Places, device: torch.device) -> Places | Tensor:
    """Return places as columns that lie on a device are indexed by."""
    return places if device.type == "cpu" else torch.from_numpy(places).to(device)


class Column:
    """Numbers of P places; on the processor NumPy reads and writes them, which for a few is faster than PyTorch.

    Args:
        values: `[P, ...]`, the memory itself.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._array = values.numpy() if values.is_cpu else None

    def __setitem__(self, places: Places | Tensor | slice, values: Tensor) -> None:
        """Write `[K, ...]` at K places, as `located` returns them, or at those of a slice."""
        if self._array is not None:
            self._array[places] = values.numpy(force=True)
        else:
            self.values[places] = values

    def take(self, places: Places | Tensor) -> Tensor:
        """Return a copy of what is at places `[...]`, as `located` returns them."""
        return self.values[places] if self._array is None else torch.from_numpy(self._array.take(places, 0))

    def by_row(self, num_envs: int, used: int) -> Tensor:
        """Return the first rows as `[used, num_envs, ...]`: the memory itself, no copy."""
        rows: Tensor = self.values.unflatten(0, (-1, num_envs))
        return rows[:used]
