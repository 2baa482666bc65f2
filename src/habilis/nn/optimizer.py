"""Adam, AdamW and RMSProp over the parameters of some modules, held as one vector.

The parameters become views of one flat tensor, so that clipping, the optimiser's step and Polyak averaging are one
operation each however many layers there are, and gradients are taken for exactly these parameters: no other network
moves, and none needs to be frozen for it. Whatever changes (the learning rate) is a tensor, changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from habilis.core.schedules import Schedule, scheduled
from habilis.core.types import State

OptimizerKind = Literal["adam", "rmsprop"]

RMSPROP_DECAY = 0.99
"""Of RMSProp's mean of squared gradients, as in Mnih et al. (2016)."""


def flatten_parameters(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return one vector of which each parameter is a view.

    Parameters that already lie in one, side by side and in this order, stay there, so that a second optimiser can learn
    a part of what another does; others are moved into a new one.
    """
    parameters = list(parameters)
    first = parameters[0]
    place = first.storage_offset()
    for p in parameters:
        if p.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or p.storage_offset() != place:
            break
        place += p.numel()
    else:
        return first.detach().as_strided((place - first.storage_offset(),), (1,))
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    offset = 0
    for p in parameters:
        p.data = flat[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    return flat


def parameters_besides(module: nn.Module, other: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module but for those that it shares with another, which learns them."""
    shared = set(other.parameters())
    return [p for p in module.parameters() if p not in shared]


class Optimizer:
    """One optimiser with gradient clipping and a guard against gradients that are not finite.

    Args:
        parameters: what is learnt.
        learning_rate: step size.
        eps: what is added to the root of the mean of squared gradients.
        max_grad_norm: largest Euclidean norm of the gradient; None for no clipping.
        kind: Adam (Kingma and Ba 2015), or RMSProp (Tieleman and Hinton 2012), not centred and without momentum.
        beta1: share of Adam's mean gradient that a step keeps.
        weight_decay: share of each parameter, times the step size, that a step of Adam takes away besides (AdamW,
            Loshchilov and Hutter 2019).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        eps: float = 1e-8,
        max_grad_norm: float | None = None,
        kind: OptimizerKind = "adam",
        beta1: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        self.kind = kind
        self.parameters = list(parameters)
        self.flat = flatten_parameters(self.parameters)
        self.learning_rate = torch.tensor(learning_rate, device=self.flat.device)
        self.max_grad_norm = max_grad_norm
        self.skipped = torch.zeros((), device=self.flat.device)
        self.eps = eps
        self.beta1 = beta1
        self.weight_decay = weight_decay
        self._first_rate = learning_rate
        names = ("exp_avg", "exp_avg_sq") if kind == "adam" else ("square_avg",)
        self.moments = {name: torch.zeros_like(self.flat) for name in names}
        self.steps = torch.zeros((), device=self.flat.device)

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the gradient of `loss` with respect to these parameters and no others.

        Returns:
            `gradient`: one vector `[P]`, clipped. `grad_norm`: its norm before, 0-d; NaN where the loss is not finite,
            of which the gradient may be (an absolute error of infinity has one of 1).
        """
        parts = torch.autograd.grad(loss, self.parameters, retain_graph=True)
        gradient = torch.cat([part.reshape(-1) for part in parts])
        norm = torch.linalg.vector_norm(gradient) + 0 * loss.detach()
        if self.max_grad_norm is not None:
            gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)
        return {"gradient": gradient, "grad_norm": norm}

    def anneal(self, schedule: Schedule, progress: float) -> None:
        """Set the step size for the progress of the run, 0 to 1."""
        self.learning_rate.fill_(scheduled(self._first_rate, schedule, progress))

    def step(self, gradient: Tensor, grad_norm: Tensor) -> None:
        """Descend by one step along what `gradient` returned.

        A gradient that is not finite counts in `skipped` and moves nothing: the parameters stay finite, so that the run
        can be stopped with a policy that is whole.
        """
        self.steps += 1
        if grad_norm.is_cpu and math.isfinite(grad_norm):  # nearly always, and what a GPU would have to be waited for
            not_finite = None
        else:
            # 1 or 0: an infinity less itself is not 0 but NaN, and so is NaN less itself
            not_finite = (grad_norm - grad_norm).ne_(0)
            self.skipped += not_finite
            self.steps -= not_finite
        if self.kind == "adam":
            self._adam_step(gradient, not_finite)
        else:
            self._rmsprop_step(gradient, not_finite)

    def _adam_step(self, gradient: Tensor, not_finite: Tensor | None) -> None:
        # what PyTorch's own fused Adam calls, without sorting parameters by device, which takes three times as long
        fused = torch._fused_adamw_ if self.weight_decay else torch._fused_adam_
        fused(
            [self.flat],
            [gradient],
            [self.moments["exp_avg"]],
            [self.moments["exp_avg_sq"]],
            [],
            [self.steps],
            lr=self.learning_rate,
            beta1=self.beta1,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            # the flag by which mixed precision's gradient scaler tells the fused step to do nothing
            found_inf=not_finite,
        )

    def _rmsprop_step(self, gradient: Tensor, not_finite: Tensor | None) -> None:
        square_avg, weight = self.moments["square_avg"], 1 - RMSPROP_DECAY
        if not_finite is None:
            square_avg.lerp_(gradient.square(), weight)
        else:  # no weight and no gradient: nothing moves
            gradient = torch.where(not_finite.bool(), 0.0, gradient)
            square_avg.lerp_(gradient.square(), weight * (1 - not_finite))
        self.flat.addcdiv_(gradient * self.learning_rate, square_avg.sqrt() + self.eps, value=-1)

    def share(self) -> dict[str, Tensor]:
        """Move the parameters and all that a step changes to memory that other processes can be given; return it."""
        return {name: tensor.share_memory_() for name, tensor in {"flat": self.flat, **self._state()}.items()}

    def attach(self, shared: dict[str, Tensor]) -> None:
        """Step from now on what another process's `share` returned: not these parameters, which stay as they are."""
        self.flat = shared["flat"]
        self.moments = {name: shared[name] for name in self.moments}
        self.steps, self.learning_rate, self.skipped = (shared[n] for n in ("steps", "learning_rate", "skipped"))

    def state_dict(self) -> State:
        """Return moments, step count, learning rate, the one it began with, and the count of skipped steps."""
        first_rate = torch.tensor(self._first_rate, dtype=torch.float64)
        return {name: tensor.clone() for name, tensor in self._state().items()} | {"first_rate": first_rate}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned, in place; but a learning rate that this was given anew holds."""
        for name, tensor in self._state().items():
            tensor.copy_(state[name])
        # states of earlier versions do not have it
        if "first_rate" in state and float(state["first_rate"]) != self._first_rate:
            self.learning_rate.fill_(self._first_rate)

    def _state(self) -> dict[str, Tensor]:
        return {
            **self.moments,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "skipped": self.skipped,
        }
