"""Memory for any network: a GRU, an LSTM or a transformer over a window of history, between encoder and trunk.

Every kind has one flat memory tensor `[B, memory_dim]`, of which zeros are a fresh one, and answers to three calls:
`step` is how it acts, `sequence` how it learns from steps in their order (on-policy), `window` how it learns from
windows out of a replay buffer. Who has no memory has an `ObsEncoder` and nothing of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.batches import MEMORY, VALID
from habilis.core.config import coerce_fields, require
from habilis.core.options import only_if, unless
from habilis.core.specs import ObsGroup
from habilis.core.tree import tree_index
from habilis.core.types import Obs
from habilis.nn.encoder import ImageEncoderKind, ObsEncoder
from habilis.nn.recurrent import Recurrent
from habilis.nn.transformer import TransformerEncoder

MemoryKind = Literal["none", "gru", "lstm", "transformer"]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What a network remembers of the episode, and over how many steps it learns to."""

    kind: MemoryKind = "none"
    """A recurrent network, a transformer over the last `window` steps, or nothing but the present observation."""
    size: int = unless(128, kind="none")
    """Width of the features."""
    window: int = unless(16, kind="none")
    """Steps in a row that are learnt from at once; all that a transformer sees."""
    burn_in: int = unless(0, kind="none")
    """First steps of a window out of replay that make memory and are not learnt from (Kapturowski et al. 2019)."""
    layers: int = only_if(1, kind="transformer")
    """Of a transformer."""
    heads: int = only_if(4, kind="transformer")
    """Of attention in each; they divide the width."""

    def __post_init__(self) -> None:
        coerce_fields(self)
        require(self.size > 0, f"memory.size must be positive, got {self.size}")
        require(self.window > 1, f"memory.window must be at least 2, got {self.window}")
        require(0 <= self.burn_in < self.window, f"memory.burn_in must be in [0, memory.window), got {self.burn_in}")
        require(
            self.kind != "transformer" or self.burn_in == 0,
            "memory.burn_in has no meaning for a transformer, which sees the window as it is: leave it out",
        )

    @property
    def used(self) -> bool:
        """Whether there is any memory."""
        return self.kind != "none"

    @property
    def stored_dim(self) -> int:
        """Width of what a replay buffer keeps of each step: a recurrent memory; a transformer's is in the window."""
        return {"gru": self.size, "lstm": 2 * self.size}.get(self.kind, 0)


class TransformerMemory(nn.Module):
    """A transformer over the last `window` inputs; its memory is all of them but the newest, with a flag each.

    Args:
        in_dim: width of the input.
        config: its size, window, layers and heads.
        generator: source of the initial weights.
    """

    def __init__(self, in_dim: int, config: MemoryConfig, generator: torch.Generator) -> None:
        super().__init__()
        c = config
        self.past = c.window - 1
        self.transformer = TransformerEncoder(in_dim, c.window, c.size, c.layers, c.heads, generator)
        self.out_dim = c.size
        self.memory_dim = self.past * (in_dim + 1)

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step: `[B, in]` and `[B, memory_dim]` to features `[B, out_dim]` and the new memory."""
        newest = torch.cat([x, torch.ones_like(x[..., :1])], -1).unsqueeze(-2)
        steps = torch.cat([memory.unflatten(-1, (self.past, -1)), newest], -2)
        return self.transformer(steps[..., :-1], steps[..., -1] > 0), steps[..., 1:, :].flatten(-2)

    def sequence(self, x: Tensor, memory: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Take T steps; see `Recurrent.sequence`. Each step has a window of its own, as it has when it acts."""
        before = memory.unflatten(-1, (self.past, -1)).transpose(0, 1)
        newest = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        # the number of starts up to a step tells its episode: before the first step it is 0
        episode = torch.cat([torch.zeros_like(before[..., 0], dtype=torch.long), start.long().cumsum(0)])
        steps = torch.cat([before, newest]).unfold(0, self.past + 1, 1).movedim(-1, 2)
        episodes = episode.unfold(0, self.past + 1, 1)
        valid = (steps[..., -1] > 0) & (episodes == episodes[..., -1:])
        features = self.transformer(steps[..., :-1].flatten(0, 1), valid.flatten(0, 1))
        after = torch.where(valid.unsqueeze(-1), steps, 0.0)[..., 1:, :].flatten(-2)
        return features.unflatten(0, x.shape[:2]), after

    def window(self, x: Tensor, valid: Tensor, memory: Tensor, burn_in: int) -> Tensor:
        """Return the features `[B, out_dim]` of the newest step of a window `[B, W, in]`, which is all it sees."""
        return self.transformer(x, valid)  # type: ignore[no-any-return]


MemoryCore = Recurrent | TransformerMemory


