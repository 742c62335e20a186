"""The job loop with a job API that holds polls open, fails, repeats jobs and sends stops.

Results are irrelevant here: functions of the tests answer the jobs.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from job_api import Fault, JobApi
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.loop import Answer, Job, JobLoop
from parakeet_worker.errors import InvalidRequest, ScratchFull

PATIENCE_SECONDS = 30.0


@pytest.fixture
def api() -> Iterator[JobApi]:
    """Polls are held open for longer than any test lasts."""
    with JobApi(hold_seconds=120) as opened:
        yield opened


async def echo(job: Job, delivery: Delivery) -> None:
    """Answers immediately, with the input."""
    await delivery.done(job["id"], {"output": job.get("input")}, streamed=False)


@asynccontextmanager
async def looping(
    api: JobApi, answer: Answer = echo, slots: int = 4, **options: float
) -> AsyncIterator[JobLoop]:
    """A loop that takes jobs and is ended at the end of the block."""
    loop = JobLoop(api.sdk(), answer, slots=slots, delivery_seconds=20.0, **options)
    async with asyncio.timeout(2 * PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(loop.run())
        yield loop
        loop.end()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  # the API has its own thread
            await asyncio.sleep(0.01)


def answered(api: JobApi, *jobs: str) -> Callable[[], bool]:
    return lambda: all(api.deliveries[job].bodies for job in jobs)


class Gate:
    """An answer that waits until the test lets it go, and notes what becomes of it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.cleared_up: list[str] = []

    async def __call__(self, job: Job, delivery: Delivery) -> None:
        self.started.append(job["id"])
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(job["id"])
            await asyncio.sleep(0.3)  # as long as it takes to bury a child process
            self.cleared_up.append(job["id"])
            raise
        await echo(job, delivery)


# taking


async def test_every_job_is_answered_once(api: JobApi) -> None:
    names = [f"job-{number}" for number in range(200)]
    for name in names:
        api.submit(name, {"of": name})
    async with looping(api):
        await until(answered(api, *names))
    for name in names:
        assert api.deliveries[name].bodies == [{"output": {"of": name}}]


async def test_no_more_jobs_are_taken_than_there_are_slots(api: JobApi) -> None:
    gate = Gate()
    for number in range(10):
        api.submit(f"{number}", None)
    async with looping(api, gate, slots=3):
        await until(lambda: len(gate.started) == 3)
        await asyncio.sleep(0.3)
        assert api.queued == 7
        assert gate.started == ["0", "1", "2"]
        gate.open.set()
        await until(answered(api, *map(str, range(10))))


async def test_a_slot_that_becomes_free_is_filled_while_others_work_on(api: JobApi) -> None:
    gate = Gate()

    async def answer(job: Job, delivery: Delivery) -> None:
        await (gate if job["input"] == "long" else echo)(job, delivery)

    api.submit("long", "long")
    for number in range(5):
        api.submit(f"{number}", "short")
    async with looping(api, answer, slots=2):
        await until(answered(api, *map(str, range(5))))
        assert api.deliveries["long"].bodies == []
        gate.open.set()


async def test_the_heartbeat_sends_the_jobs_in_progress(api: JobApi) -> None:
    gate = Gate()
    parts = api.sdk()
    loop = JobLoop(parts, gate, slots=4, delivery_seconds=20.0)
    api.submit("a", None)
    api.submit("b", None)
    running = asyncio.create_task(loop.run())
    await until(lambda: len(gate.started) == 2)
    assert parts.in_progress == {"a", "b"}
    gate.open.set()
    await until(answered(api, "a", "b"))
    loop.end()
    await running
    assert parts.in_progress == set()


@pytest.mark.parametrize("fault", [500, 503, 429, 401, 400, "garbage", "drop"])
async def test_a_take_that_fails_is_not_the_last(api: JobApi, fault: Fault) -> None:
    api.faults["job-take"].append(fault)
    api.submit("job", 1)
    async with looping(api):
        await until(answered(api, "job"))
    assert api.deliveries["job"].bodies == [{"output": 1}]


