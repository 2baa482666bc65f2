"""What is changed of a run that goes on has an effect from there on, or is refused: nothing is silently passed over."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import EXACT, INEXACT, fingerprint, iterate, small_config

from habilis.build import ALGORITHMS, build_trainer
from habilis.core.config import field_types, override
from habilis.core.errors import HabilisError
from habilis.training.config import TrainConfig
from habilis.training.keeping import components, restore, starting_values

CASES = {ALGORITHMS[name].config: (name, EXACT[name][0]) for name in reversed(list(ALGORITHMS)) if name not in INEXACT}
"""One algorithm of each configuration: that it has several names is nothing to its fields."""


def others(value: Any, kind: Any) -> list[Any]:
    """Values that a field might have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [type(value)(0.5 * value) if value else type(value)(1), 2 * value]
    if isinstance(value, str):
        return [choice for choice in get_args(kind) if choice != value]
    return [0.1, 3] if value is None else []


def changed(config: TrainConfig, part: Any, prefix: str = "algo.") -> Iterator[tuple[str, TrainConfig]]:
    """Every field of a configuration, and the configuration with another value of it."""
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from changed(config, value, f"{key}.")
            continue
        for other in others(value, field_types(type(part))[field.name]):
            try:
                yield key, override(config, {key: other})
            except HabilisError:  # no such value
                continue
            break


@pytest.mark.parametrize(("algorithm", "env"), CASES.values())
def test_no_setting_is_overwritten_by_the_checkpoint(algorithm: str, env: str) -> None:
    """What decides the state that learning begins with, and no more once a checkpoint is loaded, cannot be changed."""
    config = small_config(algorithm, env)
    run = build_trainer(config)
    first = fingerprint(run)
    iterate(run, 2)
    kept = copy.deepcopy(components(run))
    iterate(run, 1)
    end, overwritten = fingerprint(run), set()
    for key, other in changed(config, config.algo):
        try:
            trainer = build_trainer(other)
            if fingerprint(trainer) == first:
                continue
            restore(trainer, copy.deepcopy(kept))
            iterate(trainer, 1)
        except HabilisError:
            continue  # it is refused in so many words
        if fingerprint(trainer) == end:
            overwritten.add(key)
    assert overwritten == {key for key in starting_values(config) if hasattr(config.algo, key.removeprefix("algo."))}
