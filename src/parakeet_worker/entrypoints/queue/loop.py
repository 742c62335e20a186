"""The job loop: takes jobs into free slots, applies cancellations, and drains at the end.

It replaces the SDK's scaler, which waits up to a second after a slot becomes free, polls its own
queue of taken jobs ten times a second, and loses jobs that arrive in a poll open at SIGTERM.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import aiohttp

from parakeet_worker import json_parsing, threads
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.sdk import Sdk
from parakeet_worker.errors import InvalidRequest, ParakeetError, without_trace

log = logging.getLogger(__name__)
Job = dict[str, Any]
Answer = Callable[[Job, Delivery], Coroutine[Any, Any, None]]
"""Answers one job and delivers the answer."""

_EARLY_STOP_SECONDS = 60.0
"""How long a cancellation that arrives before its job is kept. Not longer, because the platform may
assign a cancelled job again under the same id."""
_ANSWERED_SECONDS = 600.0
"""How long finished ids are kept, to distinguish late cancellations from early ones."""
_POLL_SECONDS = 90.0
_SHORTEST_POLL_SECONDS = 1.0
"""Minimum interval of polls that return empty without being held open."""
_BUSY_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 30.0
_REPORT_SECONDS = 60.0
"""Minimum interval of warnings about a lasting condition."""
_SHORTAGE_SECONDS = 300.0
"""An idle worker exits after this time without room for a job."""
_LAST_POLL_SECONDS = 0.25
"""Grace period of an open poll at shutdown: a job in transit is taken and answered."""


class PollError(Exception):
    """The platform's response to a poll was an error."""


