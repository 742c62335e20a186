import asyncio
import json
import time

import pytest

from parakeet_worker.stopwatch import Stopwatch


async def answer(value: int = 7) -> int:
    return value


async def test_timed_returns_the_result_of_the_stage():
    assert await Stopwatch().timed("fetch", answer(3)) == 3


async def test_stages_are_in_order_of_first_use_with_the_total_last():
    watch = Stopwatch()
    for stage in ("fetch", "decode", "recognize", "decode", "fetch"):
        await watch.timed(stage, answer())
    assert list(watch.seconds) == ["fetch", "decode", "recognize", "total"]


async def test_the_seconds_of_a_stage_accumulate():
    watch = Stopwatch()
    began = time.monotonic()
    for _ in range(3):
        await watch.timed("recognize", asyncio.sleep(0.02))
    passed = time.monotonic() - began
    assert 3 * 0.02 * 0.9 < watch.seconds["recognize"] <= round(passed, 4)
    assert watch.seconds["recognize"] <= watch.seconds["total"]


async def test_time_between_stages_counts_for_the_total_only():
    watch = Stopwatch()
    await watch.timed("fetch", answer())
    before = watch.seconds
    await asyncio.sleep(0.02)
    after = watch.seconds
    assert after["fetch"] == before["fetch"]
    assert after["total"] > before["total"]


async def test_a_failing_stage_is_counted_and_its_error_propagates():
    async def fail() -> None:
        raise LookupError("missing")

    watch = Stopwatch()
    with pytest.raises(LookupError, match="missing"):
        await watch.timed("fetch", fail())
    assert list(watch.seconds) == ["fetch", "total"]


async def test_a_stage_that_is_cancelled_is_counted():
    watch = Stopwatch()
    task = asyncio.create_task(watch.timed("recognize", asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(watch.seconds) == ["recognize", "total"]


async def test_futures_can_be_timed():
    future = asyncio.get_running_loop().create_future()
    future.set_result(1)
    assert await Stopwatch().timed("recognize", future) == 1


def test_the_seconds_are_json_and_a_copy():
    watch = Stopwatch()
    watch.seconds["total"] = -1.0
    assert json.loads(json.dumps(watch.seconds))["total"] >= 0
