"""Recurrent networks: GRU (Cho et al. 2014) and LSTM (Hochreiter and Schmidhuber 1997), by steps or over a sequence.

Memory is one tensor `[B, memory_dim]`, and zeros are a fresh one: who carries it from step to step forgets by writing
zeros. Over a sequence it is forgotten where an episode starts, so that a batch may cut across episodes. The loop over
time is straight-line; only the product with the memory is within it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.acceleration import hidden_layers
from habilis.nn.init import linear

RecurrentKind = Literal["gru", "lstm"]


class Recurrent(nn.Module):
    """Input and memory to features and memory.

    Args:
        kind: "gru", whose memory is its features, or "lstm", whose memory is features and cell side by side.
        in_dim: width of the input.
        out_dim: width of the features.
        generator: source of the initial weights.
    """

    def __init__(self, kind: RecurrentKind, in_dim: int, out_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        gates = 3 if kind == "gru" else 4
        self.out_dim = out_dim
        self.memory_dim = out_dim if kind == "gru" else 2 * out_dim
        self.of_input = linear(in_dim, gates * out_dim, generator)
        self.of_memory = linear(out_dim, gates * out_dim, generator)
        self._cell = _gru_cell if kind == "gru" else _lstm_cell

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step: `[B, in]` and `[B, memory_dim]` to features `[B, out_dim]` and the new memory."""
        with hidden_layers(x.device):
            given = self.of_input(x).to(memory.dtype)
            memory = self._next(given, memory)
        return memory[..., : self.out_dim], memory

    def sequence(self, x: Tensor, memory: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Take T steps.

        Args:
            x: `[T, B, in]`.
            memory: `[B, memory_dim]` before the first step.
            start: `[T, B]` bool: the step is the first of an episode, and begins with a fresh memory.

        Returns:
            Features `[T, B, out_dim]`, and the memory after each step `[T, B, memory_dim]`.
        """
        kept = (~start).to(memory.dtype).unsqueeze(-1)
        memories = []
        with hidden_layers(x.device):
            for given, keep in zip(self.of_input(x).to(memory.dtype), kept, strict=True):
                memory = self._next(given, memory * keep)
                memories.append(memory)
        after = torch.stack(memories)
        return after[..., : self.out_dim], after

    def window(self, x: Tensor, valid: Tensor, memory: Tensor, burn_in: int) -> Tensor:
        """Return the features `[B, out_dim]` of the newest step of a window.

        Args:
            x: `[B, W, in]`, the newest step last.
            valid: `[B, W]` bool: the step belongs to the episode of the newest one, as all after it do.
            memory: `[B, memory_dim]` before the first step, used where the whole window is valid.
            burn_in: how many of the first steps make memory without a gradient.
        """
        x = torch.where(valid.unsqueeze(-1), x, 0.0).transpose(0, 1)
        # the step after one that is not valid is the first of its episode
        start = ~torch.cat([valid[:, :1], valid[:, :-1]], 1).T
        if burn_in > 0:
            with torch.no_grad():
                memory = self.sequence(x[:burn_in], memory, start[:burn_in])[1][-1]
        return self.sequence(x[burn_in:], memory, start[burn_in:])[0][-1]

    def _next(self, given: Tensor, memory: Tensor) -> Tensor:
        remembered = self.of_memory(memory[..., : self.out_dim])
        return self._cell(given, remembered, memory)


def _gru_cell(given: Tensor, remembered: Tensor, memory: Tensor) -> Tensor:
    """Return the next memory for what input and memory give to the gates: reset, update, new."""
    width = memory.shape[-1]
    reset, update = (given[..., : 2 * width] + remembered[..., : 2 * width]).sigmoid().chunk(2, -1)
    new = torch.addcmul(given[..., 2 * width :], reset, remembered[..., 2 * width :]).tanh()
    return torch.lerp(new, memory, update)


def _lstm_cell(given: Tensor, remembered: Tensor, memory: Tensor) -> Tensor:
    """Return the next memory for what input and memory give to the gates: input, forget, cell, output."""
    take, forget, new, show = (given + remembered).chunk(4, -1)
    cell = torch.addcmul(forget.sigmoid() * memory.chunk(2, -1)[1], take.sigmoid(), new.tanh())
    return torch.cat([show.sigmoid() * cell.tanh(), cell], -1)
