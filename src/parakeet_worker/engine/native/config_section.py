"""Strict access to one section of a checkpoint's configuration."""

from collections.abc import Mapping
from typing import TypeVar

from parakeet_worker.errors import WeightsUnsupported

Choice = TypeVar("Choice", str, int, float, bool, None)


class ConfigSection:
    """One section of a configuration; every key must be read or ignored.

    `reject_unread` raises `WeightsUnsupported` for any other key, and every getter does so for a
    value that the engine does not implement: a checkpoint is supported completely or rejected.
    """

    def __init__(self, section: str, values: Mapping[str, object]) -> None:
        self.section = section
        self._values = {key: value for key, value in values.items() if key != "_target_"}
        self._target = values.get("_target_")
        self._read: set[str] = set()

    def expect_target(self, *names: str) -> None:
        """Raise unless the class in `_target_` is one of `names` (without the module)."""
        if self._target is not None and str(self._target).rsplit(".", 1)[-1] not in names:
            raise WeightsUnsupported(self.section, "_target_", self._target)

    def subsection(self, key: str) -> "ConfigSection":
        """The mapping under `key` as a section; empty if absent."""
        value = self._take(key, {})
        if not isinstance(value, Mapping):
            raise WeightsUnsupported(self.section, key, value)
        return ConfigSection(f"{self.section}.{key}", value)

    def get_int(self, key: str, default: int | None = None) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise WeightsUnsupported(self.section, key, value)
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WeightsUnsupported(self.section, key, value)
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise WeightsUnsupported(self.section, key, value)
        return value

    def get_ints(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        value = self._take(key, default)
        if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
            raise WeightsUnsupported(self.section, key, value)
        return tuple(value)

    def get_strs(self, key: str) -> tuple[str, ...]:
        value = self._take(key, ())
        if not isinstance(value, (list, tuple)):
            raise WeightsUnsupported(self.section, key, value)
        return tuple(str(item) for item in value)

    def get_choice(self, key: str, *allowed: Choice, default: Choice) -> Choice:
        """The value of `key`; raises unless it is one of `allowed`."""
        value = self._take(key, default)
        for choice in allowed:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise WeightsUnsupported(self.section, key, value)

    def ignore(self, *keys: str) -> None:
        """Mark options that do not affect inference (training, logging, layout) as read."""
        self._read.update(keys)

    def reject_unread(self) -> None:
        """Raise for the first option that was not read; null means unset and is accepted."""
        for key, value in self._values.items():
            if key not in self._read and value is not None:
                raise WeightsUnsupported(self.section, key, value)

    def _take(self, key: str, default: object) -> object:
        self._read.add(key)
        value = self._values.get(key, default)
        return default if value is None else value
