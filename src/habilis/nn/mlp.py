"""Multi-layer perceptrons: the plain one and the ensemble that runs many copies as one batched product.

`HiddenLayers` are also what a residual network (`residual.py`) is made of; its blocks are layers of them.

Hidden layers may be regularised by dropout and layer normalisation, in the order of DroQ (Hiraoka et al. 2022): linear,
dropout, normalisation, activation. What dropout multiplies by is an argument, drawn by `noise`; without it nothing is
dropped, which is how networks act. Batch renormalisation stands where CrossQ (Bhatt et al. 2024) has it: before each
layer, the first and the last included. Called, a network uses the running statistics; `learn` uses the batch's and
returns them for `after_step`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from habilis.core.acceleration import hidden_layers
from habilis.nn.activations import ACTIVATIONS, Activation
from habilis.nn.init import init_, linear
from habilis.nn.norms import BatchRenorm, LayerNorm


class Dropout(nn.Module):
    """A place at which `width` values are multiplied by their part of a network's noise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        """Multiply."""
        return x * factors


def dropout_factors(shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Draw what dropout multiplies by: 0 with probability `rate`, else `1 / (1 - rate)`, independently of each other.

    Drawn are the gaps between zeros, which are geometric: at a rate of 0.01 a hundredth of the random numbers.
    """
    count = math.prod(shape)
    factors = torch.full((count + 1,), 1 / (1 - rate), device=generator.device)
    if rate > 0:
        # as many gaps as reach the end, except once in more than 10^12 times
        gaps = math.ceil(count * rate + 10 * math.sqrt(count * rate) + 20)
        gap = torch.empty(gaps, dtype=torch.int64, device=generator.device).geometric_(rate, generator=generator)
        factors.index_fill_(0, (gap.cumsum(0) - 1).clamp_max(count), 0.0)
    return factors[:count].view(*shape)


class Block(nn.Module, ABC):
    """Layers with a way around them."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the layers, in their order."""

    @abstractmethod
    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what comes out where `x` went in and the layers made `y` of it."""


class HiddenLayers(nn.Sequential):
    """Layers and blocks of them one after the other, some of which take noise or normalise by the batch."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(*layers)
        self.noise_parts = [layer.width for layer in self.modules() if isinstance(layer, Dropout)]
        self.renorms = [layer for layer in self.modules() if isinstance(layer, BatchRenorm)]

    def forward(self, x: Tensor, noise: Tensor | None = None, statistics: list[Tensor] | None = None) -> Tensor:
        """Apply the layers.

        Args:
            x: what goes in.
            noise: `[..., sum(noise_parts)]`, of which each `Dropout` takes its part; None to drop nothing.
            statistics: where the batch's are put, by which each `BatchRenorm` normalises; None for the running ones.
        """
        factors = None if noise is None else iter(noise.split(self.noise_parts, -1))
        return _apply(self, x, factors, statistics)

    def learn(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the layers as they learn; the statistics are side by side, none where nothing normalises by them."""
        statistics: list[Tensor] = []
        result = self(x, noise, statistics)
        return result, torch.cat(statistics, -1) if statistics else x.new_empty(0)

    def update(self, statistics: Tensor) -> None:
        """Take what `learn` returned into the running statistics."""
        if self.renorms:
            for layer, part in zip(
                self.renorms, statistics.split([2 * r.width for r in self.renorms], -1), strict=True
            ):
                layer.update(part)


def _apply(
    layers: Iterable[nn.Module], x: Tensor, factors: Iterator[Tensor] | None, statistics: list[Tensor] | None
) -> Tensor:
    for layer in layers:
        if isinstance(layer, Block):
            x = layer.join(x, _apply(layer.layers(), x, factors, statistics))
        elif isinstance(layer, Dropout):
            x = x if factors is None else layer(x, next(factors))
        elif isinstance(layer, BatchRenorm) and statistics is not None:
            x, of_batch = layer.learn(x)
            statistics.append(of_batch)
        else:
            x = layer(x)
    return x


class MLP(nn.Module):
    """`[..., in] -> [..., out]`: hidden layers, each with an activation, then a linear output where `out_dim` is given.

    Args:
        in_dim: width of the input.
        hidden: widths of the hidden layers.
        out_dim: width of the linear output; None ends with the last hidden activation.
        activation: name of the activation.
        generator: source of the initial weights.
        orthogonal: orthogonal initialisation with gain sqrt(2) (Andrychowicz et al. 2021), else PyTorch's default.
        layer_norm: normalise what comes out of each hidden product, before its activation.
        dropout: probability with which a value of a hidden layer is left out, where noise is given.
        batch_renorm: normalise over the batch what goes into each layer.
        renorm_warmup: updates of the statistics before batch renormalisation corrects by them.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int | None,
        activation: Activation,
        generator: torch.Generator,
        *,
        orthogonal: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        batch_renorm: bool = False,
        renorm_warmup: int = 100_000,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        layers: list[nn.Module] = [BatchRenorm(in_dim, warmup=renorm_warmup)] if batch_renorm else []
        for width in hidden:
            layers.append(linear(in_dim, width, generator, gain=math.sqrt(2) if orthogonal else None))
            layers += [Dropout(width)] if dropout else []
            layers += [LayerNorm(width)] if layer_norm else []
            layers.append(ACTIVATIONS[activation]())
            layers += [BatchRenorm(width, warmup=renorm_warmup)] if batch_renorm else []
            in_dim = width
        self.hidden = HiddenLayers(layers)
        self.out: nn.Module = nn.Identity()
        if out_dim is not None:
            self.out = linear(in_dim, out_dim, generator, gain=1.0 if orthogonal else None)
        self.out_dim = out_dim if out_dim is not None else in_dim

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the network; without `noise` nothing is dropped."""
        with hidden_layers(x.device):
            features = self.hidden(x, noise)
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]

    def learn(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the network to a batch as it learns; the second result is for `after_step`."""
        with hidden_layers(x.device):
            features, statistics = self.hidden.learn(x, noise)
        return self.out(features.to(x.dtype)), statistics

    def after_step(self, statistics: Tensor) -> None:
        """Finish an optimiser's step: the batch's statistics go into the running ones."""
        self.hidden.update(statistics)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw dropout's factors `[rows, values]` for a batch of `rows`; without dropout there are no values."""
        return dropout_factors((rows, sum(self.hidden.noise_parts)), self.dropout, generator)


class EnsembleLinear(nn.Module):
    """`copies` linear layers as one batched product: `[copies, B, in] -> [copies, B, out]`."""

    def __init__(self, copies: int, in_features: int, out_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(copies, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(copies, 1, out_features))
        init_(self.weight, self.bias, in_features, generator, None)

    def forward(self, x: Tensor) -> Tensor:
        """Apply copy k to `x[k]`."""
        if self.weight.shape[-1] == 1:  # for one column, batched products take two to five times as long
            return (x * self.weight.transpose(1, 2)).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleMLP(nn.Module):
    """`copies` MLPs of the same shape with weights of their own: `[B, in] -> [copies, B, out]`; see `MLP`."""

    def __init__(
        self,
        copies: int,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        activation: Activation,
        generator: torch.Generator,
        *,
        layer_norm: bool = False,
        dropout: float = 0.0,
        batch_renorm: bool = False,
        renorm_warmup: int = 100_000,
    ) -> None:
        super().__init__()
        self.copies = copies
        self.out_dim = out_dim
        self.dropout = dropout
        layers: list[nn.Module] = [BatchRenorm(copies, 1, in_dim, warmup=renorm_warmup)] if batch_renorm else []
        for width in hidden:
            layers.append(EnsembleLinear(copies, in_dim, width, generator))
            layers += [Dropout(width)] if dropout else []
            layers += [LayerNorm(copies, 1, width)] if layer_norm else []
            layers.append(ACTIVATIONS[activation]())
            layers += [BatchRenorm(copies, 1, width, warmup=renorm_warmup)] if batch_renorm else []
            in_dim = width
        self.hidden = HiddenLayers(layers)
        self.out = EnsembleLinear(copies, in_dim, out_dim, generator)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Give every copy the same input and noise of its own; without `noise` nothing is dropped."""
        with hidden_layers(x.device):
            features = self.hidden(x.expand(len(self.out.weight), *x.shape), noise)
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]

    def learn(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the network to a batch as it learns; the second result is for `after_step`."""
        with hidden_layers(x.device):
            features, statistics = self.hidden.learn(x.expand(len(self.out.weight), *x.shape), noise)
        return self.out(features.to(x.dtype)), statistics

    def after_step(self, statistics: Tensor) -> None:
        """Finish an optimiser's step: the batch's statistics go into the running ones."""
        self.hidden.update(statistics)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw dropout's factors `[copies, rows, values]` for a batch of `rows`; without dropout without values."""
        return dropout_factors((self.copies, rows, sum(self.hidden.noise_parts)), self.dropout, generator)
