"""Adam over the parameters of some modules, held as one vector.

The parameters become views of one flat tensor, so that clipping, the Adam step and Polyak averaging are one operation
each however many layers there are, and gradients are taken for exactly these parameters: no other network moves, and
none needs to be frozen for it. Whatever changes (the learning rate) is a tensor, changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from habilis.core.types import State


def flatten_parameters(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Move parameters into one new vector, of which each becomes a view, and return it."""
    parameters = list(parameters)
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    offset = 0
    for p in parameters:
        p.data = flat[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    return flat


class Optimizer:
    """One Adam optimiser with gradient clipping and a guard against gradients that are not finite.

    Args:
        parameters: what is learnt.
        learning_rate: step size.
        eps: Adam's epsilon.
        max_grad_norm: largest Euclidean norm of the gradient; None for no clipping.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        eps: float = 1e-8,
        max_grad_norm: float | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.flat = flatten_parameters(self.parameters)
        self.learning_rate = torch.tensor(learning_rate, device=self.flat.device)
        self.max_grad_norm = max_grad_norm
        self.skipped = torch.zeros((), device=self.flat.device)
        self._adam = torch.optim.Adam([self.flat], lr=self.learning_rate, eps=eps, fused=True)

    def gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient of `loss` as one vector, with respect to these parameters and no others."""
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.parameters, retain_graph=True)])

    @torch.no_grad()
    def step(self, gradient: Tensor) -> Tensor:
        """Descend by one step and return the norm of the gradient before clipping, 0-d.

        A gradient that is not finite counts in `skipped` and moves nothing: the parameters stay finite, so that the run
        can be stopped with a policy that is whole.
        """
        norm: Tensor = torch.linalg.vector_norm(gradient)
        not_finite = (~norm.isfinite()).to(norm.dtype)
        self.skipped += not_finite
        if self.max_grad_norm is not None:
            gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)
        self.flat.grad = gradient
        # the flag by which mixed precision's gradient scaler tells the fused step to do nothing
        self._adam.found_inf = not_finite  # type: ignore[attr-defined]
        self._adam.step()
        return norm

    def state_dict(self) -> State:
        """Return moments, step count, learning rate and the count of skipped steps."""
        adam = self._adam.state_dict()["state"]
        return {"adam": adam.get(0, {}), "learning_rate": self.learning_rate.clone(), "skipped": self.skipped.clone()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned, copying it: Adam would go on with the very tensors it is given."""
        template = self._adam.state_dict()
        moments = {name: saved.clone() for name, saved in state["adam"].items()}
        self._adam.load_state_dict({**template, "state": {0: moments} if moments else {}})
        self._adam.param_groups[0]["lr"] = self.learning_rate
        self.learning_rate.copy_(state["learning_rate"])
        self.skipped.copy_(state["skipped"])
