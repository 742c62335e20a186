"""Runs a part in a separate process and collects its figures, even if it crashes."""

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
    """Result of a part."""

    name: str
    status: Status
    seconds: float
    reason: str | None
    """The last line of its log, if it is not done."""
    figures: tuple[Figure, ...]
    log: str | None = None
    """The end of its log, if it is not done."""
    optional: bool = False

    @property
    def failed(self) -> bool:
        """Whether the whole run fails."""
        incomplete = self.status not in ("done", "absent")
        if self.status == "skipped" and self.optional:
            return False
        return incomplete or any(
            figure.required and figure.holds is False for figure in self.figures
        )

    def document(self) -> dict[str, Any]:
        """Fields for the JSON file."""
        return {
            "name": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "reason": self.reason,
            "log": self.log,
            "figures": [figure.document() for figure in self.figures],
        }


def skip(part: Part, reason: str) -> Outcome:
    """Outcome of a part that was not started."""
    return Outcome(part.name, "skipped", 0.0, reason, (), optional=part.optional)


def run_part(part: Part, setup: Setup, limit_seconds: float) -> Outcome:
    """Run a part; kill it and its child processes after `limit_seconds`."""
    folder = setup.work / "log"
    folder.mkdir(parents=True, exist_ok=True)
    output, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.txt"
    command = [
        sys.executable, "-m", "bench.gpu.child", part.name, json.dumps(setup.document()),
    ]  # fmt: skip
    started = time.monotonic()
    with output.open("w") as out, log.open("w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
    try:
        code: int | None = process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:  # also after an interrupt
        _kill(process)
    seconds = time.monotonic() - started
    return Outcome(
        part.name,
        _status(code),
        seconds,
        _reason(code, log),
        _figures(output),
        None if code in (0, ABSENT) else log.read_text(errors="replace")[-_LOG_CHARACTERS:],
    )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process group of the part."""
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
    lines = log.read_text(errors="replace").strip().splitlines() or ["the log is empty"]
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}: {lines[-1]}"
    return lines[-1]


def _figures(output: Path) -> tuple[Figure, ...]:
    """Figures of all complete lines: the last one may be truncated."""
    lines = output.read_text().splitlines(keepends=True)
    return tuple(Figure.read(json.loads(line)) for line in lines if line.endswith("\n"))
