"""Activations of hidden layers, by name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]

_LARGE = 4096
"""Values from which on a tangent is quicker made of a sigmoid."""


class _LargeTanh(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.rsub(torch.sigmoid(x + x), -1, alpha=-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aten.tanh_backward(gradients[0], *ctx.saved_tensors)
        return gradient

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        tangent: Tensor = tangents[0] * (1 - result * result)
        return tangent


class Tanh(nn.Module):
    """The hyperbolic tangent, exact to 2e-7.

    PyTorch leaves it to a library that takes 2 ns a value on processors of AMD; `2 sigmoid(2x) - 1` takes a fifth of
    that where there are many values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        quick = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
        if not quick or x.numel() < _LARGE:
            return x.tanh()
        return _LargeTanh.apply(x)  # type: ignore[no-any-return, no-untyped-call]


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
