"""The one place that scalars go through: turned into numbers together, handed to the writers and shown.

Metrics stay tensors until here, so that an update never waits for the device; `Tracker.log` waits once for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from habilis.core.protocols import Stateful
from habilis.core.types import State
from habilis.tracking.progress import Progress
from habilis.tracking.writers import JsonlWriter, TensorBoardWriter, WandbWriter


class Writer(Protocol):
    """Somewhere to write scalars. One that keeps a position on resume is `Stateful` as well."""

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write named numbers of one moment; `step` is the env steps so far."""
        ...

    def close(self) -> None:
        """Write out what is held back and free the place; a second call does nothing."""
        ...


class Tracker:
    """Hands the scalars of a run to its writers, and to its progress display where there is one."""

    def __init__(self, writers: Sequence[Writer], progress: Progress | None = None) -> None:
        self.writers = list(writers)
        self.progress = progress
        self._step = 0

    def log(self, metrics: Mapping[str, Tensor | float], step: int) -> None:
        """Write metrics: numbers, booleans and tensors of one element, on any device; `step` is the env steps so far.

        Raises:
            ValueError: If a tensor has more than one element; the message names the metric.
            HabilisError: If the disk is full.
        """
        self._step = step
        values = to_floats(metrics)
        for writer in self.writers:
            writer.write(values, step)
        if self.progress is not None:
            self.progress.update(step, values)

    def message(self, text: str) -> None:
        """Tell the user something, above the progress display; a run that shows no progress stays silent."""
        if self.progress is not None:
            self.progress.message(text)

    def state_dict(self) -> State:
        """Return the last step and the positions of the writers that keep one, by the name of their class."""
        positions = {type(w).__name__: w.state_dict() for w in self.writers if isinstance(w, Stateful)}
        return {"step": self._step, "writers": positions}

    def load_state_dict(self, state: State) -> None:
        """Put the writers back to where they were; one that the saved run did not have starts here."""
        self._step = state["step"]
        for writer in self.writers:
            if isinstance(writer, Stateful) and type(writer).__name__ in state["writers"]:
                writer.load_state_dict(state["writers"][type(writer).__name__])
        if self.progress is not None:
            self.progress.restart(self._step)

    def close(self) -> None:
        """Close every writer and the display."""
        for writer in self.writers:
            writer.close()
        if self.progress is not None:
            self.progress.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_tracking(
    run_dir: Path,
    *,
    total_steps: int,
    tensorboard: bool,
    wandb_project: str | None,
    config: Mapping[str, Any],
    progress: bool,
) -> Tracker:
    """Open what a run writes to and shows.

    Args:
        run_dir: The run's directory: gets `metrics.jsonl`, and `tensorboard/` or `wandb/` where asked for.
        total_steps: Env steps of the whole run.
        tensorboard: Whether to write event files.
        wandb_project: The project at Weights & Biases to log to, or None.
        config: The run's resolved configuration, for the same.
        progress: Whether to show progress on standard output.
    """
    writers: list[Writer] = [JsonlWriter(run_dir / "metrics.jsonl")]
    if tensorboard:
        writers.append(TensorBoardWriter(run_dir / "tensorboard"))
    if wandb_project is not None:
        writers.append(WandbWriter(run_dir, project=wandb_project, name=run_dir.name, config=config))
    return Tracker(writers, Progress(total_steps) if progress else None)


def to_floats(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Turn metrics into floats, in their order, with one transfer for each kind of tensor (device and dtype)."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = defaultdict(list)
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"the metric {name!r} must be a scalar, got a tensor of shape {tuple(value.shape)}")
            groups[value.device, value.dtype].append(name)
        else:
            values[name] = float(value)
    for names in groups.values():
        stacked = torch.stack([metrics[name].detach().reshape(()) for name in names])  # type: ignore[union-attr]
        values.update(zip(names, map(float, stacked.tolist()), strict=True))
    return {name: values[name] for name in metrics}
