"""The child process of a measurement: commands on an engine."""

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.engines import Place, named
from bench.random_model import Files


class Served:
    """One engine, and answers about it."""

    def __init__(self, parameters: Mapping[str, Any], started: float) -> None:
        self._place = Place(
            files=Files(Path(parameters["folder"])),
            precision=parameters["precision"],
            device=parameters["device"],
            threads=parameters["threads"],
            settings=parameters["settings"],
        )
        self._engine = named(parameters["engine"], self._place)
        self._start_seconds: float = started - parameters["asked_at"]

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Run one request; its `do` is the name of a method."""
        arguments = {key: value for key, value in request.items() if key != "do"}
        return getattr(self, request["do"])(**arguments)

    def start(self) -> float:
        """Seconds from the process start to its first line of Python."""
        return self._start_seconds

    def imports(self) -> float:
        return _seconds(self._engine.import_libraries)

    def load(self) -> float:
        return _seconds(self._engine.load)

    def transcribe(self, audio: str, pieces: int, repeats: int = 1) -> dict[str, Any]:
        """Seconds per repeat on the first `pieces` rows of a `.npy` file, and the token count."""
        batch = _batch(audio, pieces)
        seconds, cpu_seconds, tokens = [], [], 0
        for _ in range(repeats):
            started, cpu_started = time.perf_counter(), time.process_time()
            tokens = sum(self._engine.transcribe(batch))
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens}

    def stages(self, audio: str, pieces: int) -> dict[str, float]:
        """Native engine only: seconds in each part of the engine."""
        engine: Any = self._engine
        seconds: dict[str, float] = engine.stages(_batch(audio, pieces))
        return seconds

    def mebibytes(self) -> float:
        """What is in use now: of the process, or of the GPU."""
        if self._place.device == "cuda":
            import torch

            return torch.cuda.memory_allocated() / 2**20
        return _status("VmRSS")

    def reset_peak(self) -> None:
        """Begin to count the peak anew."""
        if self._place.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak_mebibytes(self) -> float:
        if self._place.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        return _status("VmHWM")

    def modules(self) -> int:
        return len(sys.modules)

    def cpu_seconds(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime


def _seconds(step: Any) -> float:
    started = time.perf_counter()
    step()
    _settle()
    return time.perf_counter() - started


def _settle() -> None:
    """Synchronise the GPU, if torch uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _batch(audio: str, pieces: int) -> list[Any]:
    import numpy as np

    return list(np.load(audio, mmap_mode="r")[:pieces].copy())


def _status(field: str) -> float:
    """MiB, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024
