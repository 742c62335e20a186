"""Progress of a run on a terminal, and its messages anywhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tqdm import tqdm

from parakeet_worker.client.files import Task
from parakeet_worker.client.http_client import Retry

_ROWS = 4
_NOTICE_SECONDS = 10.0
_TOTAL_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_CLEAR_LINE = "\r\x1b[K"


@contextmanager
def status(message: str) -> Iterator[None]:
    """Show `message` on a terminal for the duration of the block."""
    shown = sys.stderr.isatty()
    if shown:
        sys.stderr.write(f"{message} ...")
        sys.stderr.flush()
    try:
        yield
    finally:
        if shown:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class _Active:
    task: Task
    started: float
    stage: str


class Progress:
    """Bars on a terminal: all files with the time left, and the files that take longest.

    Time left is estimated from the bytes that this run has transcribed so far.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._count, self._ended, self._failed = len(tasks), 0, 0
        self._sizes = {id(task): max(1, task.size) for task in tasks}
        self._active: dict[int, _Active] = {}
        self._done_bytes, self._done_seconds = 0, 0.0
        self._noticed = float("-inf")
        self._bar = tqdm(
            total=sum(self._sizes.values()), bar_format=_TOTAL_BAR, smoothing=0, disable=None,
            leave=False, desc=self._counts(),
        )  # fmt: skip
        # Rows would interfere with results that are printed between the bars.
        rows = min(_ROWS, len(tasks)) if all(task.targets for task in tasks) else 0
        self._rows = [
            tqdm(bar_format="{desc}", position=1 + row, disable=None, leave=False)
            for row in range(rows)
        ]

    def close(self) -> None:
        """Remove the bars."""
        for bar in (*reversed(self._rows), self._bar):
            bar.close()

    def begin(self, task: Task) -> None:
        """Work on a file begins."""
        self._active[id(task)] = _Active(task, time.monotonic(), "queued")

    def stage(self, task: Task, stage: str) -> None:
        """A file has reached a stage."""
        active = self._active[id(task)]
        self._active[id(task)] = replace(active, stage=stage)

    def retrying(self, task: Task, retry: Retry) -> None:
        """A call is repeated: shown in the file's row, or as a line every 10 s."""
        message = f"{retry.reason}; retrying for up to {retry.seconds_left:.0f} s"
        self.stage(task, message)
        now = time.monotonic()
        if now - self._noticed >= _NOTICE_SECONDS:
            self._noticed = now
            tqdm.write(f"parakeet: {retry.url}: {message}", file=sys.stderr)

    def end(self, task: Task, *, failed: bool, transcribed: bool) -> None:
        """A file is finished. One that had its result already leaves the estimate alone."""
        active, size = self._active.pop(id(task)), self._sizes[id(task)]
        self._ended += 1
        self._failed += failed
        self._bar.set_description_str(self._counts(), refresh=False)
        if transcribed:
            self._done_bytes += size
            self._done_seconds += time.monotonic() - active.started
        if transcribed or failed:
            self._bar.update(size)
        elif self._bar.total is not None:
            self._bar.total -= size
            self._bar.refresh()

    def show(self) -> None:
        """Update the rows."""
        oldest = sorted(self._active.values(), key=lambda active: active.started)
        texts = [self._row(active) for active in oldest[: len(self._rows)]]
        for row, text in zip(self._rows, texts + [""] * len(self._rows), strict=False):
            row.set_description_str(text)
        if self._rows:
            self._bar.refresh()

    def _row(self, active: _Active) -> str:
        clock = tqdm.format_interval(time.monotonic() - active.started)
        if self._done_bytes:
            expected = self._sizes[id(active.task)] * self._done_seconds / self._done_bytes
            clock += f" of about {tqdm.format_interval(expected)}"
        return f"  {active.task.name[-48:]}: {active.stage} {clock}"

    def _counts(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended}/{self._count} files{failed}"
