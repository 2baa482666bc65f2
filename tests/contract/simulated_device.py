"""A second device, simulated by the processor: programs get the right answers, or an error where two devices mix.

Its tensors hold those of the processor, so that their values are the same bits, and every operation between the two
devices is refused as a GPU would refuse it. Whatever trains here leaves no tensor behind on the wrong side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
PROCESSOR = torch.device("cpu")
CROSSING = ("aten::copy_", "aten::_to_copy")
"""Operations that may see both devices."""


class SimulatedTensor(Tensor):
    """A tensor of the device; `held` is the ordinary one that it stands for."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> SimulatedTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.untyped_storage:
            return args[0].held.untyped_storage()
        if func is Tensor.numpy:
            if not kwargs.get("force"):
                raise TypeError("a tensor of another device cannot be an array: copy it first")
            return args[0].held.numpy(force=True)
        if func == Tensor.data.__set__:
            args[0].held = args[1].held
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = SimulatedTensor(self.held.clone())
        copy = nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy
        memo[id(self)] = copy
        return copy


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Perform an operation on what its tensors hold, and put its results on the device that they belong to."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, SimulatedTensor)]
    elsewhere = [x for x in tensors if not isinstance(x, SimulatedTensor) and x.dim() > 0]
    name = func._schema.name
    if here and elsewhere and name not in CROSSING:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    asked = kwargs.get("device")
    if asked is not None:
        result_here = torch.device(asked).type == NAME
        kwargs = {**kwargs, "device": PROCESSOR}
    else:
        result_here = isinstance(args[0], SimulatedTensor) if name == "aten::copy_" else bool(here)
    held_args, held_kwargs = tree_map_only(SimulatedTensor, lambda x: x.held, (args, kwargs))
    result = func(*held_args, **held_kwargs)
    if not result_here:
        return result
    known = {id(x.held): x for x in here}
    wrapped = tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else SimulatedTensor(x), result)
    if any(returned.alias_info for returned in func._schema.returns):
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


class _Operations(TorchDispatchMode):
    """Sees the operations that make tensors from none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Sees the functions that make tensors of numbers, which PyTorch fills before any mode can see it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func in (torch.tensor, torch.as_tensor) else None
        result = func(*args, **kwargs)
        return result if device is None else result.to(device)


class _Generator(torch.Generator):
    """A generator of either device; both draw the same."""

    def __new__(cls, device: Any = PROCESSOR) -> _Generator:
        generator = super().__new__(cls, PROCESSOR)
        generator.lies_on = DEVICE if torch.device(device).type == NAME else PROCESSOR
        return generator

    def __init__(self, device: Any = PROCESSOR) -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return self.lies_on


@contextmanager
def simulated_device() -> Iterator[str]:
    """Let the device exist within this context; yields its name."""
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with patch("torch.Generator", _Generator), _Functions(), _Operations():
            yield NAME
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
