"""Normalisation within a network, for one network or an ensemble of them (`[copies, B, width]`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-5


class LayerNorm(nn.Module):
    """Normalise the last axis to mean 0 and variance 1, then apply a learnt gain and bias (Ba et al. 2016).

    Computed in the precision of its parameters.

    Args:
        shape: of gain and bias: `width`, or `copies, 1, width` for an ensemble, each copy having its own.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the normalisation."""
        normalized, _ = _Standardize.apply(x.to(self.weight.dtype))  # type: ignore[no-untyped-call]
        return torch.addcmul(self.bias, normalized, self.weight)


class _Standardize(torch.autograd.Function):
    """Mean 0 and variance 1 of the last axis, and one over the deviation: PyTorch's own gradient is not recordable.

    The deviation is a result so that the gradient can be differentiated again, as trust regions do.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[..., width]` and `[..., 1]`."""
        normalized, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, EPS)
        ctx.save_for_backward(normalized, rstd)
        ctx.set_materialize_grads(False)
        return normalized, rstd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        """Return the gradient with respect to `x`."""
        normalized, rstd = ctx.saved_tensors
        g, g_rstd = gradients
        result = None
        if g is not None:
            along = (g * normalized).mean(-1, keepdim=True)
            result = (g - torch.addcmul(g.mean(-1, keepdim=True), normalized, along)) * rstd
        if g_rstd is not None:
            through_rstd = normalized * (g_rstd * rstd.square() / -normalized.shape[-1])
            result = through_rstd if result is None else result + through_rstd
        return result
