"""Functions of tensors, recorded as a straight list of operations and replayed without Python and autograd.

Small networks spend most of their time between the operations: in the interpreter, and in building and walking
autograd's graph. A recording leaves both out and gives the same bits; PPO's minibatch of 64 takes about half the time.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from habilis.core.acceleration import HiddenPrecision, hidden_precision
from habilis.core.by_numpy import by_numpy
from habilis.core.simplification import simplify

R = TypeVar("R")
S = TypeVar("S")

TensorFunction = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""A pure function of named tensors, and of parameters and buffers that it reads where they are."""

RECORD_AFTER = 32
"""Calls with one set of shapes before it is recorded: recording takes about as long as a thousand calls save."""

_TRACING = threading.RLock()
"""Held until a function is recorded: while it is, PyTorch changes what modules do in every thread."""


class Recorded:
    """A function of named tensors, recorded once for each set of shapes and then replayed without Python and autograd.

    The forward and backward operations that the function performs are written down as one straight list. The function
    must be straight-line: no branch on a tensor, no random draw (noise is an argument), no operation in place. On a
    GPU, on images (uint8), whose convolutions cannot be recorded and would gain nothing, and before `RECORD_AFTER`
    float32 calls, it runs as it is written. The names and their order are the same in every call.

    Args:
        function: what is recorded.
        precision: of the hidden layers of the networks that it evaluates.
        inference: its results are read and never part of a graph of autograd nor written to: replayed in PyTorch's
            inference mode, which leaves out what autograd would need of them, a tenth of the time.
        arrays: replayed by NumPy where it is small and NumPy can, from the first call on; the last bits are then others
            than the function's. Its results are never part of a graph of autograd: it is called without one, and says
            so where it needs gradients within.
    """

    def __init__(
        self,
        function: TensorFunction,
        precision: HiddenPrecision = "float32",
        *,
        inference: bool = False,
        arrays: bool = False,
    ) -> None:
        self.function = function
        self.precision = precision
        self.inference = inference
        self.arrays = arrays
        # a recording in bfloat16 or of arrays rounds otherwise than the function does, so every call must be of one
        # kind: a resumed run counts its calls anew and would differ from one that was never stopped
        self._patience = 0 if arrays or precision == "bfloat16" else RECORD_AFTER
        self._recordings: dict[Hashable, Callable[..., tuple[Tensor, ...]]] = {}
        self._names: dict[Hashable, tuple[str, ...]] = {}
        self._calls: Counter[Hashable] = Counter()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorded:
        function = copy.deepcopy(self.function, memo)
        return Recorded(function, self.precision, inference=self.inference, arrays=self.arrays)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Apply the function."""
        key = tuple([(x.shape, x.dtype) for x in tensors.values()])
        recording = self._recordings.get(key)
        if recording is None:
            if not all(map(_recordable, tensors.values())):
                return self._compute(tensors)
            self._calls[key] += 1
            with _TRACING:
                if self._calls[key] <= self._patience:
                    return self._compute(tensors)
                recording = self._recordings[key] = self._record(key, tensors)
        return dict(zip(self._names[key], recording(*tensors.values()), strict=True))

    def _compute(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.arrays), hidden_precision(self.precision):
            return self.function(tensors)

    def _record(self, key: Hashable, tensors: Mapping[str, Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        """Write the function's operations down."""
        names = tuple(tensors)

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            results = self._compute(dict(zip(names, values, strict=True)))
            self._names[key] = tuple(results)
            return tuple(results.values())

        values = tuple(tensors.values())
        # what the function reads besides its arguments is a parameter or buffer of the graph, shared with its owner
        graph = simplify(make_fx(flat)(*values), values)
        return (by_numpy(graph, values) if self.arrays else None) or self._script(graph, values)

    def _script(self, graph: GraphModule, values: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """Return what replays a graph without Python."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is announced to be superseded; nothing yet replays as fast
            script = torch.jit.trace(graph, values, check_trace=False).forward

        def replay(*values: Tensor) -> tuple[Tensor, ...]:
            # its optimiser would make one product of a sum of several, which rounds otherwise, and gains nothing
            with torch.inference_mode() if self.inference else torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                return script(*values)  # type: ignore[no-any-return]

        return replay


def _recordable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != torch.uint8


class SideBySide:
    """Runs two independent functions at the same time, or one after the other where there is no second thread for it.

    Replaying a recording needs no Python, so two of them really share two processors; their results are the same bits
    either way.

    Args:
        threads: how many threads may be used.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._worker = ThreadPoolExecutor(1, "habilis-side-by-side") if threads > 1 else None

    def __call__(self, first: Callable[[], R], second: Callable[[], S]) -> tuple[R, S]:
        """Return what both return."""
        if self._worker is None:
            return first(), second()
        later = self._worker.submit(second)
        return first(), later.result()

    def alone(self, function: Callable[[], R]) -> R:
        """Return what one function returns whose operations have all threads for themselves: the bits may be others."""
        if self._worker is None:
            return function()
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return function()
        finally:
            torch.set_num_threads(before)
