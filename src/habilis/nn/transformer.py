"""A transformer encoder over a window of history (Vaswani et al. 2017), normalising before it attends.

Normalisation stands before each part instead of after it, which needs no warm-up of the step size (Xiong et al. 2020).
A step sees the steps before it in the window that belong to the same episode, and itself. Positions are learnt and
count from the oldest place of the window, the newest step being always the last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from habilis.core.acceleration import hidden_layers
from habilis.core.config import require
from habilis.nn.init import linear
from habilis.nn.norms import LayerNorm

EXPANSION = 4


class TransformerEncoder(nn.Module):
    """A window `[B, T, in]` to features `[B, out_dim]` of its last step, or of every step.

    Args:
        in_dim: width of a step.
        window: T.
        width: of the features.
        layers: how many, each of attention and a hidden layer of four times the width.
        heads: of attention; they divide the width.
        generator: source of the initial weights.

    Raises:
        ConfigError: a width that the heads do not divide, or no layer.
    """

    def __init__(
        self, in_dim: int, window: int, width: int, layers: int, heads: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        require(layers > 0, f"a transformer needs at least one layer, got {layers}")
        fits = heads > 0 and width % heads == 0
        require(fits, f"the width of a transformer must be a multiple of its heads, got {width} and {heads}")
        self.out_dim = width
        self.embedding = linear(in_dim, width, generator)
        self.positions = nn.Parameter(torch.empty(window, width))
        with torch.no_grad():
            self.positions.normal_(0, 0.02, generator=generator)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, layers, generator) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.register_buffer("causal", torch.ones(window, window, dtype=torch.bool).tril(), persistent=False)
        self.register_buffer("itself", torch.eye(window, dtype=torch.bool), persistent=False)

    causal: Tensor
    itself: Tensor

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return the features `[B, out_dim]` of the last step.

        Args:
            x: `[B, T, in]`, the newest step last.
            valid: `[B, T]` bool: the step belongs to the episode of the last one; what others hold has no influence.
        """
        return self._encode(x, valid, every=False).squeeze(1)

    def sequence(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return the features `[B, T, out_dim]` of every step, of those that are not valid 0; see `forward`."""
        return self._encode(x, valid, every=True) * valid.unsqueeze(-1)

    def _encode(self, x: Tensor, valid: Tensor, *, every: bool) -> Tensor:
        # a step that is not valid sees itself, so that there is something to see: nobody else sees it
        sees = (self.causal & valid.unsqueeze(1)) | self.itself
        x = torch.where(valid.unsqueeze(-1), x, 0.0)
        *layers, last = self.layers
        with hidden_layers(x.device):
            features = self.embedding(x).to(x.dtype) + self.positions
            for layer in layers:
                features = layer(features, features, sees)
            # of the last layer only what is asked for
            features = last(features, features, sees) if every else last(features[:, -1:], features, sees[:, -1:])
        return self.norm(features)  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Attention, then a hidden layer, each normalised before and added after.

    Args:
        width: of the features.
        heads: of attention.
        layers: of the network: what is added begins smaller in a deep one (Radford et al. 2019).
        generator: source of the initial weights.
    """

    def __init__(self, width: int, heads: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = LayerNorm(width)
        self.query = linear(width, width, generator)
        self.key_value = linear(width, 2 * width, generator)
        self.attended = linear(width, width, generator)
        self.before_hidden = LayerNorm(width)
        self.expand = linear(width, EXPANSION * width, generator)
        self.activation = nn.GELU()
        self.contract = linear(EXPANSION * width, width, generator)
        with torch.no_grad():
            for layer in (self.attended, self.contract):
                layer.weight.div_(math.sqrt(2 * layers))

    def forward(self, x: Tensor, context: Tensor, sees: Tensor) -> Tensor:
        """Return the next features `[B, Q, width]` of steps `x` that see those of `context` `[B, T, width]`.

        Args:
            x: `[B, Q, width]`.
            context: `[B, T, width]`.
            sees: `[B, Q, T]` bool.
        """
        x = x + self._attend(self.before_attention(x), self.before_attention(context), sees)
        hidden = self.activation(self.expand(self.before_hidden(x)))
        return x + self.contract(hidden)  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, context: Tensor, sees: Tensor) -> Tensor:
        def split(part: Tensor) -> Tensor:
            parts: Tensor = part.unflatten(-1, (self.heads, -1))  # which no rows have too
            return parts.transpose(1, 2)

        key, value = map(split, self.key_value(context).chunk(2, -1))
        query = split(self.query(x))
        scores = (query @ key.mT).to(context.dtype) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~sees.unsqueeze(1), -math.inf).softmax(-1)
        return self.attended((weights @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
