"""Delivery to a faulty job API: results arrive or their rejection is reported."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from job_api import Fault, JobApi
from parakeet_worker.entrypoints.queue.delivery import Delivery

JOB = "job"
Delivering = Callable[..., AbstractAsyncContextManager[tuple[Delivery, JobApi]]]


@pytest.fixture
def delivering() -> Delivering:
    """A `Delivery` to a job API that has assigned one job."""

    @asynccontextmanager
    async def open_delivery(
        timeout_seconds: float = 30.0, **options: Any
    ) -> AsyncIterator[tuple[Delivery, JobApi]]:
        with JobApi(**options) as api:
            api.submit(JOB, None)
            async with aiohttp.ClientSession() as session:
                yield Delivery(api.sdk(), session, timeout_seconds), api

    return open_delivery


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(
    "faults",
    [
        [500],
        [502, 503, 504],
        [429],
        [408],
        [425],
        [302],
        [304],
        ["drop"],
        ["drop", "drop", "drop", "drop"],
        [500, "drop", 429, 408],
    ],
)
async def test_an_answer_outlives_what_passes(delivering: Delivering, faults: list[Fault]) -> None:
    async with delivering() as (delivery, api):
        api.faults["job-done"].extend(faults)
        assert await delivery.done(JOB, {"output": {"text": "ä"}}, streamed=False)
        assert api.deliveries[JOB].bodies == [{"output": {"text": "ä"}}]
        assert api.requests["job-done"] == len(faults) + 1


@pytest.mark.usefixtures("without_waits")
async def test_an_answer_whose_receipt_is_lost_is_sent_again(delivering: Delivering) -> None:
    async with delivering() as (delivery, api):
        api.faults["job-done"].append("lose")
        assert await delivery.done(JOB, {"output": 1}, streamed=False)
        assert api.deliveries[JOB].bodies == [{"output": 1}, {"output": 1}]


async def test_between_two_attempts_there_is_a_pause(delivering: Delivering) -> None:
    async with delivering(timeout_seconds=1.5) as (delivery, api):
        api.faults["job-done"].extend([500] * 1000)
        assert not await delivery.done(JOB, {"output": 1}, streamed=False)
        assert 2 <= api.requests["job-done"] <= 10


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_delivery_url_has_the_stream_flag(
    delivering: Delivering, *, streamed: bool
) -> None:
    async with delivering() as (delivery, api):
        await delivery.done(JOB, {"output": 1}, streamed=streamed)
        assert api.deliveries[JOB].streamed == [streamed]


@pytest.mark.parametrize("status", [401, 404, 400, 413])
async def test_a_small_answer_that_is_refused_is_not_sent_again(
    delivering: Delivering, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with delivering() as (delivery, api):
        api.faults["job-done"].append(status)
        assert not await delivery.done(JOB, {"output": 1}, streamed=False)
        assert api.requests["job-done"] == 1
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"the platform answered {status}" in line.getMessage()
    assert line.__dict__["job"] == JOB


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_answer_that_is_refused_becomes_an_error_that_is_delivered(
    delivering: Delivering, status: int, *, streamed: bool
) -> None:
    async with delivering(max_result_bytes=50_000, too_large_status=status) as (delivery, api):
        # The first attempt at the error fails as well.
        api.faults["job-done"].extend(["drop", 500])
        body = {"output": {"text": "word " * 20_000}}
        assert await delivery.done(JOB, body, streamed=streamed)
        (reported,) = api.deliveries[JOB].bodies
        assert api.deliveries[JOB].streamed == [streamed]
    assert reported["error"].startswith("result_refused: ")
    assert "output_url" in reported["error"]
    size = len(json.dumps(body))
    assert reported["output"] == {"code": "result_refused", "bytes": size, "status": status}


async def test_an_answer_of_many_megabytes_arrives_whole(delivering: Delivering) -> None:
    text = "Ärger " * 2_500_000
    async with delivering() as (delivery, api):
        assert await delivery.done(JOB, {"output": {"text": text}}, streamed=False)
        assert api.deliveries[JOB].bodies == [{"output": {"text": text}}]


async def test_delivery_to_an_unreachable_platform_ends(
    delivering: Delivering, caplog: pytest.LogCaptureFixture
) -> None:
    async with delivering() as (_, api):
        parts = api.sdk()
    async with aiohttp.ClientSession() as session:
        delivery = Delivery(parts, session, 0.5)
        assert not await delivery.done(JOB, {"output": 1}, streamed=False)
    assert "answer not delivered" in caplog.text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_what_json_has_no_word_for_is_never_sent(
    delivering: Delivering, number: float
) -> None:
    async with delivering() as (delivery, api):
        with pytest.raises(ValueError, match="not JSON compliant"):
            await delivery.done(JOB, {"output": number}, streamed=False)
        assert api.requests["job-done"] == 0


@pytest.mark.usefixtures("without_waits")
async def test_segments_arrive_in_order_after_any_fault(
    delivering: Delivering,
) -> None:
    async with delivering() as (delivery, api):
        api.faults["job-stream"].extend([500, "drop", 429])
        sent = [await delivery.segment(JOB, {"segment": {"id": number}}) for number in range(5)]
        assert sent == [True] * 5
        assert api.deliveries[JOB].chunks == [{"segment": {"id": number}} for number in range(5)]


async def test_a_rejected_segment_is_logged_and_not_raised(
    delivering: Delivering, caplog: pytest.LogCaptureFixture
) -> None:
    async with delivering() as (delivery, api):
        api.faults["job-stream"].append(404)
        assert not await delivery.segment(JOB, {"segment": {}})
    assert "segment not delivered: the platform answered 404" in caplog.text


@pytest.mark.parametrize("fault", [500, 404, "drop"])
async def test_progress_is_tried_once_and_raises_nothing(
    delivering: Delivering, fault: Fault
) -> None:
    async with delivering() as (delivery, api):
        api.faults["progress"].append(fault)
        await delivery.progress(JOB, {"audio_seconds": 1.0})
        assert api.requests["progress"] == 1
        await delivery.progress(JOB, {"audio_seconds": 2.0})
        assert api.deliveries[JOB].progress == [{"audio_seconds": 2.0}]
        assert api.deliveries[JOB].bodies == []
