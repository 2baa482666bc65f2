"""Names to things, with the nearest names in the error when one does not exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from habilis.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named things of one kind, say `Registry[...]("algorithm")`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; a name is registered once."""
        if name in self._entries:
            raise ConfigError(f"the {self.kind} {name!r} is already registered: choose another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise ConfigError(f"there is no {self.kind} {name!r}{did_you_mean(name, self._entries)}; known: {known}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
