"""Named random streams from one seed. Nothing in the library draws from a global random state."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from habilis.core.config import require
from habilis.core.types import State


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for the stream `name`, independent of every other name's under the same `seed`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derive_env_seed(seed: int, index: int) -> int:
    """Return the seed of one of several environments, in 31 bits, which every simulator takes."""
    return derive_seed(seed, f"env/{index}") % 2**31


class RandomStreams:
    """The random streams of one run: `streams.torch("explore")`, `streams.numpy("replay")`.

    A stream is made at its first use and is the same object ever after, so that its state can be saved.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._torch: dict[str, torch.Generator] = {}
        self._numpy: dict[str, np.random.Generator] = {}

    def torch(self, name: str, device: str | torch.device = "cpu") -> torch.Generator:
        """Return the `torch.Generator` called `name` on `device`."""
        if name not in self._torch:
            self._torch[name] = torch.Generator(device).manual_seed(derive_seed(self.seed, name))
        return self._torch[name]

    def numpy(self, name: str) -> np.random.Generator:
        """Return the `numpy.random.Generator` called `name`."""
        if name not in self._numpy:
            self._numpy[name] = np.random.default_rng(derive_seed(self.seed, name))
        return self._numpy[name]

    def state_dict(self) -> State:
        """Return the position of every stream."""
        return {
            "seed": self.seed,
            "torch": {k: {"device": str(g.device), "state": g.get_state()} for k, g in self._torch.items()},
            "numpy": {k: generator_state(g) for k, g in self._numpy.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Put every stream where it was.

        Raises:
            ConfigError: a stream was on another kind of device, which draws other numbers.
        """
        self.seed = state["seed"]
        for name, saved in state["torch"].items():
            stream = self.torch(name, saved["device"])
            was, now = torch.device(saved["device"]).type, stream.device.type
            require(was == now, f"the run was on {was} and cannot continue on {now}: resume it with --device {was}")
            stream.set_state(saved["state"])
        for name, saved in state["numpy"].items():
            set_generator_state(self.numpy(name), saved)


def generator_state(generator: np.random.Generator) -> State:
    """Return the state of a NumPy generator; its 128-bit integers as text, which JSON and every reader keep whole."""

    def as_text(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: as_text(v) for k, v in value.items()}
        return f"int:{value}" if isinstance(value, int) else value

    return as_text(generator.bit_generator.state)  # type: ignore[no-any-return]


def set_generator_state(generator: np.random.Generator, state: State) -> None:
    """Restore what `generator_state` returned."""

    def from_text(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: from_text(v) for k, v in value.items()}
        return int(value[4:]) if isinstance(value, str) and value.startswith("int:") else value

    generator.bit_generator.state = from_text(state)
