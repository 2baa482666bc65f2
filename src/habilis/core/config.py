"""Configurations as frozen dataclasses of plain values: to and from dictionaries, dotted overrides, helpful errors."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from habilis.core.errors import ConfigError, did_you_mean

C = TypeVar("C")


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def made_of(id: str, kind: type[C], given: Mapping[str, Any], *others: str) -> C:
    """Return the dataclass `kind` made of what an environment is given, which takes `others` besides.

    Raises:
        ConfigError: there is no argument of such a name, or a value is of another type than the dataclass says.
    """
    kinds = field_types(kind)
    known = [*kinds, *others]
    for name in given:
        if name not in known:
            raise ConfigError(f"{id} has no argument {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return kind(**{name: _coerce(value, kinds[name], name) for name, value in given.items()})


def episode_limit(given: int | None, usual: int | None) -> int | None:
    """Return after how many steps an episode is truncated: the usual limit for None, none at all (None) for -1."""
    require(
        given is None or given == -1 or given > 0,
        f"max_episode_steps must be positive, or -1 for no limit, got {given}",
    )
    return usual if given is None else None if given == -1 else given


def require_positive(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these fields is positive, or None."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} must be positive, got {value}")


def require_not_negative(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these fields is at least 0, or None."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 0, f"{name} must not be negative, got {value}")


def require_fractions(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these fields is above 0 and at most 1."""
    for name in names:
        value = getattr(config, name)
        require(0 < value <= 1, f"{name} must be in (0, 1], got {value}")


def require_shares(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these fields is at least 0 and at most 1."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")


def require_widths(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these fields is None or the positive widths of hidden layers."""
    for name in names:
        widths = getattr(config, name)
        require(widths is None or min(widths, default=1) > 0, f"{name} widths must be positive, got {widths}")


def require_replay(config: Any) -> None:
    """Raise `ConfigError` unless fields are of their types, and those of all learners from replay possible."""
    coerce_fields(config)
    size, steps = config.buffer_size, config.gradient_steps
    require_positive(config, "learning_rate", "batch_size", "train_freq", "n_steps", "n_sampled_goal")
    require_shares(config, "gamma")
    require_fractions(config, "tau")
    require_not_negative(config, "learning_starts")
    require(size >= config.batch_size, f"buffer_size must be at least batch_size, {config.batch_size}, got {size}")
    normalizes = getattr(config, "batch_renorm", False)
    require(config.batch_size > 1 or not normalizes, "batch_renorm normalises by the batch: batch_size must be above 1")
    require(steps > 0 or steps == -1, f"gradient_steps must be positive or -1, got {steps}")


def require_finite(values: Any, name: str) -> None:
    """Raise `ConfigError` unless all numbers among nested dictionaries and lists are finite."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            require_finite(value, f"{name}.{key}")
    elif isinstance(values, list):
        for value in values:
            require_finite(value, name)
    else:
        require(not isinstance(values, float) or math.isfinite(values), f"{name} must be finite, got {values}")


def coerce_fields(config: Any) -> None:
    """Make every field of a configuration what its type says, as `override` does: what `__post_init__` begins with.

    Raises:
        ConfigError: a value is of another type, or none of the choices.
    """
    for name, kind in field_types(type(config)).items():
        object.__setattr__(config, name, _coerce(getattr(config, name), kind, name))


def to_dict(config: Any) -> Any:
    """Return a configuration as nested dictionaries of JSON values."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    if isinstance(config, Mapping):
        return {k: to_dict(v) for k, v in config.items()}
    return config


def override(config: C, changes: Mapping[str, Any], prefix: str = "") -> C:
    """Return a copy of `config` with the dotted (or nested) keys of `changes` replaced; hyphens count as underscores.

    Raises:
        ConfigError: an unknown key (with the nearest ones) or a value of the wrong type.
    """
    types_of = field_types(type(config))
    new: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for raw, value in changes.items():
        head, _, rest = raw.replace("-", "_").partition(".")
        if head not in types_of:
            known = ", ".join(sorted(types_of))
            near = did_you_mean(head, types_of, prefix=prefix)
            for name in types_of:
                if head in _fields_of(getattr(config, name)):
                    near = f" (did you mean {f'{prefix}{name}.{head}'!r}?)"
            raise ConfigError(f"unknown configuration key {prefix + head!r}{near}; known: {known}")
        if rest:
            nested.setdefault(head, {})[rest] = value
        elif dataclasses.is_dataclass(getattr(config, head)) and isinstance(value, Mapping):
            nested.setdefault(head, {}).update(value)
        else:
            new[head] = _coerce(value, types_of[head], prefix + head)
    for head, inner in nested.items():
        current = new.get(head, getattr(config, head))
        if dataclasses.is_dataclass(current):
            new[head] = override(current, inner, f"{prefix}{head}.")
        else:
            require(isinstance(current, Mapping), f"{prefix + head!r} has no fields: it is {current!r}")
            new[head] = {**current, **inner}
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys in which two configurations differ, given what `to_dict` makes of them."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix]
    names = {**one, **other}
    start = f"{prefix}." if prefix else ""
    return [key for name in names for key in differences(one.get(name), other.get(name), f"{start}{name}")]


def _fields_of(value: Any) -> set[str]:
    """Return the names of the fields of a configuration within another; none of what is no configuration."""
    return {f.name for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()


def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _coerce(value: Any, kind: Any, name: str) -> Any:
    """Return `value` as `kind`, taking what JSON and users write for it (lists for tuples, ints for floats, paths)."""
    origin, args = get_origin(kind), get_args(kind)
    if hasattr(value, "tolist"):  # a number or an array of NumPy or PyTorch
        value = value.tolist()
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _coerce(value, option, name)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
            if len(inner) == len(value):
                return tuple(_coerce(v, k, name) for v, k in zip(value, inner, strict=True))
    elif origin is not None and isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind is int and isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0:
        return int(value)
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif kind is Any or (kind is type(None) and value is None) or (kind not in (int, float) and type(value) is kind):
        return value
    raise ConfigError(f"{name!r} must be {_describe(kind)}, got {value!r}{_nearest_choice(value, kind)}")


def _plain(value: Any, name: str) -> Any:
    """Return a value of a dictionary as one that JSON can hold.

    Raises:
        ConfigError: it cannot hold it.
    """
    if hasattr(value, "tolist"):  # a number or an array of NumPy or PyTorch
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, name) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    plain = value is None or isinstance(value, (bool, int, float, str)) or dataclasses.is_dataclass(value)
    require(plain, f"{name} must be a number, a string, a list or a dictionary, got {value!r}")
    return value


def _describe(kind: Any) -> str:
    """Name a type as a user would."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    if origin is not None:
        return "a dictionary such as {'name': {}}"
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _nearest_choice(value: Any, kind: Any) -> str:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
