"""Initialisation from a given generator, so that making a network touches no global random state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


def linear(in_features: int, out_features: int, generator: torch.Generator, *, gain: float | None = None) -> nn.Linear:
    """Make a linear layer: orthogonal weights scaled by `gain` and zero bias, or PyTorch's default where it is None."""
    layer = skip_init(nn.Linear, in_features, out_features)
    assert isinstance(layer, nn.Linear)
    init_(layer.weight, layer.bias, in_features, generator, gain)
    return layer


def conv(
    channels: int,
    out: int,
    kernel: int,
    generator: torch.Generator,
    *,
    stride: int = 1,
    padding: int = 0,
    gain: float | None = None,
) -> nn.Conv2d:
    """Make a two-dimensional convolution; see `linear` for `gain`."""
    layer = skip_init(nn.Conv2d, channels, out, kernel, stride, padding)
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    init_(layer.weight, layer.bias, channels * kernel * kernel, generator, gain)
    return layer


def init_(weight: Tensor, bias: Tensor, fan_in: int, generator: torch.Generator, gain: float | None) -> None:
    """Fill a weight and its bias in place; see `linear`."""
    with torch.no_grad():
        if gain is None:
            bound = 1 / math.sqrt(fan_in)
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        else:
            nn.init.orthogonal_(weight, gain, generator=generator)
            bias.zero_()
