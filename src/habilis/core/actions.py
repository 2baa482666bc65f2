"""Room for the actions of an environment, actions drawn at random, and those that do not exist."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from habilis.core.errors import EnvError, NonFiniteError
from habilis.core.specs import ActionSpec, BoxAction, DiscreteAction, EnvSpec, HybridAction, MultiDiscreteAction


def empty_actions(spec: EnvSpec, shape: tuple[int, ...], device: str) -> Tensor:
    """Make room for actions `[*shape, ...]` of an environment."""
    if isinstance(spec.action, BoxAction | HybridAction):
        return torch.zeros(*shape, spec.action.dim, device=device)
    if isinstance(spec.action, MultiDiscreteAction):
        return torch.zeros(*shape, len(spec.action.nvec), dtype=torch.long, device=device)
    return torch.zeros(shape, dtype=torch.long, device=device)


def uniform_actions(spec: ActionSpec, rows: int, generator: torch.Generator) -> Tensor:
    """Draw actions uniformly, in the policy's units: `[rows, dim]` in [-1, 1), `[rows]` or `[rows, k]` choices."""
    if isinstance(spec, BoxAction):
        return torch.rand(rows, spec.dim, generator=generator, device=generator.device) * 2 - 1
    if isinstance(spec, DiscreteAction):
        return torch.randint(spec.n, (rows,), generator=generator, device=generator.device)
    assert isinstance(spec, MultiDiscreteAction), "no algorithm that draws actions uniformly takes hybrid ones"
    chance = torch.rand(rows, len(spec.nvec), generator=generator, device=generator.device)
    return (chance * torch.tensor(spec.nvec, device=generator.device)).long()


def continuous_actions(spec: EnvSpec, action: Tensor, num_envs: int) -> np.ndarray:
    """Return continuous actions `[N, dim]` as an array.

    MuJoCo would put zeros in the place of controls that are not finite and go on, with a reward that is not finite.

    Raises:
        EnvError: the actions have another shape.
        NonFiniteError: an action is not finite.
    """
    assert isinstance(spec.action, BoxAction)
    _require_tensor(action)
    given = action.numpy(force=True)
    if given.shape != (num_envs, spec.action.dim):
        raise EnvError(f"{spec.id} takes actions of shape {(num_envs, spec.action.dim)}, got {given.shape}")
    if not math.isfinite(given.sum()):
        for row, column in np.argwhere(~np.isfinite(given))[:1].tolist():
            raise NonFiniteError(
                f"action {column} of environment {row} of {spec.id} must be finite, got {float(given[row, column])}: "
                "what chose it has parameters that are not finite, or was shown such an observation"
            )
    return given


def require_choices(spec: EnvSpec, action: Tensor, num_envs: int) -> None:
    """Raise `EnvError` unless `action` is one choice for each environment, `[N]`, among those that there are."""
    assert isinstance(spec.action, DiscreteAction)
    _require_tensor(action)
    last = spec.action.n - 1
    what = f"{spec.id} takes an action from 0 to {last} for each environment, `[{num_envs}]`"
    if action.shape != (num_envs,):
        raise EnvError(f"{what}, got the shape {list(action.shape)}")
    if action.dtype != torch.long:
        raise EnvError(f"{what}, as int64, got {action.dtype}")
    # as unsigned numbers, negative ones are larger than all others
    if int(action.numpy(force=True).view(np.uint64).max()) > last:
        raise EnvError(f"{what}, got {int(action[(action < 0) | (action > last)][0])}")


def _require_tensor(action: object) -> None:
    if not isinstance(action, Tensor):
        raise EnvError(f"actions are PyTorch tensors, got {type(action).__name__}: torch.as_tensor(action) makes one")
