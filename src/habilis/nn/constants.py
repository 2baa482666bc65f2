"""Tensors of a module that its configuration decides and nothing learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def follow_configuration(module: nn.Module, *names: str) -> None:
    """Let these buffers stay as they were made when a state is loaded: a run that goes on may be given others."""
    module.register_load_state_dict_pre_hook(partial(_keep, names))


def stay_as_saved(module: nn.Module, *names: str) -> None:
    """Refuse to load a state in which these buffers are others: what was learnt would mean something else."""
    module.register_load_state_dict_pre_hook(partial(_compare, names))


def _keep(names: tuple[str, ...], module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in names:
        state[f"{prefix}{name}"] = getattr(module, name)


def _compare(names: tuple[str, ...], module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in names:
        made, saved = getattr(module, name), state.get(f"{prefix}{name}")
        if saved is not None and not torch.equal(made.cpu(), saved.cpu()):
            raise ValueError(f"{name} is {made.tolist()} now, and what was learnt was learnt with {saved.tolist()}")
