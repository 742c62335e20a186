"""Where the time of our engine goes: its three parts, each timed as the engine calls it."""

import time
from collections.abc import Sequence
from typing import Any

# The engine's parts, by the names that it keeps them under.
_PARTS = {"features": "_features", "encoder": "_encoder", "decoder": "_decoder"}


class _Timed:
    """Stands in for a part and counts the seconds in it, to the end of what it started."""

    def __init__(self, part: Any, device: str) -> None:
        self._part = part
        self._device = device
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._timed(self._part, *given, **named)

    def decode(self, *given: Any, **named: Any) -> Any:
        return self._timed(self._part.decode, *given, **named)

    def _timed(self, function: Any, *given: Any, **named: Any) -> Any:
        _settle(self._device)
        started = time.perf_counter()
        found = function(*given, **named)
        _settle(self._device)
        self.seconds += time.perf_counter() - started
        return found


def seconds(engine: Any, batch: Sequence[Any], device: str) -> dict[str, float]:
    """Seconds per part for one batch, and in what is around them."""
    whole = {part: getattr(engine, name) for part, name in _PARTS.items()}
    timed = {part: _Timed(found, device) for part, found in whole.items()}
    for part, name in _PARTS.items():
        _replace(engine, name, timed[part])
    try:
        started = time.perf_counter()
        engine.transcribe(batch)
        total = time.perf_counter() - started
    finally:
        for part, name in _PARTS.items():
            _replace(engine, name, whole[part])
    spent = {part: timed[part].seconds for part in _PARTS}
    return {**spent, "rest": total - sum(spent.values())}


def _replace(engine: Any, name: str, part: Any) -> None:
    setattr(engine, name, part)


def _settle(device: str) -> None:
    """Wait for the GPU, which is told what to do long before it is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
