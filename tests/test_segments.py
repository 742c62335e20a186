from collections.abc import AsyncIterator, Iterable

import numpy as np
import pytest

from parakeet_worker.audio import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.segments import Segment, split

FRAME = 1280


async def arriving(stretches: Iterable[Samples]) -> AsyncIterator[Samples]:
    for stretch in stretches:
        yield stretch


async def cut(
    recording: Samples, *, max_seconds: float, at: Iterable[int] = (), start_seconds: float = 0.0
) -> list[Segment]:
    """The segments of a recording that arrives in stretches divided `at` these samples."""
    stretches = arriving(np.split(recording, sorted(at)))
    found = split(stretches, max_seconds=max_seconds, start_seconds=start_seconds)
    return [segment async for segment in found]


def noise(seconds: float, seed: int = 0) -> Samples:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


@pytest.mark.parametrize("seed", range(24))
async def test_segments_tile_the_recording_whatever_its_length_and_however_it_arrives(seed):
    generator = np.random.default_rng(seed)
    max_seconds = float(generator.choice([2, 2.03, 5, 17.5, 30, 60]))
    length = int(generator.integers(1, 5 * round(max_seconds * SAMPLE_RATE)))
    start_seconds = float(generator.choice([0, 0.3, 1234.567]))
    recording = generator.normal(0, 0.1, length).astype(np.float32)
    at = generator.integers(0, length + 1, generator.integers(0, 200))

    pieces = await cut(recording, max_seconds=max_seconds, at=at, start_seconds=start_seconds)

    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), recording)
    begun = 0
    for piece in pieces:
        assert piece.start_seconds == pytest.approx(start_seconds + begun / SAMPLE_RATE, abs=1e-9)
        assert begun % FRAME == 0
        assert 0 < len(piece.samples) <= max_seconds * SAMPLE_RATE
        begun += len(piece.samples)
        assert piece.end_seconds == pytest.approx(start_seconds + begun / SAMPLE_RATE, abs=1e-9)
    assert begun == length


async def test_the_segments_do_not_depend_on_how_the_recording_arrives():
    recording = noise(70)
    at_once = await cut(recording, max_seconds=10)
    in_crumbs = await cut(recording, max_seconds=10, at=range(0, len(recording), 777))
    assert len(at_once) > 7
    assert [piece.start_seconds for piece in at_once] == [
        piece.start_seconds for piece in in_crumbs
    ]


@pytest.mark.parametrize("length", [1, FRAME, 10 * SAMPLE_RATE - 1, 10 * SAMPLE_RATE])
async def test_a_recording_that_fits_is_not_cut(length):
    recording = noise(10)[:length]
    (piece,) = await cut(recording, max_seconds=10)
    assert np.array_equal(piece.samples, recording)
    assert piece.start_seconds == 0.0


async def test_one_sample_more_than_the_limit_is_cut_once():
    recording = noise(11)[: 10 * SAMPLE_RATE + 1]
    assert len(await cut(recording, max_seconds=10)) == 2


@pytest.mark.parametrize("stretches", [[], [np.zeros(0, dtype=np.float32)] * 3])
async def test_nothing_gives_no_segment(stretches):
    assert [piece async for piece in split(arriving(stretches), max_seconds=10)] == []


@pytest.mark.parametrize("max_seconds", [20.0, 30.0])
@pytest.mark.parametrize("seed", range(12))
async def test_a_cut_falls_into_the_pause_of_the_last_eight_seconds(seed, max_seconds):
    generator = np.random.default_rng(seed)
    recording = noise(40, seed)
    pause = round(SAMPLE_RATE * generator.uniform(0.2, 0.6))
    latest = round(max_seconds * SAMPLE_RATE)
    begin = int(generator.integers(latest - 8 * SAMPLE_RATE, latest - pause))
    recording[begin : begin + pause] *= 0.01

    first, *others = await cut(recording, max_seconds=max_seconds)

    assert others
    assert begin <= len(first.samples) <= begin + pause


async def test_a_pause_before_the_last_eight_seconds_is_left_alone():
    recording = noise(40)
    recording[10 * SAMPLE_RATE : 12 * SAMPLE_RATE] = 0
    first, *_ = await cut(recording, max_seconds=30)
    assert first.seconds >= 22


async def test_a_short_limit_is_not_cut_before_its_half():
    recording = noise(20)
    recording[: round(0.9 * SAMPLE_RATE)] = 0
    pieces = await cut(recording, max_seconds=2)
    assert len(pieces) >= 10
    assert all(piece.seconds >= 1 for piece in pieces[:-1])


async def test_silence_is_tiled_like_everything_else():
    pieces = await cut(np.zeros(100 * SAMPLE_RATE, dtype=np.float32), max_seconds=30)
    assert sum(len(piece.samples) for piece in pieces) == 100 * SAMPLE_RATE
    assert len(pieces) >= 4


async def test_a_segment_is_yielded_before_the_recording_has_ended():
    async def endless() -> AsyncIterator[Samples]:
        while True:
            yield noise(1)

    pieces = split(endless(), max_seconds=5)
    assert (await anext(pieces)).seconds <= 5
    assert (await anext(pieces)).seconds <= 5
    await pieces.aclose()
