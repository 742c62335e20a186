"""A part in a process of its own, from the outside: its figures, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.gpu.figures import Figure
from bench.gpu.parts import Part, Setup

Status = Literal["done", "failed", "timed out", "absent", "skipped"]

ABSENT = 69
"""Exit status of a part whose libraries are not on this machine: EX_UNAVAILABLE."""

_LOG_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part."""

    name: str
    status: Status
    seconds: float
    reason: str | None
    """The last line of its log, where it is not done."""
    figures: tuple[Figure, ...]
    log: str | None = None
    """The end of its log, where it is not done."""
    optional: bool = False

    @property
    def failed(self) -> bool:
        """Whether the run cannot be called a success."""
        ended_badly = self.status not in ("done", "absent")
        if self.status == "skipped" and self.optional:
            return False
        return ended_badly or any(one.required and one.holds is False for one in self.figures)

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "reason": self.reason,
            "log": self.log,
            "figures": [figure.document() for figure in self.figures],
        }


def skipped(part: Part, reason: str) -> Outcome:
    """Of a part that was not started."""
    return Outcome(part.name, "skipped", 0.0, reason, (), optional=part.optional)


def ran(part: Part, setup: Setup, limit_seconds: float) -> Outcome:
    """Run it to its end, or kill it and all that it started after `limit_seconds`."""
    folder = setup.work / "log"
    folder.mkdir(parents=True, exist_ok=True)
    written, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.txt"
    command = [
        sys.executable, "-m", "bench.gpu.child", part.name, json.dumps(setup.document()),
    ]  # fmt: skip
    started = time.monotonic()
    with written.open("w") as out, log.open("w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
    try:
        code: int | None = process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:  # an interrupted run leaves nothing behind either
        _kill(process)
    seconds = time.monotonic() - started
    return Outcome(
        part.name,
        _status(code),
        seconds,
        _reason(code, log),
        _figures(written),
        None if code in (0, ABSENT) else log.read_text(errors="replace")[-_LOG_CHARACTERS:],
    )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children, which are a group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _status(code: int | None) -> Status:
    if code is None:
        return "timed out"
    if code == ABSENT:
        return "absent"
    return "done" if code == 0 else "failed"


def _reason(code: int | None, log: Path) -> str | None:
    if code == 0:
        return None
    lines = log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}: {lines[-1]}"
    return lines[-1]


def _figures(written: Path) -> tuple[Figure, ...]:
    """Of all whole lines: the last may have been cut off."""
    whole = [line for line in written.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return tuple(Figure.read(json.loads(line)) for line in whole)
