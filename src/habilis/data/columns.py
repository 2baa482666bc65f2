"""What a replay buffer keeps of its places: one block of numbers each, written and read many at a time.

The numbers lie where learning happens; which places are meant is always known to the processor, as NumPy's arrays. So
is what says where an episode ended or what may be learnt from: a buffer's bookkeeping waits for no device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Places = np.ndarray
"""Flat indices, `row * num_envs + environment`, int64."""


class Column:
    """Numbers of P places, read and written by NumPy where they lie on the processor: its way to a few is the shorter.

    Args:
        values: `[P, ...]`, the memory itself.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._array = values.numpy() if values.is_cpu else None

    def __setitem__(self, places: Places | slice, values: Tensor) -> None:
        """Write `[K, ...]` at K places."""
        if self._array is not None:
            self._array[places] = values.numpy(force=True)
        else:
            index = places if isinstance(places, slice) else torch.from_numpy(places).to(self.values.device)
            self.values[index] = values

    def take(self, places: Places) -> Tensor:
        """Return a copy of what is at places `[...]`."""
        if self._array is not None:
            return torch.from_numpy(self._array.take(places, 0))
        return self.values[torch.from_numpy(places).to(self.values.device)]

    def by_row(self, num_envs: int, used: int) -> Tensor:
        """Return the first rows as `[used, num_envs, ...]`: the memory itself, no copy."""
        return self.values.view(len(self.values) // num_envs, num_envs, *self.values.shape[1:])[:used]
