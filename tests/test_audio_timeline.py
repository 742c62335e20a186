"""Samples are placed on the recording's clock: holes, jitter, resets, wraparounds, late starts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from odd_recordings import ffmpeg as run_ffmpeg
from parakeet_worker.audio.decoding import Decoding
from parakeet_worker.audio.ffmpeg_log import DecodeError, Event, Mark
from parakeet_worker.audio.timeline import Clock, Timeline
from parakeet_worker.engine.base import SAMPLE_RATE, Samples
from parakeet_worker.notices import Notice
from recordings import encode, tone

RATE = 48_000
FRAME_SECONDS = 0.02
LONGEST_SECONDS = 36_000.0


def mark(at_seconds: float, clock_seconds: float) -> Mark:
    return Mark(round(at_seconds * RATE), clock_seconds, RATE)


def steady(until_seconds: int, *, ahead_seconds: float = 0.0) -> list[Event]:
    """Marks of a clock that agrees with the samples, once a second."""
    return [mark(at, at + ahead_seconds) for at in range(until_seconds)]


def jump(at_seconds: float, ahead_seconds: float) -> list[Event]:
    """The two marks from which on the clock is so far ahead."""
    later = at_seconds + FRAME_SECONDS
    return [mark(at_seconds, at_seconds + ahead_seconds), mark(later, later + ahead_seconds)]


def arranged(
    events: Sequence[Event],
    seconds: float,
    *,
    start_seconds: float | None = 0.0,
    longest_seconds: float = LONGEST_SECONDS,
    declared_seconds: float | None = None,
    block_samples: int = SAMPLE_RATE,
) -> tuple[Samples, list[Notice]]:
    """Samples that count up from 1, in blocks, each after the marks of its own part."""
    timeline = Timeline(longest_seconds, declared_seconds)
    places = list(Clock().places(events, start_seconds))
    samples = np.arange(1, round(seconds * SAMPLE_RATE) + 1, dtype=np.float32)
    result: list[Samples] = []
    for first in range(0, len(samples), block_samples):
        end = first + block_samples
        timeline.add(place for place in places if first <= place.at < end)
        result.extend(timeline.arranged(samples[first:end]))
    result.extend(timeline.rest())
    whole = np.concatenate(result)
    # Whatever is inserted: every sample comes once, in its order.
    assert np.array_equal(whole[whole > 0], samples)
    return whole, timeline.notices()


def silences(samples: Samples) -> list[tuple[float, float]]:
    """Where silence begins and ends, in seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], samples == 0, [False])).astype(int)))
    return [(first / SAMPLE_RATE, last / SAMPLE_RATE) for first, last in edges.reshape(-1, 2)]


def test_a_clock_that_agrees_changes_nothing() -> None:
    samples, notices = arranged(steady(6), 6.0)
    assert (len(samples), silences(samples), notices) == (6 * SAMPLE_RATE, [], [])


@pytest.mark.parametrize("block_samples", [123, 4096, SAMPLE_RATE, 10 * SAMPLE_RATE])
def test_a_hole_becomes_silence_of_its_length_however_samples_are_divided(block_samples) -> None:
    events = [*steady(3), *jump(2.5, 5.0), mark(4, 9), mark(5, 10)]
    samples, (notice,) = arranged(events, 6.0, block_samples=block_samples)
    assert silences(samples) == [(2.5, 7.5)]
    assert (notice.code, notice.start_seconds, notice.end_seconds) == ("audio_gap", 2.5, 7.5)
    assert notice.damage


def test_several_holes_add_up() -> None:
    events = [*steady(2), *jump(1.5, 2.0), mark(3, 5), *jump(4.0, 7.0), mark(6, 13)]
    samples, notices = arranged(events, 7.0)
    assert silences(samples) == [(1.5, 3.5), (6.0, 11.0)]
    assert [notice.end_seconds for notice in notices] == [3.5, 11.0]


