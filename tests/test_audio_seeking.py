"""The timestamp of a sample in the middle of a recording, from those of frames around it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_worker.audio.ffmpeg_log import Mark
from parakeet_worker.audio.seeking import FROM_START, SeekPoint, before, steady, timestamp_of

RATE = 44100
SECOND = 400
"""Whose first sample is looked for."""


def marks(first: int, count: int, size: int, error_seconds: float, counted_from: int) -> list[Mark]:
    """Frames of one size, with timestamps that are all wrong by so much."""
    places = [first + number * size for number in range(count)]
    return [Mark(at - counted_from, at / RATE + error_seconds, RATE) for at in places]


def head(size: int, error_seconds: float) -> list[Mark]:
    return marks(0, 200, size, error_seconds, 0)[::40]


def frames(size: int, error_seconds: float, skipped: int = 0) -> list[Mark]:
    """From shortly before the second to shortly after it."""
    first = (SECOND - 2) * RATE // size * size + skipped
    return marks(first, 4 * RATE // size, size, error_seconds, first)


def located(head: Sequence[Mark], frames: Sequence[Mark], **chosen: object) -> float | None:
    options = {"rounded": True, "codec": "aac", **chosen}
    return timestamp_of(SECOND * RATE, head, frames, **options)  # type: ignore[arg-type]


errors = st.floats(min_value=-0.0005, max_value=0.0005)


@given(st.sampled_from([576, 960, 1024, 1152, 4096]), errors, errors)
def test_rounded_timestamps_are_corrected_by_counting_whole_frames(
    size: int, of_head: float, of_frames: float
) -> None:
    seconds = located(head(size, of_head), frames(size, of_frames))
    # What ffmpeg cuts there is the sample, for it sees the same error.
    assert seconds == pytest.approx(SECOND + of_frames, abs=0.1 / RATE)


def test_the_first_frame_may_be_cut() -> None:
    first, *rest = frames(1024, 0.0)
    cut = [Mark(0, first.seconds, RATE)]
    cut += [Mark(mark.samples - 312, mark.seconds, RATE) for mark in rest]
    assert located(head(1024, 0.0), cut) == pytest.approx(SECOND, abs=0.1 / RATE)


def test_the_mark_in_another_unit_at_the_end_of_a_file_is_no_frame() -> None:
    """Of ffmpeg before version 7; whether it is in the log depends on how far ffmpeg was ahead."""
    exact = frames(1024, 0.0)
    last = exact[-1]
    ended = [*exact, Mark(last.samples + 312, 8.33, RATE)]
    assert located(head(1024, 0.0), ended) is None
    kept = before(ended, SECOND + 100)
    assert kept == exact
    assert located(head(1024, 0.0), kept) == pytest.approx(SECOND, abs=0.1 / RATE)


def test_frames_after_the_time_that_was_sought_are_not_used() -> None:
    exact = frames(1024, 0.0)
    kept = before(exact, SECOND + 1)
    assert kept == exact[: len(kept)]
    assert kept[-2].seconds <= SECOND + 1 < kept[-1].seconds


def test_frames_that_are_not_where_whole_frames_can_be_give_no_timestamp() -> None:
    assert located(head(1024, 0.0), frames(1024, 0.0, skipped=512)) is None
    assert located(head(1024, 0.0), frames(1024, 0.002)) is None


def test_exact_timestamps_need_no_whole_frames() -> None:
    seconds = located(head(1024, 0.0), frames(1024, 0.0, skipped=512), rounded=False)
    assert seconds == pytest.approx(SECOND, abs=0.1 / RATE)


def test_frames_shorter_than_the_rounding_of_timestamps_give_none() -> None:
    assert located(head(32, 0.0), frames(32, 0.0)) is None
    assert located(head(64, 0.0), frames(64, 0.0)) is None
    assert located(head(64, 0.0), frames(64, 0.0), codec="vorbis") is not None


def test_a_frame_with_a_shifted_timestamp_is_not_cut_by_it() -> None:
    shifted = frames(1024, 0.0)
    usual = located(head(1024, 0.0), shifted)
    at = next(place for place, mark in enumerate(shifted) if mark.seconds > SECOND)
    shifted[at + 10] = Mark(shifted[at + 10].samples, shifted[at + 10].seconds + 0.01, RATE)
    assert located(head(1024, 0.0), shifted) == usual
    shifted[at] = Mark(shifted[at].samples, shifted[at].seconds + 0.01, RATE)
    assert located(head(1024, 0.0), shifted) is None


def test_a_clock_that_jumps_or_a_rate_that_changes_is_not_steady() -> None:
    even = head(1024, 0.0)
    assert steady(even)
    assert not steady(even[:1])
    assert not steady([*even, Mark(even[-1].samples + RATE, even[-1].seconds + 1, 48000)])
    assert not steady([*even, Mark(even[-1].samples + RATE, even[-1].seconds + 1.1, RATE)])


def test_frames_that_do_not_reach_the_sample_give_no_timestamp() -> None:
    every = frames(1024, 0.0)
    assert located(head(1024, 0.0), every[:20]) is None
    assert located(head(1024, 0.0), every[-20:]) is None
    assert located(head(1024, 0.0), []) is None


def test_decoding_from_the_start_has_no_options() -> None:
    assert FROM_START.input_options == ()
    assert FROM_START.filters == ()
    assert SeekPoint(7, file_seconds=7).input_options == ("-ss", "7.000000")
    exact = SeekPoint(7, 5.5, first_seconds=7.25)
    assert exact.input_options == ("-noaccurate_seek", "-ss", "5.500000")
    assert exact.filters == ("atrim=start=7.250000",)
