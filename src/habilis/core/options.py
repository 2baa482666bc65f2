"""Fields of a configuration that others switch off: said where they are declared, and refused where they are set."""

from __future__ import annotations

import dataclasses
from typing import Any

from habilis.core.config import require


def only_if(default: Any, **switches: Any) -> Any:
    """Return a field that has an effect only where another field of its configuration is so."""
    return dataclasses.field(default=default, metadata={"only_if": switches})


def unless(default: Any, **switches: Any) -> Any:
    """Return a field that has no effect where another field of its configuration is so."""
    return dataclasses.field(default=default, metadata={"unless": switches})


def require_used(config: Any, usual: Any, prefix: str = "") -> None:
    """Raise `ConfigError` where a field differs from that of `usual` and another field leaves it without effect.

    So what a preset sets for a part that the user takes away is passed over, and what the user sets for it is not.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            require_used(value, getattr(usual, field.name), f"{name}.")
        elif value != getattr(usual, field.name):
            for switch, off in field.metadata.get("unless", {}).items():
                present = getattr(config, switch)
                require(present != off, f"{name} has no effect while {prefix}{switch} is {present!r}: leave it out")
            for switch, on in field.metadata.get("only_if", {}).items():
                present = getattr(config, switch)
                require(
                    present == on,
                    f"{name} has no effect while {prefix}{switch} is {present!r}: leave it out, or make that {on!r}",
                )
