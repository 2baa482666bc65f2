"""Normalisation within a network, for one network or an ensemble of them (`[copies, B, width]`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-5

RENORM_EPS = 1e-3
MOMENTUM = 0.01
MAX_SCALE, MAX_SHIFT = 3.0, 5.0
"""How far batch renormalisation's correction may go, in units of the running deviation (Ioffe 2017, section 4)."""


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

    Each operation goes over the batch at the speed of memory, which those that join several into one do not. The
    deviation is a result so that the gradient can be differentiated again, as trust regions do.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[..., width]` and `[..., 1]`."""
        centred = x - x.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
        normalized = centred * rstd
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
            result = (g - normalized * along - g.mean(-1, keepdim=True)) * rstd
        if g_rstd is not None:
            through_rstd = normalized * (g_rstd * rstd.square() / -normalized.shape[-1])
            result = through_rstd if result is None else result + through_rstd
        return result


class BatchRenorm(nn.Module):
    """Normalise each value over the batch, corrected towards its running statistics (Ioffe 2017).

    Called, it normalises by the running statistics alone, as policies act and networks are evaluated. `learn` gives
    `gain * (r (x - mean) / deviation + d) + bias`, where `r` and `d` bring the batch's statistics to the running ones
    as far as they may go. In the first `warmup` updates they may not go at all (`r = 1`, `d = 0`): ordinary batch
    normalisation while the running statistics settle, as in CrossQ (Bhatt et al. 2024), which has one step where Ioffe
    has a slope. Computed in the precision of its parameters.

    Args:
        shape: of gain and bias: `width`, or `copies, 1, width` for an ensemble, each copy having its own.
        warmup: updates of the statistics before the correction begins.
    """

    running: Tensor
    """`[..., 2 width]`: mean, then variance."""
    updates: Tensor

    def __init__(self, *shape: int, warmup: int) -> None:
        super().__init__()
        self.width = shape[-1]
        self.warmup = warmup
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running", torch.cat([torch.zeros(shape), torch.ones(shape)], -1))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., width]` (ensemble: `[copies, B, width]`) by the running statistics."""
        mean, var = self.running[..., : self.width], self.running[..., self.width :]
        return torch.addcmul(self.bias, x - mean, self.weight * (var + RENORM_EPS).rsqrt())

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise `[..., B, width]` by the batch.

        Returns:
            The normalised batch, and the batch's mean and variance `[..., 2 width]` for `update`.
        """
        corrects = (self.updates >= self.warmup).to(self.running.dtype)
        max_scale, max_shift = 1 + (MAX_SCALE - 1) * corrects, MAX_SHIFT * corrects
        x = x.to(self.weight.dtype)
        result, mean, var = _Renormalize.apply(x, self.weight, self.bias, self.running, max_scale, max_shift)  # type: ignore[no-untyped-call]
        return result, torch.cat([mean, var], -1).view_as(self.running)

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Move the running statistics towards what `learn` returned; values that are not finite move nothing."""
        self.running.lerp_(torch.where(statistics.isfinite(), statistics, self.running), MOMENTUM)
        self.updates += 1


class _Renormalize(torch.autograd.Function):
    """Batch renormalisation in as few passes over the batch as there can be; what corrects it has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, running: Tensor, *limits: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the normalised batch, its mean and its variance."""
        max_scale, max_shift = limits
        running_mean, running_var = running.chunk(2, -1)
        running_rstd = (running_var + RENORM_EPS).rsqrt()
        mean = x.mean(-2, keepdim=True)
        centred = x - mean
        var = centred.square().mean(-2, keepdim=True)
        rstd = (var + RENORM_EPS).rsqrt()
        scale = rstd * (running_rstd / rstd).clamp(1 / max_scale, max_scale)
        shift = ((mean - running_mean) * running_rstd).clamp(-max_shift, max_shift)
        ctx.save_for_backward(centred, gain, rstd, scale, shift)
        ctx.mark_non_differentiable(mean, var)
        return torch.addcmul(torch.addcmul(bias, gain, shift), centred, gain * scale), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the batch, the gain and the bias."""
        centred, gain, rstd, scale, shift = ctx.saved_tensors
        mean_g, mean_gx = g.mean(-2, keepdim=True), (g * centred).mean(-2, keepdim=True)
        factor = gain * scale
        of_x = torch.addcmul(-factor * mean_g, g, factor)
        of_x = torch.addcmul(of_x, centred, -factor * rstd.square() * mean_gx)
        rows = g.shape[-2]
        of_gain, of_bias = rows * (scale * mean_gx + shift * mean_g), rows * mean_g
        return of_x, of_gain.view_as(gain), of_bias.view_as(gain), None, None, None
