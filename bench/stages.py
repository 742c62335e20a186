"""Where the time of our engine goes: its three parts, each timed as the engine calls it."""

import time
from collections.abc import Sequence
from typing import Any

# The engine's parts, by the names that it keeps them under.
_PARTS = {"features": "_features", "encoder": "_encoder", "decoder": "_decoder"}


class _Timed:
    """Wraps a part of the engine and measures the time until its work is done."""

    def __init__(self, part: Any, device: str) -> None:
        self._part = part
        self._device = device
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._timed(self._part, *arguments, **named)

    def decode(self, *arguments: Any, **named: Any) -> Any:
        return self._timed(self._part.decode, *arguments, **named)

    def _timed(self, function: Any, *arguments: Any, **named: Any) -> Any:
        _settle(self._device)
        started = time.perf_counter()
        result = function(*arguments, **named)
        _settle(self._device)
        self.seconds += time.perf_counter() - started
        return result


def seconds(engine: Any, batch: Sequence[Any], device: str) -> dict[str, float]:
    """Seconds per part for one batch, and in what is around them."""
    whole = {part: getattr(engine, name) for part, name in _PARTS.items()}
    timed = {part: _Timed(result, device) for part, result in whole.items()}
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
    """Synchronise the GPU, whose kernels run asynchronously."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
