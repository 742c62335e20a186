"""Compiles every kernel for every card without one, and shows what each takes of it.

Compiled kernels stay in .cache/kernels: what has not changed is not compiled again.
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
    Compiled,
    CompileRequest,
    Target,
    compiled,
)
from parakeet_worker.engine.native.kernels.tiles import CAPABILITIES, shared_bytes  # noqa: E402
from parakeet_worker.engine.native.launches import ModelShape  # noqa: E402
from parakeet_worker.engine.native.precision import KERNEL_PRECISIONS, Precision  # noqa: E402
from published import described, nemo_config  # noqa: E402  # where the tests are is known only now

DEMO = Path(str(files("parakeet_worker") / "checkpoints" / "demo.nemo"))
MODEL = "parakeet-tdt-0.6b-v3"
CACHE = ROOT / ".cache" / "kernels"
MOST_SPILLED_BYTES = 64


def main() -> None:
    chosen = _arguments()
    if chosen.results:  # figures of compile time are of compiling everything
        shutil.rmtree(CACHE, ignore_errors=True)
    request = CompileRequest(
        targets=tuple(_targets()),
        folders=(CACHE,),
        processes=len(os.sched_getaffinity(0)),
        startable=False,
        measured=True,
    )
    # Of both precisions, the search is the same.
    results = list({(one.kernel, one.variant, one.card): one for one in compiled(request)}.values())
    print("\n".join(_table(results)))
    if chosen.results:
        chosen.results.write_text(json.dumps(_document(results), indent=1) + "\n")
    faults = list(_faults(results))
    print("\n".join(faults) or f"{len(results)} kernels compile, and fit the cards")
    sys.exit(1 if faults else 0)


def _arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description="Compile every kernel for every card.")
    asked.add_argument("--results", type=Path, help="write the figures to this JSON file")
    return asked.parse_args()


def _targets() -> Iterator[Target]:
    """Every card in all that an operator may choose; the demo model, which tests use, on two."""
    shape = ModelShape.of(described(nemo_config(MODEL)))
    for capability in CAPABILITIES:
        for precision in KERNEL_PRECISIONS:
            for reproducible in (False, True):
                yield Target(shape, precision, capability, reproducible)
    demo = ModelShape.of(checkpoint.read_checkpoint(DEMO))
    for capability in ((8, 6), (9, 0)):
        yield Target(demo, Precision.BF16, capability)


def _table(results: Sequence[Compiled]) -> Iterator[str]:
    """A line for each kernel and card: the most that any of its variants takes."""
    yield "kernel              card     variants registers spilled  shared      s"
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.card), []).append(result)
    for (kernel, card), group in sorted(groups.items()):
        taken = [one.usage for one in group if one.usage]
        if not taken:
            continue
        most = [
            max(getattr(usage, name) for usage in taken)
            for name in ("registers", "spilled_bytes", "shared_bytes")
        ]
        seconds = sum(one.seconds for one in group)
        figures = f"{most[0]:>10}{most[1]:>8}{most[2]:>8}{seconds:>7.1f}"
        yield f"{kernel:20}{card:8}{len(group):>9}{figures}"


def _faults(results: Sequence[Compiled]) -> Iterator[str]:
    for result in results:
        named = f"{result.kernel} on {result.card} ({result.variant})"
        if result.usage is None:
            yield f"{named} does not compile: {result.failure}"
            continue
        if result.usage.spilled_bytes > MOST_SPILLED_BYTES:
            yield f"{named} spills {result.usage.spilled_bytes} bytes"
        limit = shared_bytes(result.target.capability)
        if result.usage.shared_bytes > limit:
            yield f"{named} takes {result.usage.shared_bytes} bytes of shared memory, of {limit}"


def _document(results: Sequence[Compiled]) -> dict[str, Any]:
    ordered = sorted(results, key=lambda one: (one.kernel, one.variant, one.target.capability))
    return {
        "measurement": "check-kernels",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": MODEL,
        "triton": triton.__version__,
        "kernels": [
            {
                "kernel": one.kernel,
                "card": one.card,
                "variant": one.variant,
                **(asdict(one.usage) if one.usage else {"failure": one.failure}),
                "compile_seconds": round(one.seconds, 2),
            }
            for one in ordered
        ],
    }


if __name__ == "__main__":
    main()