class MemoryEncoder(nn.Module):
    """An `ObsEncoder` whose features go through a memory before they come out.

    Called with windows out of a replay buffer, `[B, W, *shape]` of each group and `VALID` `[B, W]`, it gives the
    features `[B, out_dim]` of the newest step; called so, it is an encoder like any other.

    Args:
        encoder: of the single observation.
        core: the memory.
        burn_in: first steps of a window that are not learnt from.
        stored: whether a batch of windows has `MEMORY` `[B, memory_dim]`, what acted having remembered it before the
            first step of the window; where not, a window begins with a fresh memory.
    """

    def __init__(self, encoder: ObsEncoder, core: MemoryCore, *, burn_in: int, stored: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.core = core
        self.names = encoder.names
        self.out_dim = core.out_dim
        self.memory_dim = core.memory_dim
        self.burn_in = burn_in
        self.stored = stored

    def forward(self, obs: Obs) -> Tensor:
        """Return the features of the newest step of raw windows."""
        valid = obs[VALID]
        x = self.encoder(obs)
        memory = obs[MEMORY] if self.stored else self.fresh(len(x))
        return self.core.window(x, valid, memory, self.burn_in)

    def step(self, obs: Obs, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and the new memory for raw observations `[B, *shape]`: how it acts."""
        return self.core.step(self.encoder(obs), memory)

    def sequence(self, normalized: Obs, memory: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `[T, B, out_dim]` and the memory after each step, of what `normalize` returned.

        Args:
            normalized: `[T, B, *shape]`.
            memory: `[B, memory_dim]` before the first step.
            start: `[T, B]` bool: the step is the first of an episode, and begins with a fresh memory.
        """
        return self.core.sequence(self.encoder.features(normalized), memory, start)

    def unroll(self, normalized: Obs, memory: Tensor, start: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
        """Take any number of steps, of which gradients go back `window` at most; see `sequence` for the arguments.

        Returns:
            Features `[T, B, out_dim]`, the memory before each part of `window` steps `[parts, B, memory_dim]`, and the
            memory after each step `[T, B, memory_dim]`.
        """
        features, before, after = [], [], []
        for t in range(0, len(start), window):
            part = slice(t, t + window)
            before.append(memory)
            of_part, memories = self.sequence(tree_index(normalized, part), memory, start[part])
            memory = memories[-1].detach()
            features.append(of_part)
            after.append(memories)
        return torch.cat(features), torch.stack(before), torch.cat(after)

    def fresh(self, rows: int) -> Tensor:
        """Return the memory `[rows, memory_dim]` with which an episode begins."""
        return next(self.parameters()).new_zeros(rows, self.memory_dim)

    def normalize(self, obs: Obs) -> dict[str, Tensor]:
        """Return the groups this encoder reads, vectors normalised."""
        return self.encoder.normalize(obs)

    def denormalize(self, normalized: Obs) -> dict[str, Tensor]:
        """Return raw observations for normalised ones."""
        return self.encoder.denormalize(normalized)

    def see(self, obs: Obs) -> dict[str, Tensor]:
        """Return the groups with the features of images in their place; see `ObsEncoder.see`."""
        return self.encoder.see(obs)

    def update_normalizers(self, obs: Obs, valid: Tensor | None = None) -> None:
        """Take a batch of single observations into the statistics; see `ObsEncoder.update_normalizers`."""
        self.encoder.update_normalizers(obs, valid)


Encoder = ObsEncoder | MemoryEncoder
"""From observation groups to features, of the present alone or of what is remembered."""


def single(encoder: Encoder) -> ObsEncoder:
    """Return what encodes a single observation."""
    return encoder.encoder if isinstance(encoder, MemoryEncoder) else encoder


def make_encoder(
    groups: Mapping[str, ObsGroup],
    names: Sequence[str],
    normalize: bool,
    memory: MemoryConfig,
    generator: torch.Generator,
    image_encoder: ImageEncoderKind = "nature",
    *,
    stored: bool = False,
) -> Encoder:
    """Build the encoder of a policy, critic or value network, with memory where it is wanted.

    Args:
        groups: what the environment shows.
        names: the groups that are read.
        normalize: normalise vector observations by running statistics.
        memory: what is remembered.
        generator: source of the initial weights.
        image_encoder: of image groups.
        stored: as of `MemoryEncoder`; for what acts, unless its memory is the window itself.
    """
    encoder = ObsEncoder(groups, names, normalize, generator, image_encoder)
    if memory.kind == "none":
        return encoder
    core: MemoryCore
    if memory.kind == "transformer":
        core = TransformerMemory(encoder.out_dim, memory, generator)
    else:
        core = Recurrent(memory.kind, encoder.out_dim, memory.size, generator)
    return MemoryEncoder(encoder, core, burn_in=memory.burn_in, stored=stored and memory.stored_dim > 0)