class JobLoop:
    """Runs one worker's jobs, at count `slots` concurrently."""

    def __init__(
        self,
        sdk: Sdk,
        answer: Answer,
        *,
        slots: int,
        delivery_seconds: float,
        last_poll_seconds: float = _LAST_POLL_SECONDS,
        when_idle: Callable[[], object] = lambda: None,
        shortage: Callable[[], ParakeetError | None] = lambda: None,
        report_seconds: float = _REPORT_SECONDS,
        shortage_seconds: float = _SHORTAGE_SECONDS,
    ) -> None:
        """`when_idle` is called in a thread whenever the last running job has ended.

        No job is taken while `shortage` returns an error.
        """
        self._sdk = sdk
        self._answer = answer
        self._slots = slots
        self._delivery_seconds = delivery_seconds
        self._last_poll_seconds = last_poll_seconds
        self._when_idle = when_idle
        self._shortage = shortage
        self._report_seconds = report_seconds
        self._shortage_seconds = shortage_seconds
        self._rejected_since: float | None = None
        self._rejection_reported = 0.0
        self.unusable: ParakeetError | None = None
        """The lasting shortage that ended the loop."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cancelled_before_start: dict[str, float] = {}
        """Jobs cancelled before they arrived, with the expiry of the entry."""
        self._ended: dict[str, float] = {}
        """Finished jobs in order, with the expiry of the entry."""
        self._short_since: float | None = None
        self._shortage_reported = -math.inf
        self._freed = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Take no more jobs; `run` returns when all taken jobs are answered."""
        self._ending.set()

    async def run(self) -> None:
        """Take and answer jobs until `end`."""
        async with self._sdk.session() as session:
            delivery = Delivery(self._sdk, session, self._delivery_seconds)
            cancellations = asyncio.create_task(self._watch_cancellations(session))
            try:
                await self._take_jobs(session, delivery)
                # Cancellations are applied until the last job has ended.
                while self._running:
                    await asyncio.wait(self._running.values())
            finally:
                cancellations.cancel()
                with suppress(asyncio.CancelledError):
                    await cancellations

    async def _take_jobs(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        pause_seconds = 0.0
        while not self._ending.is_set():
            free = self._slots - len(self._running)
            if free <= 0:
                self._freed.clear()
                await self._until_ending(self._freed.wait())
                continue
            if not await self._has_room():
                continue
            started = time.monotonic()
            try:
                taken = await self._take(session, free)
                for job in taken:
                    self._start(job, delivery)
            except PollError as failure:
                pause_seconds = min(_LONGEST_PAUSE_SECONDS, 2 * pause_seconds or 1.0)
                log.warning("no jobs for %.0f s: %s", pause_seconds, failure)
                await self._pause(pause_seconds)
                continue
            except Exception:  # unexpected: running jobs continue, and polling too
                log.exception("unexpected exception while taking jobs")
                await self._pause(_LONGEST_PAUSE_SECONDS)
                continue
            pause_seconds = 0.0
            if not taken:
                await self._pause(_SHORTEST_POLL_SECONDS - (time.monotonic() - started))

    async def _has_room(self) -> bool:
        """Whether there is room for a job; pauses if there is none.

        A lasting shortage without running jobs ends the loop, so that the worker is replaced.
        """
        shortage = self._shortage()
        now = time.monotonic()
        if shortage is None:
            self._short_since = None
            return True
        if self._short_since is None or self._running:
            self._short_since = now
        if now - self._shortage_reported > self._report_seconds:
            self._shortage_reported = now
            log.warning("taking no jobs: %s", shortage)
        if now - self._short_since > self._shortage_seconds:
            self.unusable = shortage
            self.end()
        await self._pause(_SHORTEST_POLL_SECONDS)
        return False

    async def _take(self, session: aiohttp.ClientSession, count: int) -> list[Job]:
        """Poll for jobs; raises `PollError`."""
        limit = aiohttp.ClientTimeout(total=_POLL_SECONDS)
        poll = asyncio.ensure_future(session.get(self._sdk.take_url(count), timeout=limit))
        await self._until_ending(poll, grace_seconds=self._last_poll_seconds)
        if poll.cancelled():
            return []
        try:
            # A response is always read to its end: the jobs in it count as taken.
            async with poll.result() as response:
                self._check_status(response.status)
                return await _jobs_in(response)
        except TimeoutError:  # the poll was held open too long
            return []
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            raise PollError(f"{type(failure).__name__}: {failure}") from failure

    def _check_status(self, status: int) -> None:
        """Warn once per interval if every poll is answered 400, as with a wrong URL."""
        now = time.monotonic()
        if status != 400:
            self._rejected_since = None
        elif self._rejected_since is None:
            self._rejected_since = self._rejection_reported = now
        elif now - self._rejection_reported > self._report_seconds:
            self._rejection_reported = now
            log.warning(
                "polling for jobs has been answered 400 for %.0f s; check "
                "RUNPOD_WEBHOOK_GET_JOB", now - self._rejected_since,
            )  # fmt: skip

    def _start(self, job: Job, delivery: Delivery) -> None:
        job_id = job["id"]
        if job_id in self._running:
            log.warning("job assigned twice", extra={"job": job_id})
            return
        if self._cancelled_before_start.pop(job_id, 0.0) > time.monotonic():
            log.info("job cancelled before it arrived", extra={"job": job_id})
            return
        self._sdk.in_progress.add(job_id)
        task = asyncio.create_task(self._answer(job, delivery), name=job_id)
        self._running[job_id] = task
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        job_id = task.get_name()
        self._sdk.in_progress.remove(job_id)
        del self._running[job_id]
        self._record_end(job_id)
        self._freed.set()
        if not self._running:
            task.get_loop().run_in_executor(None, self._when_idle)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "job raised an unexpected exception",
                exc_info=task.exception(),
                extra={"job": job_id},
            )

    def _record_end(self, job_id: str) -> None:
        now = time.monotonic()
        while self._ended and next(iter(self._ended.values())) < now:
            del self._ended[next(iter(self._ended))]
        self._ended.pop(job_id, None)
        self._ended[job_id] = now + _ANSWERED_SECONDS

    async def _watch_cancellations(self, session: aiohttp.ClientSession) -> None:
        while True:
            started = time.monotonic()
            cancelled: list[str] = []
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    cancelled = await self._sdk.stop_signals(session)
            except aiohttp.ClientResponseError as failure:
                if failure.status != 429:
                    log.warning("polling for cancellations failed: %s", failure)
                await asyncio.sleep(_BUSY_SECONDS)
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # interrupted poll; the next one returns the same
            except Exception as failure:  # noqa: BLE001  # unknown response format
                log.warning("cancellations cannot be parsed: %s", type(failure).__name__)
                await asyncio.sleep(_BUSY_SECONDS)
            for job_id in cancelled:
                if isinstance(job_id, str):
                    self._cancel(job_id)
            if not cancelled:
                await asyncio.sleep(max(0.0, _SHORTEST_POLL_SECONDS - (time.monotonic() - started)))

    def _cancel(self, job_id: str) -> None:
        now, task = time.monotonic(), self._running.get(job_id)
        if task is None and self._ended.get(job_id, 0.0) > now:
            log.info("job cancelled after its end", extra={"job": job_id})
        elif task is None:
            waiting = {
                job: until for job, until in self._cancelled_before_start.items() if until > now
            }
            self._cancelled_before_start = {**waiting, job_id: now + _EARLY_STOP_SECONDS}
        elif not task.cancelling():  # a second cancellation would interrupt the cleanup
            log.info("job cancelled", extra={"job": job_id})
            task.cancel()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await self._until_ending(asyncio.sleep(seconds))

    async def _until_ending(self, work: Awaitable[object], grace_seconds: float = 0.0) -> None:
        """Wait for `work` or for `end` plus the grace period, then cancel `work`."""
        waited = asyncio.ensure_future(work)
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait((waited, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not waited.done() and grace_seconds:
            await asyncio.wait((waited,), timeout=grace_seconds)
        if not waited.done():
            waited.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await waited


async def _jobs_in(response: aiohttp.ClientResponse) -> list[Job]:
    if response.status in (204, 400):  # 400 is normal after a worker was frozen
        return []
    if response.status != 200:
        raise PollError(f"the platform answered {response.status}")
    content = await response.read()
    if len(content) > json_parsing.SMALL_BYTES:
        return await threads.computed(parse_jobs, content)
    return parse_jobs(content)


def parse_jobs(content: bytes) -> list[Job]:
    """Parse the jobs of a response.

    If the body is invalid as a whole, jobs are parsed one by one; an invalid job gets an
    `InvalidRequest` as its input. Raises `json_parsing.NotParsed` if no job is items.
    """
    try:
        body = json_parsing.parse(content or b"[]")
        items = body if isinstance(body, list) else [body]
    except json_parsing.NotParsed as failure:
        text = content.decode(errors="replace")
        items = [_parse_job(item) for item in json_parsing.items(text)]
        if not items:
            raise
        log.warning("parsing jobs one by one: %s", failure)
    jobs = [job for job in items if isinstance(job, dict) and isinstance(job.get("id"), str)]
    if len(jobs) != len(items):
        log.error("%d jobs have no id and cannot be answered", len(items) - len(jobs))
    return jobs


def _parse_job(text: str) -> object:
    try:
        return json_parsing.parse(text)
    except json_parsing.NotParsed as failure:
        reason = without_trace(InvalidRequest("input", str(failure)))
        return {"id": json_parsing.string_field(text, "id"), "input": reason}
