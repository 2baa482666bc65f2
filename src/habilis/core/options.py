"""Fields of a configuration that others switch off: said where they are declared, and refused where they are set."""

from __future__ import annotations

import dataclasses
from typing import Any

from habilis.core.config import to_dict
from habilis.core.errors import ConfigError


def only_if(default: Any, **switches: Any) -> Any:
    """Return a field that has an effect only where another field of its configuration is so."""
    return dataclasses.field(default=default, metadata={"only_if": switches})


def unless(default: Any, **switches: Any) -> Any:
    """Return a field that has no effect where another field of its configuration is so."""
    return dataclasses.field(default=default, metadata={"unless": switches})


def require_used(config: Any, usual: Any, prefix: str = "") -> None:
    """Raise `ConfigError` where a field is neither as in `usual` nor at its default, and another leaves it no effect.

    So what a preset sets for a part that the user takes away is passed over, and what the user sets for it is not.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            require_used(value, getattr(usual, field.name), f"{name}.")
        elif value not in (getattr(usual, field.name), field.default):
            switch = _switched_off_by(config, field)
            if switch is not None:
                wanted, present = field.metadata.get("only_if", {}), getattr(config, switch)
                instead = f", or make that {wanted[switch]!r}" if switch in wanted else ""
                raise ConfigError(f"{name} has no effect while {prefix}{switch} is {present!r}: leave it out{instead}")


def in_effect(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dictionaries of JSON values, without what has no effect."""
    return {
        field.name: in_effect(value) if dataclasses.is_dataclass(value) else to_dict(value)
        for field in dataclasses.fields(config)
        if _switched_off_by(config, field) is None
        for value in (getattr(config, field.name),)
    }


def _switched_off_by(config: Any, field: dataclasses.Field[Any]) -> str | None:
    """Return the field that leaves another without effect, None where it has one."""
    for switch, off in field.metadata.get("unless", {}).items():
        if getattr(config, switch) == off:
            return str(switch)
    for switch, on in field.metadata.get("only_if", {}).items():
        if getattr(config, switch) != on:
            return str(switch)
    return None
