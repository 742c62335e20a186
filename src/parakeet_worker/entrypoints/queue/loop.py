"""The job loop: takes jobs while there are free slots, gives up those that are cancelled, and ends
when it is told to with every taken job answered.

It stands in for the SDK's own scaler, which waits up to a second where a slot becomes free, looks
for taken jobs ten times a second, and loses what arrives in a poll that is open at SIGTERM.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import aiohttp

from parakeet_worker import bounded_json, threads
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.sdk import Sdk
from parakeet_worker.errors import InvalidRequest, ParakeetError, without_trace

log = logging.getLogger(__name__)
Job = dict[str, Any]
Answer = Callable[[Job, Delivery], Coroutine[Any, Any, None]]
"""Answers one job, and delivers the answer."""

_EARLY_STOP_SECONDS = 60.0
"""So long a cancellation waits for its job to come. For longer would be wrong: the platform may
hand out a job again, under its old name, after it was cancelled."""
_ANSWERED_SECONDS = 600.0
"""So long a cancellation of a job that has ended is known to be late, and not early."""
_POLL_SECONDS = 90.0
_SHORTEST_POLL_SECONDS = 1.0
"""An empty poll that comes back sooner was not held open; the next one waits for the rest."""
_BUSY_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 30.0
_TELL_SECONDS = 60.0
"""What goes on is told no more often."""
_SHORTAGE_SECONDS = 300.0
"""An idle worker that has no room for so long is of no use."""
_ON_THE_WIRE_SECONDS = 0.25
"""At the end an open poll is given so long: a job that is on its way is taken and answered."""


class _Faulty(Exception):
    """The platform did not answer as it should."""


class JobLoop:
    """One worker's jobs, as many at a time as it has slots."""

    def __init__(
        self,
        sdk: Sdk,
        answer: Answer,
        *,
        slots: int,
        delivery_seconds: float,
        on_the_wire_seconds: float = _ON_THE_WIRE_SECONDS,
        when_idle: Callable[[], object] = lambda: None,
        shortage: Callable[[], ParakeetError | None] = lambda: None,
        tell_seconds: float = _TELL_SECONDS,
        shortage_seconds: float = _SHORTAGE_SECONDS,
    ) -> None:
        """`when_idle` is called, in a thread, whenever the last running job has ended.

        While there is a `shortage`, no job is taken.
        """
        self._sdk = sdk
        self._answer = answer
        self._slots = slots
        self._delivery_seconds = delivery_seconds
        self._on_the_wire_seconds = on_the_wire_seconds
        self._when_idle = when_idle
        self._shortage = shortage
        self._tell_seconds = tell_seconds
        self._shortage_seconds = shortage_seconds
        self._refused_since: float | None = None
        self._refusal_told = 0.0
        self.unusable: ParakeetError | None = None
        """The shortage that lasted for too long, and ended the loop."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopped_early: dict[str, float] = {}
        """Jobs whose cancellation overtook them, and until when that is remembered."""
        self._ended: dict[str, float] = {}
        """Jobs that have ended, the first first, and until when that is remembered."""
        self._short_since: float | None = None
        self._shortage_told = -math.inf
        self._freed = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Take no more jobs; `run` returns when those that were taken are answered."""
        self._ending.set()

    async def run(self) -> None:
        """Take and answer jobs until `end`."""
        async with self._sdk.session() as session:
            delivery = Delivery(self._sdk, session, self._delivery_seconds)
            stops = asyncio.create_task(self._heed_stops(session))
            try:
                await self._take_jobs(session, delivery)
                # Jobs may be cancelled by their callers to the very end.
                while self._running:
                    await asyncio.wait(self._running.values())
            finally:
                stops.cancel()
                with suppress(asyncio.CancelledError):
                    await stops

    async def _take_jobs(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        pause_seconds = 0.0
        while not self._ending.is_set():
            free = self._slots - len(self._running)
            if free <= 0:
                self._freed.clear()
                await self._until_ending(self._freed.wait())
                continue
            if not await self._roomy():
                continue
            began = time.monotonic()
            try:
                taken = await self._take(session, free)
                for job in taken:
                    self._start(job, delivery)
            except _Faulty as fault:
                pause_seconds = min(_LONGEST_PAUSE_SECONDS, 2 * pause_seconds or 1.0)
                log.warning("no jobs for %.0f s: %s", pause_seconds, fault)
                await self._pause(pause_seconds)
                continue
            except Exception:  # a bug: those that run are answered, and others are taken
                log.exception("a bug while jobs are taken")
                await self._pause(_LONGEST_PAUSE_SECONDS)
                continue
            pause_seconds = 0.0
            if not taken:
                await self._pause(_SHORTEST_POLL_SECONDS - (time.monotonic() - began))

    async def _roomy(self) -> bool:
        """Whether there is room for a job; waits for a moment where there is none.

        Where that lasts while nothing runs, the loop ends, so that the worker is replaced.
        """
        shortage = self._shortage()
        now = time.monotonic()
        if shortage is None:
            self._short_since = None
            return True
        if self._short_since is None or self._running:
            self._short_since = now
        if now - self._shortage_told > self._tell_seconds:
            self._shortage_told = now
            log.warning("no jobs are taken: %s", shortage)
        if now - self._short_since > self._shortage_seconds:
            self.unusable = shortage
            self.end()
        await self._pause(_SHORTEST_POLL_SECONDS)
        return False

    async def _take(self, session: aiohttp.ClientSession, most: int) -> list[Job]:
        """Jobs, if there are any; raises `_Faulty`."""
        limit = aiohttp.ClientTimeout(total=_POLL_SECONDS)
        poll = asyncio.ensure_future(session.get(self._sdk.take_url(most), timeout=limit))
        await self._until_ending(poll, grace_seconds=self._on_the_wire_seconds)
        if poll.cancelled():
            return []
        try:
            # Once the answer begins it is read to its end: jobs in it count as taken.
            async with poll.result() as response:
                self._note_status(response.status)
                return await _jobs_in(response)
        except TimeoutError:  # held open for longer than anybody waits
            return []
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            raise _Faulty(f"{type(failure).__name__}: {failure}") from failure

    def _note_status(self, status: int) -> None:
        """Say now and then that nothing but 400 comes, as from a wrong address."""
        now = time.monotonic()
        if status != 400:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = self._refusal_told = now
        elif now - self._refusal_told > self._tell_seconds:
            self._refusal_told = now
            log.warning(
                "asked for jobs, the platform has answered 400 for %.0f s; check "
                "RUNPOD_WEBHOOK_GET_JOB", now - self._refused_since,
            )  # fmt: skip

    def _start(self, job: Job, delivery: Delivery) -> None:
        name = job["id"]
        if name in self._running:
            log.warning("handed out twice", extra={"job": name})
            return
        if self._stopped_early.pop(name, 0.0) > time.monotonic():
            log.info("cancelled by its caller before it came", extra={"job": name})
            return
        self._sdk.in_progress.add(name)
        task = asyncio.create_task(self._answer(job, delivery), name=name)
        self._running[name] = task
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        name = task.get_name()
        self._sdk.in_progress.remove(name)
        del self._running[name]
        self._note_end(name)
        self._freed.set()
        if not self._running:
            task.get_loop().run_in_executor(None, self._when_idle)
        if not task.cancelled() and task.exception() is not None:
            log.error("a job ended in a bug", exc_info=task.exception(), extra={"job": name})

    def _note_end(self, name: str) -> None:
        now = time.monotonic()
        while self._ended and next(iter(self._ended.values())) < now:
            del self._ended[next(iter(self._ended))]
        self._ended.pop(name, None)
        self._ended[name] = now + _ANSWERED_SECONDS

    async def _heed_stops(self, session: aiohttp.ClientSession) -> None:
        while True:
            began = time.monotonic()
            stopped: list[str] = []
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    stopped = await self._sdk.stop_signals(session)
            except aiohttp.ClientResponseError as failure:
                if failure.status != 429:
                    log.warning("stops cannot be asked for: %s", failure)
                await asyncio.sleep(_BUSY_SECONDS)
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # a poll that broke off; the next one says the same
            except Exception as failure:  # noqa: BLE001  # an answer in no form that is known
                log.warning("stops cannot be read: %s", type(failure).__name__)
                await asyncio.sleep(_BUSY_SECONDS)
            for name in stopped:
                if isinstance(name, str):
                    self._stop(name)
            if not stopped:
                await asyncio.sleep(max(0.0, _SHORTEST_POLL_SECONDS - (time.monotonic() - began)))

    def _stop(self, name: str) -> None:
        now, task = time.monotonic(), self._running.get(name)
        if task is None and self._ended.get(name, 0.0) > now:
            log.info("cancelled after its end", extra={"job": name})
        elif task is None:
            waiting = {job: until for job, until in self._stopped_early.items() if until > now}
            self._stopped_early = {**waiting, name: now + _EARLY_STOP_SECONDS}
        elif not task.cancelling():  # once is enough: a second would disturb it at its clearing up
            log.info("cancelled by its caller", extra={"job": name})
            task.cancel()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await self._until_ending(asyncio.sleep(seconds))

    async def _until_ending(self, work: Awaitable[object], grace_seconds: float = 0.0) -> None:
        """Wait for `work`, or a little longer than the end; what is not done then is cancelled."""
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
    if response.status in (204, 400):  # 400 is usual while a frozen worker comes back
        return []
    if response.status != 200:
        raise _Faulty(f"the platform answered {response.status}")
    content = await response.read()
    if len(content) > bounded_json.SMALL_BYTES:
        return await threads.computed(jobs_of, content)
    return jobs_of(content)


def jobs_of(content: bytes) -> list[Job]:
    """The jobs in what the platform answered.

    Where it cannot be parsed as a whole, each job is parsed by itself; one that cannot be has an
    `InvalidRequest` as its input. Raises `bounded_json.NotParsed` if there is no job in it.
    """
    try:
        body = bounded_json.parse(content or b"[]")
        found = body if isinstance(body, list) else [body]
    except bounded_json.NotParsed as failure:
        text = content.decode(errors="replace")
        found = [_job_of(item) for item in bounded_json.items(text)]
        if not found:
            raise
        log.warning("jobs are read one by one: %s", failure)
    jobs = [job for job in found if isinstance(job, dict) and isinstance(job.get("id"), str)]
    if len(jobs) != len(found):
        log.error("%d jobs came without an id and cannot be answered", len(found) - len(jobs))
    return jobs


def _job_of(text: str) -> object:
    try:
        return bounded_json.parse(text)
    except bounded_json.NotParsed as failure:
        reason = without_trace(InvalidRequest("input", str(failure)))
        return {"id": bounded_json.string_field(text, "id"), "input": reason}
