"""Runs all parts in sequence; prints a table and writes one JSON file."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import harness
from bench.gpu import stubs
from bench.gpu.figures import Figure
from bench.gpu.parts import FAULTS, PARTS, Part, Setup
from bench.gpu.running import Outcome, run_part, skip
from bench.harness import ROOT

_MINUTES = 8.0
_QUICK_MINUTES = 2.0
_MIN_SECONDS = 10.0
"""A part with less remaining time is not started."""

_STATUS = {True: "reached", False: "MISSED", None: ""}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__)
    names = [part.name for part in (*PARTS, *FAULTS)]
    add = parser.add_argument
    add("--quick", action="store_true", help="two minutes: fewer parts, fewer repeats")
    add("--part", action="append", choices=names, metavar="NAME", dest="parts",
        help="run this part only, repeatable: "
        + ", ".join(part.name for part in PARTS))  # fmt: skip
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add(
        "--size", choices=("full", "small"), default="full", help="small tests the benchmark itself"
    )
    add("--minutes", type=float, help="for all parts  [default: 8, or 2 with --quick]")
    add("--limit", type=float, metavar="SECONDS", help="for each part, instead of its own limit")
    add("--work", type=Path, default=ROOT / ".cache" / "bench" / "gpu", help="folder for models")
    return parser


def main() -> None:
    """Exit status: 0 if every part is done and every result correct, else 1."""
    arguments = options().parse_args()
    setup = Setup(arguments.device, arguments.size, arguments.quick, arguments.work.resolve())
    minutes = arguments.minutes or (_QUICK_MINUTES if arguments.quick else _MINUTES)
    outcomes = run_all(selected(arguments), setup, 60 * minutes, arguments.limit)
    summary = summarize(outcomes)
    show(outcomes, summary)
    path = write(arguments, setup, outcomes, summary)
    print(f"\n{path}")
    sys.exit(1 if any(outcome.failed for outcome in outcomes) else 0)


def selected(arguments: argparse.Namespace) -> list[Part]:
    """The parts to run, with the model that they require."""
    if not arguments.parts:
        return [part for part in PARTS if part.quick or not arguments.quick]
    # Failing parts run first: the others must not be affected.
    model, *others = PARTS
    return [part for part in (model, *FAULTS, *others) if part.name in {"model", *arguments.parts}]


def run_all(
    parts: Sequence[Part], setup: Setup, seconds: float, limit: float | None
) -> list[Outcome]:
    """Run each part in its own process while time remains; no part ends the others."""
    until = time.monotonic() + seconds
    outcomes = []
    for part in parts:
        left = until - time.monotonic()
        print(f"... {part.name}", file=sys.stderr, flush=True)
        if left < _MIN_SECONDS:
            outcome = skip(part, "no time left")
        else:
            outcome = run_part(part, setup, min(limit or part.limit_seconds, left))
        if outcome.reason:
            print(f"{part.name}: {outcome.status}: {outcome.reason}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes


def summarize(outcomes: Sequence[Outcome]) -> list[Figure]:
    """Figures of two parts combined: the engine's speed relative to NeMo's in the same run."""
    figures = {figure.name: figure for outcome in outcomes for figure in outcome.figures}
    engine, nemo = figures.get("128 x 30 s"), figures.get("NeMo, 128 x 30 s")
    if not (engine and nemo and engine.value and nemo.value):
        return []
    return [Figure("speed over NeMo, 128 x 30 s", engine.value / nemo.value, "x", at_least=4.0)]


def show(outcomes: Sequence[Outcome], summary: Sequence[Figure]) -> None:
    """Print one table of all figures, then the failures."""
    rows: list[tuple[object, ...]] = []
    for outcome in outcomes:
        if not outcome.figures or outcome.status != "done":
            rows.append((outcome.name, outcome.status, round(outcome.seconds, 1), "s", None, ""))
        rows.extend(_row(outcome.name, figure) for figure in outcome.figures)
    rows.extend(_row("together", figure) for figure in summary)
    harness.table(("part", "figure", "value", "unit", "goal", ""), rows)
    for outcome in outcomes:
        if outcome.failed:
            print(f"\n{outcome.name} failed ({outcome.status}): {outcome.reason or 'see above'}")


def _row(part: str, figure: Figure) -> tuple[object, ...]:
    return (part, figure.name, figure.value, figure.unit, figure.goal, _STATUS[figure.holds])


def write(
    arguments: argparse.Namespace,
    setup: Setup,
    outcomes: Sequence[Outcome],
    summary: Sequence[Figure],
) -> Path:
    """Write one file below `$OUT`, by default to the other results; return its path."""
    hardware = harness.Hardware.here()
    document = {
        "measurement": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": asdict(hardware),
        "versions": {**harness.versions(), "triton": harness.version("triton")},
        "missing_packages": stubs.missing(),
        "arguments": {
            "device": setup.device,
            "size": setup.size,
            "quick": setup.quick,
            "parts": [outcome.name for outcome in outcomes],
        },
        "passed": not any(outcome.failed for outcome in outcomes),
        "parts": [outcome.document() for outcome in outcomes],
        "together": [figure.document() for figure in summary],
    }
    path = _folder(arguments, setup) / f"gpu-{hardware.slug(setup.device)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return path


def _folder(arguments: argparse.Namespace, setup: Setup) -> Path:
    out: Any = os.environ.get("OUT")
    if out:
        return Path(out)
    return arguments.work / "results" if setup.small else harness.RESULTS


if __name__ == "__main__":
    main()
