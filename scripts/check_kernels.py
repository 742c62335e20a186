"""Compiles every kernel for every supported card, without a GPU, and shows its resource usage.

Compiled kernels are cached in .cache/kernels: unchanged kernels are not compiled again.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import triton

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from parakeet_worker.engine.native import checkpoint  # noqa: E402
from parakeet_worker.engine.native.compilation import (  # noqa: E402
    CompiledKernel,
    CompileRequest,
    Target,
    compile_kernels,
)
from parakeet_worker.engine.native.kernels.tiles import CAPABILITIES, shared_bytes  # noqa: E402
from parakeet_worker.engine.native.launches import ModelShape  # noqa: E402
from parakeet_worker.engine.native.precision import KERNEL_PRECISIONS, Precision  # noqa: E402
from published import described, nemo_config  # noqa: E402  # after sys.path is extended

DEMO = Path(str(files("parakeet_worker") / "checkpoints" / "demo.nemo"))
MODEL = "parakeet-tdt-0.6b-v3"
CACHE = ROOT / ".cache" / "kernels"
MAX_SPILLED_BYTES = 64


def main() -> None:
    arguments = _arguments()
    if arguments.results:  # measure compile times with an empty cache
        shutil.rmtree(CACHE, ignore_errors=True)
    request = CompileRequest(
        targets=tuple(_targets()),
        folders=(CACHE,),
        processes=len(os.sched_getaffinity(0)),
        launchable=False,
        measured=True,
    )
    # The kernels of the search are the same in both precisions.
    unique = {
        (result.kernel, result.variant, result.card): result for result in compile_kernels(request)
    }
    results = list(unique.values())
    print("\n".join(_table(results)))
    if arguments.results:
        arguments.results.write_text(json.dumps(_document(results), indent=1) + "\n")
    faults = list(_faults(results))
    print("\n".join(faults) or f"{len(results)} kernels compile and fit the cards")
    sys.exit(1 if faults else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compile every kernel for every card.")
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    return parser.parse_args()


def _targets() -> Iterator[Target]:
    """Every card with every supported setting; the demo model, used by tests, on two cards."""
    shape = ModelShape.of(described(nemo_config(MODEL)))
    for capability in CAPABILITIES:
        for precision in KERNEL_PRECISIONS:
            for reproducible in (False, True):
                yield Target(shape, precision, capability, reproducible)
    demo = ModelShape.of(checkpoint.read_checkpoint(DEMO))
    for capability in ((8, 6), (9, 0)):
        yield Target(demo, Precision.BF16, capability)


def _table(results: Sequence[CompiledKernel]) -> Iterator[str]:
    """One line for each kernel and card: the maximum over its variants."""
    yield "kernel              card     variants registers spilled  shared      s"
    groups: dict[tuple[str, str], list[CompiledKernel]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.card), []).append(result)
    for (kernel, card), group in sorted(groups.items()):
        usages = [result.usage for result in group if result.usage]
        if not usages:
            continue
        maxima = [
            max(getattr(usage, name) for usage in usages)
            for name in ("registers", "spilled_bytes", "shared_bytes")
        ]
        seconds = sum(result.seconds for result in group)
        figures = f"{maxima[0]:>10}{maxima[1]:>8}{maxima[2]:>8}{seconds:>7.1f}"
        yield f"{kernel:20}{card:8}{len(group):>9}{figures}"


def _faults(results: Sequence[CompiledKernel]) -> Iterator[str]:
    for result in results:
        label = f"{result.kernel} on {result.card} ({result.variant})"
        if result.usage is None:
            yield f"{label} does not compile: {result.failure}"
            continue
        if result.usage.spilled_bytes > MAX_SPILLED_BYTES:
            yield f"{label} spills {result.usage.spilled_bytes} bytes"
        limit = shared_bytes(result.target.capability)
        if result.usage.shared_bytes > limit:
            yield f"{label} uses {result.usage.shared_bytes} bytes of shared memory, of {limit}"


def _document(results: Sequence[CompiledKernel]) -> dict[str, Any]:
    ordered = sorted(results, key=lambda each: (each.kernel, each.variant, each.target.capability))
    return {
        "measurement": "check-kernels",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": MODEL,
        "triton": triton.__version__,
        "kernels": [
            {
                "kernel": result.kernel,
                "card": result.card,
                "variant": result.variant,
                **(asdict(result.usage) if result.usage else {"failure": result.failure}),
                "compile_seconds": round(result.seconds, 2),
            }
            for result in ordered
        ],
    }


if __name__ == "__main__":
    main()
