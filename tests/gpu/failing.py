"""A process in which the device fails or has no memory left; prints what became of the work.

Has not run on a GPU.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from bench.gpu import stand_ins

stand_ins.install()

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
    """Read far outside of a tensor on the device, then submit more."""
    chunks = sounds.utterances(8)
    batcher = Batcher(engine, capacity=_CAPACITY, queue_seconds=1e9)
    before = sum(len(one.result(60).tokens) for one in batcher.submit(chunks))
    provoked = False
    outside = torch.full((4,), 1 << 40, device="cuda")
    try:
        torch.zeros(4, device="cuda")[outside].sum().item()
    except RuntimeError:
        provoked = True
    codes = [_code(batcher, [chunk]) for chunk in chunks[:3]]
    return {"before": before, "provoked": provoked, "codes": codes, "lost": batcher.lost}


def _code(batcher: Batcher, chunks: Sequence[sounds.Pcm]) -> str:
    try:
        for one in batcher.submit(chunks):
            one.result(60)
    except ParakeetError as failure:
        return failure.code
    return "answered"


def memory(engine: GpuEngine) -> dict[str, Any]:
    """Leave room for some chunks, and submit many."""
    few, many = sounds.chunks(30.0, 8), sounds.chunks(30.0, 64)
    held, most = _peak(engine, few), _peak(engine, many)
    assert most > held, "more chunks take more memory"
    engine.release()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + most) / 2 / total)
    whole_fails = False
    try:
        engine.transcribe(many)
    except (RuntimeError, OutOfMemory) as failure:
        whole_fails = failures.is_out_of_memory(failure)
        failures.clear_tracebacks(failure)
    engine.release()
    with Batcher(engine, capacity=_CAPACITY, queue_seconds=1e9) as batcher:
        answers = batcher.submit(many)
        found = [one.result(120) for one in answers]
        load, lost = batcher.load, batcher.lost
    heard = sum(isinstance(one, Hypothesis) for one in found)
    return {
        "whole_fails": whole_fails,
        "asked": len(many),
        "answered": heard,
        "batches": load.batches,
        "lost": lost,
    }


def _peak(engine: GpuEngine, batch: Sequence[sounds.Pcm]) -> int:
    """Bytes that torch has reserved at most for the batch, after it has returned the rest."""
    engine.release()
    torch.cuda.reset_peak_memory_stats()
    engine.transcribe(batch)
    return torch.cuda.max_memory_reserved()


def main() -> None:
    case, setup = sys.argv[1], Setup.read(json.loads(sys.argv[2]))
    with served(setup, DEMO, "bf16") as engine:
        found = {"fault": fault, "memory": memory}[case](engine)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        # After a CUDA error the destructors of graphs and buffers may abort the process.
        os._exit(0)


if __name__ == "__main__":
    main()
