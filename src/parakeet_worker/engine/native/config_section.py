"""Reads a checkpoint's configuration so that no option in it goes unnoticed."""

from collections.abc import Mapping
from typing import TypeVar

from parakeet_worker.errors import WeightsUnsupported

Choice = TypeVar("Choice", str, int, float, bool, None)


class ConfigSection:
    """One section of a configuration; every key must be read, fixed or skipped before `close`.

    An option that is left over at `close`, or has a value that the engine does not implement,
    raises `WeightsUnsupported`: a checkpoint is understood as a whole or refused.
    """

    def __init__(self, section: str, values: Mapping[str, object]) -> None:
        self.section = section
        self._values = {key: value for key, value in values.items() if key != "_target_"}
        self._target = values.get("_target_")
        self._seen: set[str] = set()

    def expect_target(self, *names: str) -> None:
        """Refuse a section whose `_target_` class is none of `names` (bare class names)."""
        if self._target is not None and str(self._target).rsplit(".", 1)[-1] not in names:
            raise WeightsUnsupported(self.section, "_target_", self._target)

    def subsection(self, key: str) -> "ConfigSection":
        """The mapping under `key` as a section of its own; empty when it is absent."""
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
        """The value of `key`, refused unless it is one of those that the engine implements."""
        value = self._take(key, default)
        for choice in allowed:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise WeightsUnsupported(self.section, key, value)

    def ignore(self, *keys: str) -> None:
        """ConfigSection without meaning for inference (training, logging, memory layout)."""
        self._seen.update(keys)

    def reject_unread(self) -> None:
        """Refuse whatever nobody asked for; options set to null mean "not used"."""
        for key, value in self._values.items():
            if key not in self._seen and value is not None:
                raise WeightsUnsupported(self.section, key, value)

    def _take(self, key: str, default: object) -> object:
        self._seen.add(key)
        value = self._values.get(key, default)
        return default if value is None else value
