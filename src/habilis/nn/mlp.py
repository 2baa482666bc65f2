"""Multi-layer perceptrons: the plain one and the ensemble that runs many copies as one batched product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.acceleration import hidden_layers
from habilis.nn.init import init_, linear

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


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
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(linear(in_dim, width, generator, gain=math.sqrt(2) if orthogonal else None))
            layers.append(ACTIVATIONS[activation]())
            in_dim = width
        self.hidden = nn.Sequential(*layers)
        self.out: nn.Module = nn.Identity()
        if out_dim is not None:
            self.out = linear(in_dim, out_dim, generator, gain=out_gain if orthogonal else None)
        self.out_dim = out_dim if out_dim is not None else in_dim

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network."""
        with hidden_layers(x.device):
            features = self.hidden(x)
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]


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
    """`copies` MLPs of the same shape with weights of their own: `[B, in] -> [copies, B, out]`."""

    def __init__(
        self,
        copies: int,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        activation: Activation,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.copies = copies
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [EnsembleLinear(copies, in_dim, width, generator), ACTIVATIONS[activation]()]
            in_dim = width
        self.hidden = nn.Sequential(*layers)
        self.out = EnsembleLinear(copies, in_dim, out_dim, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Give every copy the same input."""
        with hidden_layers(x.device):
            features = self.hidden(x.expand(self.copies, *x.shape))
        return self.out(features.to(x.dtype))  # type: ignore[no-any-return]
