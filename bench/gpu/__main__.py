"""All parts one after the other, as a table and as one JSON file."""

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
from bench.gpu import stand_ins
from bench.gpu.figures import Figure
from bench.gpu.parts import FAULTS, PARTS, Part, Setup
from bench.gpu.running import Outcome, ran, skipped
from bench.harness import ROOT

_MINUTES = 8.0
_QUICK_MINUTES = 2.0
_LEAST_SECONDS = 10.0
"""A part that has less time left is not begun."""

_VERDICTS = {True: "reached", False: "MISSED", None: ""}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__)
    known = [part.name for part in (*PARTS, *FAULTS)]
    add = parser.add_argument
    add("--quick", action="store_true", help="two minutes: fewer parts, fewer repeats")
    add("--part", action="append", choices=known, metavar="NAME", dest="parts",
        help="this part alone, repeatable: " + ", ".join(part.name for part in PARTS))  # fmt: skip
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--size", choices=("full", "small"), default="full", help="small tries the bench itself")
    add("--minutes", type=float, help="for all parts together  [default: 8, or 2 with --quick]")
    add("--limit", type=float, metavar="SECONDS", help="for each part, in the place of its own")
    add("--work", type=Path, default=ROOT / ".cache" / "bench" / "gpu", help="for models")
    return parser


def main() -> None:
    """Exit status: 0 if every part is done and every result right, else 1."""
    arguments = options().parse_args()
    setup = Setup(arguments.device, arguments.size, arguments.quick, arguments.work.resolve())
    minutes = arguments.minutes or (_QUICK_MINUTES if arguments.quick else _MINUTES)
    outcomes = all_ran(chosen(arguments), setup, 60 * minutes, arguments.limit)
    summary = compared(outcomes)
    show(outcomes, summary)
    path = write(arguments, setup, outcomes, summary)
    print(f"\n{path}")
    sys.exit(1 if any(outcome.failed for outcome in outcomes) else 0)


def chosen(arguments: argparse.Namespace) -> list[Part]:
    """The parts to run; those that were named need the model too."""
    if not arguments.parts:
        return [part for part in PARTS if part.quick or not arguments.quick]
    # Those that fail come before the others, which must not suffer from it.
    model, *others = PARTS
    return [part for part in (model, *FAULTS, *others) if part.name in {"model", *arguments.parts}]


def all_ran(
    parts: Sequence[Part], setup: Setup, seconds: float, limit: float | None
) -> list[Outcome]:
    """Each in its own process, for as long as there is time; none ends the others."""
    until = time.monotonic() + seconds
    outcomes = []
    for part in parts:
        left = until - time.monotonic()
        print(f"... {part.name}", file=sys.stderr, flush=True)
        if left < _LEAST_SECONDS:
            outcome = skipped(part, "no time is left")
        else:
            outcome = ran(part, setup, min(limit or part.limit_seconds, left))
        if outcome.reason:
            print(f"{part.name}: {outcome.status}: {outcome.reason}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes


def compared(outcomes: Sequence[Outcome]) -> list[Figure]:
    """What two parts say together: our speed over NeMo's in the same run."""
    found = {figure.name: figure for outcome in outcomes for figure in outcome.figures}
    ours, nemo = found.get("128 x 30 s"), found.get("NeMo, 128 x 30 s")
    if not (ours and nemo and ours.value and nemo.value):
        return []
    return [Figure("ours over NeMo, 128 x 30 s", ours.value / nemo.value, "x", at_least=4.0)]


def show(outcomes: Sequence[Outcome], summary: Sequence[Figure]) -> None:
    """One table of everything, then what is not well."""
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
    return (part, figure.name, figure.value, figure.unit, figure.goal, _VERDICTS[figure.holds])


def write(
    arguments: argparse.Namespace,
    setup: Setup,
    outcomes: Sequence[Outcome],
    summary: Sequence[Figure],
) -> Path:
    """Everything into one file below `$OUT`, else with the other results; returns its path."""
    hardware = harness.Hardware.here()
    document = {
        "measurement": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": asdict(hardware),
        "versions": {**harness.versions(), "triton": harness.version("triton")},
        "missing_packages": stand_ins.missing(),
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