def test_jitter_of_timestamps_is_no_gap() -> None:
    offsets = [0.0, 0.025, 0.045, 0.04, 0.01, -0.04, -0.02]
    events = [mark(at, at + offset) for at, offset in enumerate(offsets)]
    samples, notices = arranged(events, 7.0)
    assert (len(samples), notices) == (7 * SAMPLE_RATE, [])


def test_lost_packets_add_up_until_they_are_noticed() -> None:
    events = [mark(at, 1.02 * at) for at in range(60)]
    samples, notices = arranged(events, 60.0)
    assert len(samples) / SAMPLE_RATE == pytest.approx(1.02 * 60, abs=0.08)
    assert {notice.code for notice in notices} == {"audio_gap"}
    # At no time is the silence behind by more than the threshold and a mark's distance.
    for at, moment in enumerate(np.flatnonzero(samples % SAMPLE_RATE == 1)[:60]):
        assert moment / SAMPLE_RATE == pytest.approx(1.02 * at, abs=0.08)


def test_a_single_wrong_timestamp_is_ignored() -> None:
    wrong = [mark(2.5, 102.5), mark(2.5 + FRAME_SECONDS, 2.5 + FRAME_SECONDS)]
    samples, notices = arranged([*steady(3), *wrong, mark(4, 4), mark(5, 5)], 6.0)
    assert (len(samples), notices) == (6 * SAMPLE_RATE, [])


@pytest.mark.parametrize("back_seconds", [50.0, 2**33 / 90_000])
def test_a_clock_that_is_set_back_counts_on_from_there(back_seconds) -> None:
    events = [*steady(3), *jump(2.5, -back_seconds), mark(4, 4 - back_seconds)]
    later = [*jump(5.0, 3 - back_seconds), mark(7, 10 - back_seconds)]
    samples, notices = arranged([*events, *later], 8.0)
    assert silences(samples) == [(5.0, 8.0)]
    assert [notice.code for notice in notices] == ["audio_gap"]


@pytest.mark.parametrize("start_seconds", [0.0, 1.4, 100.0, 4000.0, 95_440.0])
@pytest.mark.parametrize("known", [True, False])
def test_times_count_from_the_start_of_the_container(start_seconds, known) -> None:
    events = [*steady(3, ahead_seconds=start_seconds), *jump(2.5, start_seconds + 1.0)]
    samples, _ = arranged(events, 4.0, start_seconds=start_seconds if known else None)
    assert silences(samples) == [(2.5, 3.5)]


def test_audio_that_begins_after_the_picture_is_no_warning() -> None:
    samples, notices = arranged(steady(3, ahead_seconds=4.9), 3.0)
    assert (silences(samples), notices) == ([(0.0, 4.9)], [])


def test_filters_that_are_set_up_anew_lose_nothing() -> None:
    """The samples are counted from 0 again, as at a change of the sample rate."""
    other = 44_100
    again = [Mark(0, 2.52, other), Mark(other, 3.52, other), Mark(2 * other, 7.52, other)]
    again += [Mark(2 * other + 1024, 7.52 + 1024 / other, other)]
    samples, notices = arranged([*steady(3), mark(2.5, 2.5), *again], 7.0)
    ((begin, end),) = silences(samples)
    assert (begin, end) == (pytest.approx(4.52, abs=0.01), pytest.approx(7.52, abs=0.01))
    assert [notice.code for notice in notices] == ["audio_gap"]


def test_no_gap_leads_beyond_what_may_be_decoded() -> None:
    events = [*steady(3), *jump(2.5, 50.0), mark(4, 54)]
    samples, (notice,) = arranged(events, 5.0, longest_seconds=40.0)
    assert silences(samples) == []
    assert (notice.code, notice.start_seconds) == ("clock_reset", 2.5)


@pytest.mark.parametrize(("declared_seconds", "kept"), [(None, True), (705.0, True), (5.0, False)])
def test_a_long_gap_has_to_fit_the_declared_duration(declared_seconds, kept) -> None:
    events = [*steady(3), *jump(2.5, 700.0), mark(4, 704)]
    samples, notices = arranged(events, 5.0, declared_seconds=declared_seconds)
    assert silences(samples) == ([(2.5, 702.5)] if kept else [])
    assert [notice.code for notice in notices] == ["audio_gap" if kept else "clock_reset"]