async def test_polling_a_failing_platform_backs_off() -> None:
    async def requests(fault: Fault, route: str) -> int:
        with JobApi(hold_seconds=120) as api:
            api.faults[route].extend([fault] * 1000)
            async with looping(api):
                await asyncio.sleep(2.5)
            return api.requests[route]

    faults: tuple[Fault, ...] = (500, 429, 400, 204, "garbage", "drop")
    takes = await asyncio.gather(*(requests(fault, "job-take") for fault in faults))
    stops = await asyncio.gather(
        *(requests(fault, "job-stop") for fault in (500, 429, 204, "drop"))
    )
    assert min(takes + stops) >= 1
    # aiohttp itself retries if a kept connection was dropped.
    assert max(takes + stops) <= 10


async def test_while_there_is_a_shortage_no_job_is_taken(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    short = [ScratchFull(1000)]
    api.submit("job", None)
    async with looping(api, shortage=lambda: short[0] if short else None):
        await until(lambda: "taking no jobs: scratch_full" in caplog.text)
        assert api.queued == 1
        short.clear()
        await until(answered(api, "job"))


async def test_a_shortage_that_lasts_ends_the_loop_once_nothing_runs(api: JobApi) -> None:
    gate = Gate()
    full = ScratchFull(1000)
    short: list[ScratchFull] = []
    api.submit("job", None)
    async with looping(
        api, gate, slots=1, shortage=lambda: full if short else None, shortage_seconds=0.1
    ) as loop:
        await until(lambda: gate.started == ["job"])
        short.append(full)
        await asyncio.sleep(0.3)
        assert loop.unusable is None
        gate.open.set()
        await until(lambda: loop.unusable is full)
    assert api.deliveries["job"].bodies == [{"output": None}]


async def test_a_platform_that_answers_nothing_but_400_is_named_now_and_then(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults["job-take"].extend([400, 400])
    async with looping(api, report_seconds=0.0):
        await until(lambda: "been answered 400 for 1 s" in caplog.text)
        assert "check RUNPOD_WEBHOOK_GET_JOB" in caplog.text


async def test_a_job_assigned_twice_is_answered_once(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    api.submit("job", None)
    async with looping(api, gate):
        await until(lambda: gate.started == ["job"])
        delivery = api.deliveries["job"]
        api.submit("job", None)
        await until(lambda: api.queued == 0)
        gate.open.set()
        await until(lambda: bool(delivery.bodies or api.deliveries["job"].bodies))
    assert gate.started == ["job"]
    assert "job assigned twice" in caplog.text


async def test_a_job_without_an_id_affects_no_other_job(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    api.submit(7, None)  # type: ignore[arg-type]
    api.submit("job", 1)
    async with looping(api):
        await until(answered(api, "job"))
    assert "1 jobs have no id" in caplog.text


async def test_a_bug_in_one_job_is_logged_and_stops_no_other(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(job: Job, delivery: Delivery) -> None:
        if job["id"] == "bad":
            raise KeyError("unexpected")
        await echo(job, delivery)

    api.submit("bad", None)
    api.submit("good", 1)
    async with looping(api, answer):
        await until(answered(api, "good"))
        api.submit("after", 2)
        await until(answered(api, "after"))
    (line,) = [record for record in caplog.records if "unexpected exception" in record.message]
    assert line.__dict__["job"] == "bad"


# jobs that cannot be read

UNREADABLE = {
    "deep": "[" * 5000 + "]" * 5000,
    "deeper than is allowed": '{"a":' * 40 + "1" + "}" * 40,
    "digits": "9" * 5000,
    "values": "[" + "0," * 600_000 + "0]",
    "no JSON": "{'audio_url': 5}",
    "quotes": '{"a": "}]\\"}{\\\\", "b": nothing}',
}


async def echo_or_code(job: Job, delivery: Delivery) -> None:
    value = job.get("input")
    code = value.code if isinstance(value, InvalidRequest) else None
    await delivery.done(job["id"], {"output": code or value}, streamed=False)


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_job_that_cannot_be_read_is_answered_and_costs_no_other_its_answer(
    api: JobApi, name: str
) -> None:
    gate = Gate()

    async def answer(job: Job, delivery: Delivery) -> None:
        await (gate if job["id"] == "running" else echo_or_code)(job, delivery)

    api.submit("running", 0)
    async with looping(api, answer, slots=8):
        await until(lambda: gate.started == ["running"])
        with api.changing():
            api.submit("before", {"id": "not this"})
            api.submit_text("bad", UNREADABLE[name])
            api.submit("after", 2)
        await until(answered(api, "before", "bad", "after"))
        gate.open.set()
    assert api.deliveries["before"].bodies == [{"output": {"id": "not this"}}]
    assert api.deliveries["bad"].bodies == [{"output": "invalid_request"}]
    assert api.deliveries["after"].bodies == [{"output": 2}]
    assert api.deliveries["running"].bodies == [{"output": 0}]


async def test_a_single_job_that_cannot_be_read_is_answered(api: JobApi) -> None:
    api.submit_text("bad", UNREADABLE["deep"])
    async with looping(api, echo_or_code, slots=1):
        await until(answered(api, "bad"))
    assert api.deliveries["bad"].bodies == [{"output": "invalid_request"}]


async def test_a_bug_while_jobs_are_taken_stops_none_that_run(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    parts = api.sdk()
    takes = iter([parts.take_url])

    def take_url(most: int) -> str:
        for once in takes:
            return once(most)
        raise KeyError("unexpected")

    api.submit("job", 1)
    loop = JobLoop(replace(parts, take_url=take_url), gate, slots=4, delivery_seconds=20.0)
    running = asyncio.create_task(loop.run())
    await until(lambda: "unexpected exception while taking jobs" in caplog.text)
    assert not running.done()
    gate.open.set()
    await until(answered(api, "job"))
    loop.end()
    await running
    assert api.deliveries["job"].bodies == [{"output": 1}]


# stops


async def test_a_cancelled_job_frees_its_slot(api: JobApi) -> None:
    gate = Gate()
    api.submit("job", None)
    api.submit("next", None)
    async with looping(api, gate, slots=1):
        await until(lambda: gate.started == ["job"])
        api.stop("job")
        await until(lambda: gate.started == ["job", "next"])
        gate.open.set()
        await until(answered(api, "next"))
    assert gate.cleared_up == ["job"]
    assert api.deliveries["job"].order == []


async def test_a_cancellation_that_is_repeated_does_not_disturb_the_clearing_up(
    api: JobApi,
) -> None:
    gate = Gate()
    api.submit("job", None)
    async with looping(api, gate):
        await until(lambda: gate.started == ["job"])
        api.stop("job")
        await until(lambda: gate.cancelled == ["job"])
        before = api.requests["job-stop"]
        api.stop("job")
        await until(lambda: api.requests["job-stop"] > before)
        await until(lambda: api.stops_fetched)
    assert gate.cleared_up == ["job"]


async def test_a_cancellation_may_overtake_its_job(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gate = Gate()
    gate.open.set()
    async with looping(api, gate):
        await asyncio.to_thread(api.polled)
        api.stop("late")
        await until(lambda: api.stops_fetched and api.requests["job-stop"] > 1)
        api.submit("late", None)
        api.submit("other", None)
        await until(answered(api, "other"))
    assert gate.started == ["other"]
    assert api.deliveries["late"].order == []
    assert "job cancelled before it arrived" in caplog.text


async def test_a_job_that_comes_again_after_its_cancellation_is_answered(api: JobApi) -> None:
    gate = Gate()
    gate.open.set()
    async with looping(api, gate):
        await asyncio.to_thread(api.polled)
        api.stop("job")
        await until(lambda: api.stops_fetched and api.requests["job-stop"] > 1)
        api.submit("job", 1)
        await until(lambda: api.queued == 0)
        # The platform assigns a job again under its old id.
        api.submit("job", 2)
        await until(answered(api, "job"))
    assert gate.started == ["job"]


async def test_a_cancellation_after_the_answer_does_not_drop_the_job_when_it_comes_again(
    api: JobApi,
) -> None:
    async with looping(api):
        api.submit("job", 1)
        await until(answered(api, "job"))
        first = api.deliveries["job"]
        api.stop("job")
        polls = api.requests["job-stop"]
        await until(lambda: api.stops_fetched and api.requests["job-stop"] > polls)
        api.submit("job", 2)
        await until(answered(api, "job"))
    assert first.bodies == [{"output": 1}]
    assert api.deliveries["job"].bodies == [{"output": 2}]


async def test_stops_in_no_known_form_end_nothing(api: JobApi) -> None:
    answers = iter([[{"id": "job"}], ValueError("not JSON"), ["job"]])
    gate = Gate()

    async def stop_signals(_: object) -> list[object]:
        await until(lambda: gate.started == ["job"])
        for result in answers:
            if isinstance(result, Exception):
                raise result
            return list(result)
        await asyncio.sleep(PATIENCE_SECONDS)
        return []

    api.submit("job", None)
    parts = replace(api.sdk(), stop_signals=stop_signals)
    loop = JobLoop(parts, gate, slots=4, delivery_seconds=20.0)
    running = asyncio.create_task(loop.run())
    await until(lambda: gate.cleared_up == ["job"])
    loop.end()
    await running


async def test_stops_arrive_after_stop_polls_have_failed(api: JobApi) -> None:
    gate = Gate()
    api.faults["job-stop"].extend(["drop", "drop", 204])
    api.submit("job", None)
    async with looping(api, gate):
        await until(lambda: gate.started == ["job"])
        api.stop("job")
        await until(lambda: gate.cleared_up == ["job"])


async def test_a_running_job_can_be_cancelled_when_no_more_are_taken(api: JobApi) -> None:
    gate = Gate()
    api.submit("job", None)
    async with looping(api, gate) as loop:
        await until(lambda: gate.started == ["job"])
        loop.end()
        await asyncio.sleep(0.5)
        api.stop("job")
    assert gate.cleared_up == ["job"]


# the end


async def test_shutdown_during_an_open_poll_leaves_new_jobs_queued(
    api: JobApi,
) -> None:
    async with looping(api) as loop:
        await asyncio.to_thread(api.polled)
        loop.end()
    api.submit("after", None)
    await asyncio.sleep(0.2)
    assert api.queued == 1
    assert api.requests["job-take"] == 1


async def test_what_runs_at_the_end_is_answered_and_nothing_new_is_taken(api: JobApi) -> None:
    gate = Gate()
    names = ["a", "b", "c"]
    for name in names:
        api.submit(name, name)
    async with looping(api, gate) as loop:
        await until(lambda: len(gate.started) == 3)
        await asyncio.to_thread(api.polled)
        loop.end()
        api.submit("late", None)
        await asyncio.sleep(1)
        gate.open.set()
    for name in names:
        assert api.deliveries[name].bodies == [{"output": name}]
    # It may have been in transit, and is answered then.
    assert len(api.deliveries["late"].bodies) == 1 - api.queued


async def test_when_idle_is_called_after_the_last_job(
    api: JobApi,
) -> None:
    gate, reported = Gate(), threading.Event()
    loop = JobLoop(api.sdk(), gate, slots=4, delivery_seconds=20.0, when_idle=reported.set)
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(loop.run())
        for job in ("first", "second"):
            api.submit(job, None)
        await until(lambda: len(gate.started) == 2)
        assert not reported.is_set()
        gate.open.set()
        await until(reported.is_set)
        await until(answered(api, "first", "second"))
        loop.end()


async def test_an_end_before_the_beginning_takes_nothing(api: JobApi) -> None:
    api.submit("job", None)
    loop = JobLoop(api.sdk(), echo, slots=1, delivery_seconds=1.0)
    loop.end()
    await loop.run()
    assert api.queued == 1
    assert api.requests["job-take"] == 0


async def test_a_job_that_comes_after_the_end_in_an_open_poll_is_answered(api: JobApi) -> None:
    async with looping(api, last_poll_seconds=PATIENCE_SECONDS) as loop:
        await asyncio.to_thread(api.polled)
        loop.end()
        api.submit("job", 1)
        await until(answered(api, "job"))
    assert api.deliveries["job"].bodies == [{"output": 1}]
    assert api.queued == 0


async def test_a_job_in_transit_within_the_grace_period_is_answered(
    api: JobApi,
) -> None:
    api.wire_open = False
    async with looping(api, last_poll_seconds=PATIENCE_SECONDS) as loop:
        await asyncio.to_thread(api.polled)
        api.submit("job", 1)
        assert await asyncio.to_thread(api.taken, "job", PATIENCE_SECONDS)
        loop.end()
        api.wire_open = True
        await until(answered(api, "job"))
    assert api.queued == 0


async def test_a_job_in_transit_beyond_the_grace_period_stays_queued(api: JobApi) -> None:
    api.wire_open = False
    async with looping(api, last_poll_seconds=0.0) as loop:
        await asyncio.to_thread(api.polled)
        api.submit("job", 1)
        assert await asyncio.to_thread(api.taken, "job", PATIENCE_SECONDS)
        loop.end()
    await until(lambda: api.queued == 1)
    assert api.deliveries["job"].bodies == []
