"""Linear systems whose matrix is known by its products alone, as natural gradients need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v `[P]` to A v `[P]`, for a symmetric matrix A that is never written down."""


def conjugate_gradient(product: Product, b: Tensor, max_steps: int, tolerance: float = 1e-10) -> Tensor:
    """Return x `[P]` with A x = b, for A symmetric and positive definite (Hestenes and Stiefel 1952).

    Straight-line: the steps after the residual's squared norm has fallen to `tolerance` change nothing.

    Args:
        product: multiplies by A.
        b: `[P]`.
        max_steps: products to make; P of them give the exact solution, fewer the best in their Krylov space.
        tolerance: on the squared norm of b - A x.
    """
    x = torch.zeros_like(b)
    residual = direction = b
    squared = residual.dot(residual)
    for _ in range(max_steps):
        image = product(direction)
        going = squared > tolerance
        step = torch.where(going, squared / torch.where(going, direction.dot(image), 1.0), 0.0)
        x = x + step * direction
        residual = residual - step * image
        previous, squared = squared, residual.dot(residual)
        direction = residual + torch.where(going, squared / previous, 0.0) * direction
    return x


def gauss_newton_product(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], curvature: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> Product:
    """Return v -> J^T C J v, where J is the Jacobian of `outputs` with respect to `parameters`.

    With the outputs that describe a distribution and their Fisher information for C this is the Fisher information of
    the parameters, and equals the Hessian of the KL divergence from that distribution at the parameters where it is 0
    (Martens 2020, section 9). J v is the derivative of J^T u by u (two reverse passes make a forward one), so
    a product costs two passes through the network's graph, half of what differentiating the divergence twice does.

    Args:
        outputs: any shapes, differentiable in `parameters`.
        parameters: of P values together, in the order of v.
        curvature: multiplies tensors of the shapes of `outputs` by C.
    """
    learnt = [k for k, output in enumerate(outputs) if output.requires_grad]  # a deviation may be fixed
    variable = [outputs[k] for k in learnt]
    duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = flatten(torch.autograd.grad(variable, parameters, [duals[k] for k in learnt], create_graph=True))

    def product(v: Tensor) -> Tensor:
        tangents = torch.autograd.grad(pulled, duals, v, retain_graph=True, materialize_grads=True)
        pushed = curvature(tangents)
        return flatten(torch.autograd.grad(variable, parameters, [pushed[k] for k in learnt], retain_graph=True))

    return product


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
