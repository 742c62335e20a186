"""A process in which the device fails or runs out of memory; prints the outcomes of its work.

It has not been run on a GPU.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from bench.gpu import stubs

stubs.install()

import torch  # noqa: E402

from bench.gpu import sounds  # noqa: E402
from bench.gpu.opening import DEMO, served  # noqa: E402
from bench.gpu.parts import Setup  # noqa: E402
from parakeet_worker.batcher import Batcher  # noqa: E402
from parakeet_worker.engine import failures  # noqa: E402
from parakeet_worker.engine.base import Capacity, Hypothesis  # noqa: E402
from parakeet_worker.engine.native.gpu_engine import GpuEngine  # noqa: E402
from parakeet_worker.errors import OutOfMemory, ParakeetError  # noqa: E402

_CAPACITY = Capacity(3840.0, 512, packed=True, alone_seconds=80.0)


def fault(engine: GpuEngine) -> dict[str, Any]:
    """Read out of bounds on the device, then submit more chunks."""
    chunks = sounds.utterances(8)
    batcher = Batcher(engine, capacity=_CAPACITY, queue_seconds=1e9)
    before = sum(len(future.result(60).tokens) for future in batcher.submit(chunks))
    provoked = False
    out_of_bounds = torch.full((4,), 1 << 40, device="cuda")
    try:
        torch.zeros(4, device="cuda")[out_of_bounds].sum().item()
    except RuntimeError:
        provoked = True
    codes = [_code(batcher, [chunk]) for chunk in chunks[:3]]
    return {"before": before, "provoked": provoked, "codes": codes, "lost": batcher.lost}


def _code(batcher: Batcher, chunks: Sequence[sounds.Pcm]) -> str:
    try:
        for future in batcher.submit(chunks):
            future.result(60)
    except ParakeetError as failure:
        return failure.code
    return "transcribed"


def memory(engine: GpuEngine) -> dict[str, Any]:
    """Limit the memory to some chunks, and submit many."""
    few, many = sounds.chunks(30.0, 8), sounds.chunks(30.0, 64)
    few_bytes, many_bytes = _peak(engine, few), _peak(engine, many)
    assert many_bytes > few_bytes, "more chunks need more memory"
    engine.release()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((few_bytes + many_bytes) / 2 / total)
    whole_fails = False
    try:
        engine.transcribe(many)
    except (RuntimeError, OutOfMemory) as failure:
        whole_fails = failures.is_out_of_memory(failure)
        failures.clear_tracebacks(failure)
    engine.release()
    with Batcher(engine, capacity=_CAPACITY, queue_seconds=1e9) as batcher:
        answers = batcher.submit(many)
        results = [future.result(120) for future in answers]
        load, lost = batcher.load, batcher.lost
    transcribed = sum(isinstance(result, Hypothesis) for result in results)
    return {
        "whole_fails": whole_fails,
        "submitted": len(many),
        "transcribed": transcribed,
        "batches": load.batches,
        "lost": lost,
    }


def _peak(engine: GpuEngine, batch: Sequence[sounds.Pcm]) -> int:
    """Peak of the bytes that torch reserves for the batch."""
    engine.release()
    torch.cuda.reset_peak_memory_stats()
    engine.transcribe(batch)
    return torch.cuda.max_memory_reserved()


def main() -> None:
    case, setup = sys.argv[1], Setup.read(json.loads(sys.argv[2]))
    with served(setup, DEMO, "bf16") as engine:
        result = {"fault": fault, "memory": memory}[case](engine)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        # After a CUDA error, destructors of graphs and buffers may abort the process.
        os._exit(0)


if __name__ == "__main__":
    main()