def test_a_jump_that_only_the_end_of_the_file_has_means_nothing() -> None:
    """ffmpeg 5 evaluates its filters again after the last frame."""
    samples, notices = arranged([*steady(6), mark(6.0 - 0.001, 500.0)], 6.0)
    assert (silences(samples), notices) == ([], [])


def test_timestamps_that_are_no_numbers_are_ignored() -> None:
    events = [*steady(3), mark(2.5, float("nan")), mark(2.6, float("inf")), mark(3, 3)]
    samples, notices = arranged(events, 4.0)
    assert (silences(samples), notices) == ([], [])


def test_what_could_not_be_decoded_is_named_unless_a_gap_names_it() -> None:
    broken = DecodeError("Error while decoding")
    events = [*steady(2), broken, *steady(9)[2:], broken, *jump(8.5, 2.0), mark(10, 12)]
    _, notices = arranged(events, 11.0)
    result = [(notice.code, notice.start_seconds) for notice in notices]
    assert result == [("audio_damaged", 1.0), ("audio_gap", 8.5)]


def test_marks_before_the_place_that_is_entered_do_not_count() -> None:
    timeline = Timeline(LONGEST_SECONDS, None)
    timeline.begin(100 * SAMPLE_RATE)
    marks = [mark(0, 103), mark(1, 104), mark(2, 100), mark(2.5, 100.5)]
    timeline.add(Clock(98 * SAMPLE_RATE).places(marks, 0.0))
    result = [*timeline.arranged(np.ones(SAMPLE_RATE, dtype=np.float32)), *timeline.rest()]
    assert (sum(map(len, result)), timeline.notices()) == (SAMPLE_RATE, [])


# with both ffmpegs


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("tone") / "tone.wav", samples=tone(440, 8.0))


def decoded(path: Path, ffmpeg: Path) -> tuple[float, tuple[Notice, ...]]:
    run = Decoding(path, ffmpeg=ffmpeg, max_seconds=3600.0, timeout_seconds=60.0)
    return sum(map(len, run.blocks())) / SAMPLE_RATE, run.warnings


@pytest.mark.parametrize("start_seconds", [100.0, 4000.0])
@pytest.mark.parametrize("name", ["live.ts", "live.webm", "live.mka"])
def test_a_live_stream_counts_from_its_own_start(
    name, start_seconds, spoken, tmp_path, ffmpeg
) -> None:
    path, codec = tmp_path / name, "aac" if name.endswith("ts") else "libopus"
    run_ffmpeg("-i", spoken, "-c:a", codec, "-output_ts_offset", start_seconds, path)
    seconds, warnings = decoded(path, ffmpeg)
    assert (seconds, warnings) == (pytest.approx(8.0, abs=0.1), ())


def test_the_clock_of_a_transport_stream_wraps_around(spoken, tmp_path, ffmpeg) -> None:
    """Its timestamps have 33 bits of 90 kHz, which is 26.5 hours."""
    path = tmp_path / "wrapped.ts"
    run_ffmpeg("-i", spoken, "-c:a", "aac", "-output_ts_offset", 2**33 / 90_000 - 4.0, path)
    seconds, warnings = decoded(path, ffmpeg)
    assert (seconds, warnings) == (pytest.approx(8.0, abs=0.1), ())


def test_chained_ogg_is_one_recording_after_the_other(spoken, tmp_path, ffmpeg) -> None:
    one = tmp_path / "one.ogg"
    run_ffmpeg("-i", spoken, "-c:a", "libopus", one)
    chained = tmp_path / "chained.ogg"
    chained.write_bytes(one.read_bytes() * 3)
    seconds, warnings = decoded(chained, ffmpeg)
    assert (seconds, warnings) == (pytest.approx(24.0, abs=0.2), ())
