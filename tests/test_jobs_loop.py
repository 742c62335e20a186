"""The job loop against a job API that holds polls open, fails, repeats itself and is told to stop.

What is answered and how is no matter here: the jobs' answers are functions of the tests.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from job_api import Fault, JobApi
from parakeet_worker.jobs.delivery import Delivery
from parakeet_worker.jobs.loop import Answer, Job, JobLoop

PATIENCE_SECONDS = 30.0
ROUNDS = 20


@pytest.fixture
def api() -> Iterator[JobApi]:
    """Polls are held open for longer than any test lasts."""
    with JobApi(hold_seconds=120) as opened:
        yield opened


async def echo(job: Job, delivery: Delivery) -> None:
    """Answers at once, with the question."""
    await delivery.done(job["id"], {"output": job.get("input")}, streamed=False)


@asynccontextmanager
async def looping(api: JobApi, answer: Answer = echo, slots: int = 4) -> AsyncIterator[JobLoop]:
    """A loop that takes jobs; at the end it is told to end, and does."""
    loop = JobLoop(api.sdk(), answer, slots=slots, delivery_seconds=20.0)
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
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.cleared_up: list[str] = []

    async def __call__(self, job: Job, delivery: Delivery) -> None:
        self.begun.append(job["id"])
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
        await until(lambda: len(gate.begun) == 3)
        await asyncio.sleep(0.3)
        assert api.queued == 7
        assert gate.begun == ["0", "1", "2"]
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


async def test_the_heartbeat_is_told_of_the_jobs_in_progress(api: JobApi) -> None:
    gate = Gate()
    parts = api.sdk()
    loop = JobLoop(parts, gate, slots=4, delivery_seconds=20.0)
    api.submit("a", None)
    api.submit("b", None)
    running = asyncio.create_task(loop.run())
    await until(lambda: len(gate.begun) == 2)
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


async def test_a_platform_that_only_fails_is_not_asked_without_end() -> None:
    async def asked(fault: Fault, route: str) -> int:
        with JobApi(hold_seconds=120) as api:
            api.faults[route].extend([fault] * 1000)
            async with looping(api):
                await asyncio.sleep(2.5)
            return api.requests[route]

    faults: tuple[Fault, ...] = (500, 429, 400, 204, "garbage", "drop")
    takes = await asyncio.gather(*(asked(fault, "job-take") for fault in faults))
    stops = await asyncio.gather(*(asked(fault, "job-stop") for fault in (500, 429, 204, "drop")))
    assert min(takes + stops) >= 1
    # aiohttp itself asks once more where a kept connection turns out to be dropped.
    assert max(takes + stops) <= 10


async def test_a_job_that_is_handed_out_twice_is_answered_once(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    api.submit("job", None)
    async with looping(api, gate):
        await until(lambda: gate.begun == ["job"])
        delivery = api.deliveries["job"]
        api.submit("job", None)
        await until(lambda: api.queued == 0)
        gate.open.set()
        await until(lambda: bool(delivery.bodies or api.deliveries["job"].bodies))
    assert gate.begun == ["job"]
    assert "handed out twice" in caplog.text


async def test_what_comes_without_an_id_stops_nobody_else(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    api.submit(7, None)  # type: ignore[arg-type]
    api.submit("job", 1)
    async with looping(api):
        await until(answered(api, "job"))
    assert "1 jobs came without an id" in caplog.text


async def test_a_bug_in_one_job_is_logged_and_stops_no_other(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(job: Job, delivery: Delivery) -> None:
        if job["id"] == "bad":
            raise KeyError("nobody thought of that")
        await echo(job, delivery)

    api.submit("bad", None)
    api.submit("good", 1)
    async with looping(api, answer):
        await until(answered(api, "good"))
        api.submit("after", 2)
        await until(answered(api, "after"))
    (line,) = [record for record in caplog.records if "ended in a bug" in record.message]
    assert line.__dict__["job"] == "bad"


# stops


async def test_a_cancelled_job_is_given_up_and_its_slot_is_free(api: JobApi) -> None:
    gate = Gate()
    api.submit("job", None)
    api.submit("next", None)
    async with looping(api, gate, slots=1):
        await until(lambda: gate.begun == ["job"])
        api.stop("job")
        await until(lambda: gate.begun == ["job", "next"])
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
        await until(lambda: gate.begun == ["job"])
        api.stop("job")
        await until(lambda: gate.cancelled == ["job"])
        before = api.requests["job-stop"]
        api.stop("job")
        await until(lambda: api.requests["job-stop"] > before)
        await until(lambda: api.stops_told)
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
        await until(lambda: api.stops_told and api.requests["job-stop"] > 1)
        api.submit("late", None)
        api.submit("other", None)
        await until(answered(api, "other"))
    assert gate.begun == ["other"]
    assert api.deliveries["late"].order == []
    assert "cancelled by its caller before it came" in caplog.text


async def test_a_job_that_comes_again_after_its_cancellation_is_answered(api: JobApi) -> None:
    gate = Gate()
    gate.open.set()
    async with looping(api, gate):
        await asyncio.to_thread(api.polled)
        api.stop("job")
        await until(lambda: api.stops_told and api.requests["job-stop"] > 1)
        api.submit("job", 1)
        await until(lambda: api.queued == 0)
        # The platform hands out a job again under its old name.
        api.submit("job", 2)
        await until(answered(api, "job"))
    assert gate.begun == ["job"]


async def test_stops_arrive_after_stop_polls_have_failed(api: JobApi) -> None:
    gate = Gate()
    api.faults["job-stop"].extend(["drop", "drop", 204])
    api.submit("job", None)
    async with looping(api, gate):
        await until(lambda: gate.begun == ["job"])
        api.stop("job")
        await until(lambda: gate.cleared_up == ["job"])


async def test_a_running_job_can_be_cancelled_when_no_more_are_taken(api: JobApi) -> None:
    gate = Gate()
    api.submit("job", None)
    async with looping(api, gate) as loop:
        await until(lambda: gate.begun == ["job"])
        loop.end()
        await asyncio.sleep(0.5)
        api.stop("job")
    assert gate.cleared_up == ["job"]


# the end


async def test_the_end_comes_inside_an_open_poll_and_what_is_submitted_then_stays_queued(
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
        await until(lambda: len(gate.begun) == 3)
        await asyncio.to_thread(api.polled)
        loop.end()
        api.submit("late", None)
        await asyncio.sleep(1)
        gate.open.set()
    for name in names:
        assert api.deliveries[name].bodies == [{"output": name}]
    # It may have been on its way, and is answered then.
    assert len(api.deliveries["late"].bodies) == 1 - api.queued


async def test_a_job_that_is_on_its_way_at_the_end_is_waited_for_and_answered(api: JobApi) -> None:
    api.on_the_wire_seconds = 0.1
    async with looping(api) as loop:
        await asyncio.to_thread(api.polled)
        api.submit("job", 1)
        assert await asyncio.to_thread(api.taken, "job", PATIENCE_SECONDS)
        loop.end()
    assert api.deliveries["job"].bodies == [{"output": 1}]


async def test_whoever_waits_for_idleness_is_called_when_the_last_job_has_ended(
    api: JobApi,
) -> None:
    gate, told = Gate(), threading.Event()
    loop = JobLoop(api.sdk(), gate, slots=4, delivery_seconds=20.0, when_idle=told.set)
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(loop.run())
        for job in ("first", "second"):
            api.submit(job, None)
        await until(lambda: len(gate.begun) == 2)
        assert not told.is_set()
        gate.open.set()
        await until(told.is_set)
        await until(answered(api, "first", "second"))
        loop.end()


async def test_an_end_before_the_beginning_takes_nothing(api: JobApi) -> None:
    api.submit("job", None)
    loop = JobLoop(api.sdk(), echo, slots=1, delivery_seconds=1.0)
    loop.end()
    await loop.run()
    assert api.queued == 1
    assert api.requests["job-take"] == 0


async def test_a_job_that_comes_at_the_moment_of_the_end_is_answered_or_stays_queued(
    api: JobApi,
) -> None:
    chance = random.Random(1)  # noqa: S311  # the same every time
    became: Counter[str] = Counter()
    for number in range(ROUNDS):
        name = f"job-{number}"
        async with looping(api, slots=chance.choice((1, 4))) as loop:
            await asyncio.to_thread(api.polled)
            moments = [(chance.uniform(0, 0.1), loop.end)]
            moments.append((chance.uniform(0, 0.4), lambda name=name: api.submit(name, None)))
            clock = 0.0
            for moment, act in sorted(moments, key=lambda entry: entry[0]):
                await asyncio.sleep(moment - clock)
                clock = moment
                act()
            await asyncio.sleep(0.05)
        queued = api.queued
        if queued:
            api.withdraw(name)
        assert len(api.deliveries[name].bodies) + queued == 1, name
        became["queued" if queued else "answered"] += 1
    assert min(became["queued"], became["answered"]) > 0, became
