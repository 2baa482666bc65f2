"""How tensors are computed on this machine: threads, matrix products, tiny numbers and memory, in one place.

PyTorch's default float32 product is slow on some processors; under the precision "medium" it may use oneDNN instead,
which takes half the time there from 128 columns up (`benchmarks/matmul.py` measures both on the machine at hand). Where
oneDNN would round to bfloat16 for it (AMX), the default stays: a product on the processor is always one of float32.
Small batches gain nothing from threads. Hidden layers may be computed in bfloat16 while learning, where there are units
for it: weights, moments, outputs, losses and targets stay float32, and so does the policy that acts.

Numbers that float32 holds only with fewer digits (below 1.2e-38) count as 0: Adam's mean gradient of a unit that has
stopped to learn shrinks until it is one and stays one, and processors take a hundred times as long for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from habilis.core.errors import ConfigError

Precision = Literal["highest", "high", "medium"]
HiddenPrecision = Literal["float32", "bfloat16"]

OUT_OF_MEMORY = ("allocate memory", "out of memory")
"""What PyTorch's errors say where memory has run out."""

MEMINFO = Path("/proc/meminfo")
"""What Linux says of the machine's memory."""
CGROUP = Path("/sys/fs/cgroup")
"""What it says of the container's, of which `memory.max` is the limit (cgroup version 2)."""

_HIDDEN: ContextVar[HiddenPrecision] = ContextVar("hidden_precision", default="float32")


def configure(*, threads: int, precision: Precision) -> None:
    """Set the threads of operations, which products stand for float32 ones, and that tiny numbers count as 0.

    Threads and products hold for this process; tiny numbers for this thread and those that it starts later.

    Args:
        threads: intra-op threads.
        precision: "medium" and "high" let PyTorch use oneDNN on the processor where that computes in float32 too, and
            TF32 on a GPU.
    """
    torch.set_flush_denormal(True)  # before the first operation starts threads; where a processor cannot, it stays so
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    if _rounds(precision):
        if hasattr(torch.backends.mkldnn, "matmul"):
            torch.backends.mkldnn.matmul.fp32_precision = "ieee"
        else:  # PyTorch before 2.9 knows no precision of the processor's alone
            torch.set_float32_matmul_precision("highest")


@contextmanager
def tiny_numbers_kept() -> Iterator[None]:
    """Have tiny numbers count in this thread after the block as before it, whatever `configure` was asked within."""
    zero = bool(torch.full((1,), 1e-38) * 0.1 == 0)
    try:
        yield
    finally:
        torch.set_flush_denormal(zero)


@cache
def _rounds(precision: Precision) -> bool:
    """Return whether PyTorch's products on this processor are less than float32 at this precision, which is set."""
    one = torch.linspace(1.0, 2.0, 256 * 256, dtype=torch.float32, device="cpu").view(256, 256)
    exact = one.double() @ one.double()
    return bool(((one @ one - exact).abs() > 1e-4 * exact).any())


@contextmanager
def hidden_precision(precision: HiddenPrecision) -> Iterator[None]:
    """Compute hidden layers within this context at `precision`."""
    token = _HIDDEN.set(precision)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def hidden_layers(device: torch.device) -> AbstractContextManager[object]:
    """Return what a network enters around its hidden layers; their result may be bfloat16."""
    if _HIDDEN.get() == "bfloat16" and has_bfloat16(device.type):
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext()


@cache
def has_bfloat16(device_type: str) -> bool:
    """Return whether a kind of device has units for bfloat16 products: without them float32 is faster."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return False
    units = cpu_capabilities()
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


def cpu_capabilities() -> dict[str, Any]:
    """Return what PyTorch says of the processor, its name and units; nothing where it is too old to say."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def cpu_count() -> int:
    """Return the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(device: str) -> int | None:
    """Return the bytes that this process can still take on `device`; None where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    # a container is allowed less than the machine has
    return min((free for free in (_left_on_machine(), _left_in_container()) if free is not None), default=None)


def _left_on_machine() -> int | None:
    kilobytes = _numbers(MEMINFO).get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _left_in_container() -> int | None:
    """Return how far the container is from its limit; None where there is none."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return None
    # files read long ago count as used and are given back when the room is wanted: Docker and Kubernetes do so too
    return limit - used + _numbers(CGROUP / "memory.stat").get("inactive_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """Return the first number of each line of a file by the word before it; nothing where there is no file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def require_room(what: str, needed: float, option: str, device: str = "cpu") -> None:
    """Raise `ConfigError` where `device` has no room for `what` (with its verb: "ten environments take").

    Args:
        what: what needs room.
        needed: bytes.
        option: what to lower so that it needs less.
        device: where it is to lie.
    """
    left = available_memory(device)
    if left is not None and needed > left:
        takes, has = _sizes(needed, left)
        raise ConfigError(f"{what} {takes}, and there are {has} left on {device}: lower {option}")


def _sizes(*amounts: float) -> list[str]:
    """Write amounts of memory in the largest unit in which they differ."""
    told: list[str] = []
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)):
        told = [f"{amount / size:,.{0 if size == 1 else 1}f} {unit}" for amount in amounts]
        if len(set(told)) > 1:
            break
    return told


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Raise `ConfigError` where what is done in the block (or function) does not fit into memory, with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for a GPU's memory alone
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        raise ConfigError(f"it does not fit into memory: {advice} ({str(error).strip()})") from error


def resolve_device(name: str) -> str:
    """Return `name`, or for "auto" the GPU where there is one and the processor where there is none.

    Raises:
        ConfigError: a device that PyTorch does not know or this machine does not have.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {name!r} cannot be used ({error}): choose cpu or auto") from error
    return name
