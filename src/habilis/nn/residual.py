"""Residual networks that grow without harm: SimBa (Lee et al. 2024) and SimBaV2 (Lee et al. 2025), one or an ensemble.

Both begin with a linear embedding and go through blocks that add to it what a hidden layer of four times the width
gives. SimBa normalises what enters each block and what leaves the last. SimBaV2 keeps features and the weights of each
unit at length 1: weights are put back to it after each optimiser step, lengths are learnt apart as scalers, and a block
moves the features a learnt part of the way. A block's wide layer may have dropout, and SimBa may normalise by the batch
(`BatchRenorm`) where it normalises by the layer, and its input too. Both expect observations normalised by running
statistics, as `ObsEncoder` does. Deviation from SimBaV2: its features are multiplied by the root of their number, and
the output, being a policy's head or quantiles that no bins confine, is an ordinary linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from habilis.core.acceleration import hidden_layers
from habilis.nn.activations import ACTIVATIONS, Activation
from habilis.nn.init import init_, linear
from habilis.nn.mlp import Block, Dropout, EnsembleLinear, HiddenLayers, dropout_factors
from habilis.nn.norms import BatchRenorm, LayerNorm

EXPANSION = 4
SHIFT = 3.0
"""The value that SimBaV2 adds to an observation, so that its length is not lost when it is scaled to 1."""

ResidualKind = Literal["simba", "simba_v2"]


class ResidualNetwork(nn.Module):
    """`[..., in] -> [..., out]`, or with copies `[B, in] -> [copies, B, out]`.

    Args:
        kind: SimBa or SimBaV2.
        copies: networks with weights of their own, computed as batched products; None for one network.
        in_dim: width of the input.
        hidden: the width of the features, once for each block.
        out_dim: width of the linear output; None ends with the features.
        activation: within the blocks.
        generator: source of the initial weights.
        dropout: probability with which a value of a block's wide layer is left out, where noise is given.
        renorm_warmup: of a SimBa that normalises over the batch, updates of the statistics before it corrects by them;
            None normalises each row.
    """

    def __init__(
        self,
        kind: ResidualKind,
        copies: int | None,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int | None,
        activation: Activation,
        generator: torch.Generator,
        *,
        dropout: float = 0.0,
        renorm_warmup: int | None = None,
    ) -> None:
        super().__init__()
        self.copies = copies
        self.dropout = dropout
        width, blocks, part = hidden[0], len(hidden), (copies, hidden[0], activation, generator)
        if kind == "simba":
            embedding = _linear(copies, in_dim, width, generator, gain=1.0)
            residuals: list[nn.Module] = [SimBaBlock(*part, dropout, renorm_warmup) for _ in range(blocks)]
            first = [] if renorm_warmup is None else [_norm(copies, in_dim, renorm_warmup)]
            layers = [*first, embedding, *residuals, _norm(copies, width, renorm_warmup)]
        else:
            embedded = SphericalEmbedding(copies, in_dim, width, generator)
            layers = [embedded, *(SphericalBlock(*part, dropout, blocks) for _ in range(blocks)), RootMeanSquareOne()]
        self.hidden = HiddenLayers(layers)
        self.out = nn.Identity() if out_dim is None else _linear(copies, hidden[0], out_dim, generator, gain=1.0)
        self.out_dim = hidden[0] if out_dim is None else out_dim
        self.on_spheres = [layer for layer in self.modules() if isinstance(layer, SphericalLinear)]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the network, or every copy to the same input; without `noise` nothing is dropped."""
        with hidden_layers(x.device):
            features = self.hidden(self._given(x), noise)
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]

    def learn(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the network to a batch as it learns; the second result is for `after_step`."""
        with hidden_layers(x.device):
            features, statistics = self.hidden.learn(self._given(x), noise)
        return self.out(features.to(x.dtype)), statistics

    def _given(self, x: Tensor) -> Tensor:
        # as many copies as there are weights: a caller may ask some of them alone
        return x if self.copies is None else x.expand(len(next(self.parameters())), *x.shape)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw dropout's factors for a batch of `rows`; without dropout there are no values."""
        shape = (*_lead(self.copies), rows, sum(self.hidden.noise_parts))
        return dropout_factors(shape, self.dropout, generator)

    def after_step(self, statistics: Tensor) -> None:
        """Finish an optimiser's step: the batch's statistics go into the running ones, and weights to their sphere."""
        self.hidden.update(statistics)
        for layer in self.on_spheres:
            layer.project()


class SimBaBlock(Block):
    """`x + W2 activation(W1 norm(x))`; see `ResidualNetwork`."""

    def __init__(
        self,
        copies: int | None,
        width: int,
        activation: Activation,
        generator: torch.Generator,
        dropout: float,
        renorm_warmup: int | None,
    ) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.norm = _norm(copies, width, renorm_warmup)
        self.expand = _he_normal(_linear(copies, width, inner, generator), width, generator)
        self.drop = Dropout(inner) if dropout else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        self.contract = _he_normal(_linear(copies, inner, width, generator), inner, generator)

    def layers(self) -> list[nn.Module]:
        """Return the layers."""
        return [self.norm, self.expand, self.drop, self.activation, self.contract]

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Add."""
        return x + y


class SphericalLinear(nn.Module):
    """A linear layer without bias, the weights of each output of length 1: `[..., in] -> [..., out]`."""

    def __init__(self, copies: int | None, in_features: int, out_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*_lead(copies), in_features, out_features))
        with torch.no_grad():
            for one in self.weight.view(-1, in_features, out_features):
                nn.init.orthogonal_(one, generator=generator)
        self.project()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return x @ self.weight

    @torch.no_grad()
    def project(self) -> None:
        """Bring the weights of each output back to length 1."""
        # a tenth of the time of PyTorch's norm along an axis that is not the last
        self.weight.mul_(self.weight.square().sum(-2, keepdim=True).clamp_min(1e-16).rsqrt())


class Scaler(nn.Module):
    """Learnt factors that begin at `initial`; what is learnt begins at `scale`, which sets how fast they move."""

    def __init__(self, copies: int | None, width: int, initial: float, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,) if copies is None else (copies, 1, width), scale))
        self.ratio = initial / scale

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `[..., width]`."""
        return x * self.factors()

    def factors(self) -> Tensor:
        """Return what is multiplied by."""
        return self.weight * self.ratio


class SphericalEmbedding(nn.Module):
    """An observation with a constant beside it, scaled to length 1, and its linear image, scaled again."""

    def __init__(self, copies: int | None, in_dim: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = SphericalLinear(copies, in_dim + 1, width, generator)
        self.scaler = Scaler(copies, width, math.sqrt(2 / width), math.sqrt(2 / width))

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[..., in]`."""
        return unit(self.scaler(self.linear(unit(F.pad(x, (0, 1), value=SHIFT)))))


class SphericalBlock(Block):
    """Moves features on the sphere a learnt part of the way to what a hidden layer says (equations 10 to 12).

    Args:
        copies: of the network.
        width: of the features.
        activation: of the hidden layer.
        generator: source of the initial weights.
        dropout: of the hidden layer.
        blocks: of the network: each first goes one part in `blocks + 1` of the way.
    """

    def __init__(
        self,
        copies: int | None,
        width: int,
        activation: Activation,
        generator: torch.Generator,
        dropout: float,
        blocks: int,
    ) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.expand = SphericalLinear(copies, width, inner, generator)
        self.scaler = Scaler(copies, inner, math.sqrt(2 / inner), math.sqrt(2 / inner))
        self.drop = Dropout(inner) if dropout else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        self.contract = SphericalLinear(copies, inner, width, generator)
        self.step = Scaler(copies, width, 1 / (blocks + 1), 1 / math.sqrt(width))

    def layers(self) -> list[nn.Module]:
        """Return the layers."""
        return [self.expand, self.scaler, self.drop, self.activation, self.contract]

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Go part of the way from features of length 1."""
        return unit(torch.lerp(x, unit(y.to(x.dtype)), self.step.factors()))


class RootMeanSquareOne(nn.Module):
    """Features of length 1 to features of mean square 1, as those of a layer norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return x * math.sqrt(x.shape[-1])


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length 1, zeros staying zeros."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-16).rsqrt()


def _lead(copies: int | None) -> tuple[int, ...]:
    return () if copies is None else (copies,)


def _norm(copies: int | None, width: int, renorm_warmup: int | None) -> LayerNorm | BatchRenorm:
    shape = (width,) if copies is None else (copies, 1, width)
    return LayerNorm(*shape) if renorm_warmup is None else BatchRenorm(*shape, warmup=renorm_warmup)


def _linear(
    copies: int | None, in_features: int, out_features: int, generator: torch.Generator, gain: float | None = None
) -> nn.Linear | EnsembleLinear:
    if copies is None:
        return linear(in_features, out_features, generator, gain=gain)
    layer = EnsembleLinear(copies, in_features, out_features, generator)
    if gain is not None:
        for weight, bias in zip(layer.weight, layer.bias, strict=True):
            init_(weight, bias, in_features, generator, gain)
    return layer


@torch.no_grad()
def _he_normal(
    layer: nn.Linear | EnsembleLinear, fan_in: int, generator: torch.Generator
) -> nn.Linear | EnsembleLinear:
    """Fill a layer anew: normal weights of variance `2 / fan_in` and zero biases (He et al. 2015)."""
    layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
    layer.bias.zero_()
    return layer
