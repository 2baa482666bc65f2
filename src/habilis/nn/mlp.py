"""Multi-layer perceptrons: the plain one and the ensemble that runs many copies as one batched product.

Hidden layers may be regularised by dropout and layer normalisation, in the order of DroQ (Hiraoka et al. 2022): linear,
dropout, normalisation, activation. What dropout multiplies by is an argument, drawn by `noise`; without it nothing is
dropped, which is how networks act.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.acceleration import hidden_layers
from habilis.nn.init import init_, linear
from habilis.nn.norms import LayerNorm

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


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


class HiddenLayers(nn.Sequential):
    """Layers one after the other, of which `Dropout` takes its part of the noise, where there is noise."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(*layers)
        self.noise_parts = [layer.width for layer in layers if isinstance(layer, Dropout)]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the layers; `noise` is `[..., sum(noise_parts)]`."""
        factors = iter(()) if noise is None else iter(noise.split(self.noise_parts, -1))
        for layer in self:
            if not isinstance(layer, Dropout):
                x = layer(x)
            elif noise is not None:
                x = layer(x, next(factors))
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
        out_gain: gain of the output layer under orthogonal initialisation.
        layer_norm: normalise what comes out of each hidden product, before its activation.
        dropout: probability with which a value of a hidden layer is left out, where noise is given.
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
        out_gain: float = 1.0,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(linear(in_dim, width, generator, gain=math.sqrt(2) if orthogonal else None))
            layers += [Dropout(width)] if dropout else []
            layers += [LayerNorm(width)] if layer_norm else []
            layers.append(ACTIVATIONS[activation]())
            in_dim = width
        self.hidden = HiddenLayers(layers)
        self.out: nn.Module = nn.Identity()
        if out_dim is not None:
            self.out = linear(in_dim, out_dim, generator, gain=out_gain if orthogonal else None)
        self.out_dim = out_dim if out_dim is not None else in_dim

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply the network; without `noise` nothing is dropped."""
        with hidden_layers(x.device):
            features = self.hidden(x, noise)
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]

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
    ) -> None:
        super().__init__()
        self.copies = copies
        self.dropout = dropout
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(EnsembleLinear(copies, in_dim, width, generator))
            layers += [Dropout(width)] if dropout else []
            layers += [LayerNorm(copies, 1, width)] if layer_norm else []
            layers.append(ACTIVATIONS[activation]())
            in_dim = width
        self.hidden = HiddenLayers(layers)
        self.out = EnsembleLinear(copies, in_dim, out_dim, generator)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Give every copy the same input and noise of its own; without `noise` nothing is dropped."""
        with hidden_layers(x.device):
            features = self.hidden(x.expand(self.copies, *x.shape), noise)
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw dropout's factors `[copies, rows, values]` for a batch of `rows`; without dropout without values."""
        return dropout_factors((self.copies, rows, sum(self.hidden.noise_parts)), self.dropout, generator)
