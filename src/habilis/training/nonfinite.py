"""Numbers of learning that are not finite: noticed at once, kept with where learning went on from, and learnt again.

A step of the environment that is not finite is played again by itself (`faults`). A gradient is what the whole run has
led to: it comes again by going on from the last checkpoint, which repeats the run exactly where the environment can
save its state.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from habilis.checkpoint import load_checkpoint, save_checkpoint
from habilis.core.errors import HabilisError, NonFiniteError
from habilis.core.types import Metrics
from habilis.training.keeping import Trainer, components, inexactness, restore

START = "start"
"""The checkpoint, within a dump, from which learning leads to the fault; not there: from the beginning of the run."""


class Watch:
    """Tells when an optimiser has met a gradient that is not finite, from the moment that this is made."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        # a run may have been told to go on without such steps, and not to from here on
        self._before = self._counts()

    def gradient(self) -> str | None:
        """Say which optimisers met one and when; None where none did."""
        bad = [name for name, count in self._counts().items() if count > self._before[name]]
        if not bad:
            return None
        return f"the loss or gradient of the {' and of the '.join(bad)} is not finite {moment(self._trainer)}"

    def _counts(self) -> dict[str, float]:
        return {name: float(count) for name, count in self._trainer.algorithm.skipped.items()}


def moment(trainer: Trainer) -> str:
    """Say where a trainer is."""
    return f"at env step {trainer.counters.env_steps:,} (gradient step {trainer.algorithm.gradient_steps:,})"


def first_scalar(metrics: Metrics) -> str | None:
    """Name the first scalar of an update that is not finite; None where all are."""
    values = ((name, float(value)) for name, value in metrics.items())
    return next((f"train/{name} is {value}" for name, value in values if not math.isfinite(value)), None)


def write_dump(path: Path, trainer: Trainer, error: NonFiniteError, start: Path | None, meta: Mapping[str, Any]) -> str:
    """Write what a fault can be studied by, and say what can be done with it.

    Args:
        path: where to; an earlier dump of the same step is replaced.
        trainer: what stopped.
        error: why.
        start: the last checkpoint; None where there is none.
        meta: what else to know: the configuration, as `config`, builds the trainer again.
    """
    reason = inexactness(trainer)
    states = {"recorder": trainer.collector.recorder.dump(), "policy": components(trainer)["policy"]}
    told = {"exact": reason is None, "inexactness": reason, "error": str(error), **meta}
    try:
        shutil.rmtree(path, ignore_errors=True)
        save_checkpoint(path, states, meta={**told, "step": trainer.counters.env_steps})
        if start is not None and reason is None:
            shutil.copytree(start, path / START, copy_function=_link)
    except (HabilisError, OSError) as problem:
        return f"what plays it again could not be written: {problem}"
    if reason is None:
        return f"`habilis doctor --replay {quote(str(path))}` plays it again"
    held = "the policy" if states["recorder"]["actions"] is None else "the last actions and the policy"
    return (
        f"it cannot be played again, because {reason}; {path} holds {held}, and "
        f"`habilis doctor --env {trainer.collector.env.spec.id}` looks for what is wrong with the environment"
    )


def restore_start(trainer: Trainer, dump: Path) -> int:
    """Put a trainer, newly built from a dump's configuration, where the run last was whole; return the env steps."""
    if (dump / START).is_dir():
        restore(trainer, load_checkpoint(dump / START)[0])
    return trainer.counters.env_steps


def learn_again(trainer: Trainer, until: int) -> str | None:
    """Go on learning, and say the first thing that is not finite; None where all is, up to env step `until`."""
    watch = Watch(trainer)
    try:
        for report in trainer:
            scalar = first_scalar(report.metrics)
            fault = watch.gradient() or (scalar and f"{scalar} {moment(trainer)}")
            if fault is not None or report.env_steps >= until:
                return fault
    except NonFiniteError as error:
        return str(error)
    return None


def _link(source: str, target: str) -> None:
    """Give a file a second name, which costs no room and outlives the checkpoint that it belongs to; or copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
