"""What the commands share: flags from dataclasses, and values that users write as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Annotated, Any, TypeVar

import tyro

from habilis.core.config import require

T = TypeVar("T")

KeyValues = Annotated[dict[str, str], tyro.conf.arg(metavar="KEY VALUE [KEY VALUE ...]")]
"""Pairs of words; `read_values` makes numbers and booleans of those that look like them."""
Switch = tyro.conf.FlagCreatePairsOff[bool]
"""A switch without its opposite."""


def parse(options: type[T], argv: Sequence[str], command: str, *, default: T | None = None) -> T:
    """Return the options on a command line; wrong ones, and `--help`, end the process with an explanation.

    Args:
        options: a dataclass whose docstring says what the command does.
        argv: the words after the command.
        command: what was called, say `train ppo`.
        default: values of the fields that are not on the command line.
    """
    settings = {} if default is None else {"default": default}
    return tyro.cli(
        options, args=list(argv), prog=f"habilis {command}", config=(tyro.conf.AvoidSubcommands,), **settings
    )


def read_values(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return the values as JSON reads them, or as they are: `3` is a number, `true` a boolean, `v2` a text."""

    def read(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return {"True": True, "False": False, "None": None}.get(text, text)

    return {key: read(text) for key, text in pairs.items()}


def read_env_kwargs(pairs: Mapping[str, str], *takers: Callable[..., object]) -> dict[str, Any]:
    """Return the arguments of an environment that the user gave, which `takers` pass on.

    Raises:
        ConfigError: one of them has an argument of that name itself.
    """
    for taker in takers:
        for name in signature(taker).parameters:
            require(name not in pairs, f"--env-kwargs {name}: `{taker.__name__}` has an argument of that name itself")
    return read_values(pairs)
