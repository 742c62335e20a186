import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker import threads
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.recognition.chunks import Chunk, Span, SpeechFrames, Splitter, split
from parakeet_worker.vad.backends import open_backend
from parakeet_worker.vad.base import (
    BLOCK_SAMPLES,
    FRAME_SAMPLES,
    FRAME_SECONDS,
    SPEECH_ENDS,
    Detector,
    Probabilities,
)
from parakeet_worker.vad.energy import EnergyDetector
from parakeet_worker.vad.silero_detector import SileroDetector
from recordings import decode
from speech import all_samples, named

SEEDS = st.integers(0, 2**32 - 1)

GRID = 1280
SURE = 0.1
EDGE_SECONDS = 0.2
LONG_PAUSE_FRAMES = 62

SPEECH, SILENCE = 0.9, 0.01


def noise(seconds: float, seed: int = 0) -> Samples:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def frames(*runs: tuple[float, float]) -> Probabilities:
    """So many seconds of a probability, one run after the other."""
    counts = [round(seconds / FRAME_SECONDS) for seconds, _ in runs]
    return np.repeat(np.array([each for _, each in runs], dtype=np.float32), counts)


def recorded(probabilities: Probabilities, lacking: int = 0) -> Samples:
    """A recording of as many frames; the last of them lacks some samples."""
    return noise(len(probabilities) * FRAME_SECONDS)[: len(probabilities) * FRAME_SAMPLES - lacking]


def cut(
    recording: Samples,
    probabilities: Probabilities,
    *,
    max_seconds: float = 30.0,
    drops_silence: bool = True,
    start_seconds: float = 0.0,
    arrivals: Sequence[int] = (),
    lag_frames: Sequence[int] = (),
) -> list[Chunk]:
    """The chunks of a recording that arrives in parts, up to the samples in `arrivals`.

    The probabilities lag behind by the frames in `lag_frames`.
    """
    splitter = Splitter(max_seconds, drops_silence=drops_silence, start_seconds=start_seconds)
    result: list[Chunk] = []
    come, messages = 0, 0
    for arrived, lag in zip(arrivals, lag_frames, strict=True):
        transcribed = max(messages, arrived // FRAME_SAMPLES - lag)
        splitter.add(recording[come:arrived], probabilities[messages:transcribed])
        come, messages = arrived, transcribed
        result.extend(splitter.cut())
    splitter.add(recording[come:], probabilities[messages:])
    result.extend(splitter.cut(ended=True))
    return result


def bounds(chunk: Chunk, start_seconds: float = 0.0) -> tuple[int, int]:
    """Its first sample and the one after its last, counted in the recording."""
    first = (chunk.start_seconds - start_seconds) * SAMPLE_RATE
    assert first == pytest.approx(round(first), abs=1e-3)
    return round(first), round(first) + len(chunk.samples)


def seconds(pieces: Iterable[Chunk]) -> list[tuple[float, float]]:
    return [(round(each.start_seconds, 3), round(each.end_seconds, 3)) for each in pieces]


def random_speech(generator: np.random.Generator, count: int) -> Probabilities:
    """Speech, doubt and silence in turns of all lengths."""
    runs: list[Probabilities] = []
    while sum(map(len, runs)) < count:
        low, high = [(0.5, 1.0), (0.1, 0.5), (0.0, 0.0999)][generator.choice(3, p=[0.5, 0.2, 0.3])]
        length = int(generator.choice([3, 10, 40, 150, 900], p=[0.35, 0.35, 0.15, 0.1, 0.05]))
        runs.append(generator.uniform(low, high, generator.integers(1, length + 1)))
    return np.concatenate(runs)[:count].astype(np.float32)


def random_arrival(generator: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """When how much of a recording comes, and how far behind its detector is."""
    at = np.sort(generator.integers(0, length + 1, generator.integers(0, 120)))
    return at.tolist(), generator.integers(0, generator.integers(1, 300), len(at)).tolist()


def same(one: Chunk, other: Chunk) -> bool:
    return (
        one.start_seconds == other.start_seconds
        and np.array_equal(one.samples, other.samples)
        and one.speech == other.speech
        and one.cut_in_speech == other.cut_in_speech
        and (one.overlap is None) == (other.overlap is None)
        and (one.overlap is None or other.overlap is None or same(one.overlap, other.overlap))
    )


# what holds for every recording


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_how_a_recording_arrives_changes_nothing(seed, drops_silence):
    generator = np.random.default_rng(seed)
    probabilities = random_speech(generator, int(generator.integers(1, 4000)))
    recording = recorded(probabilities, lacking=int(generator.integers(0, FRAME_SAMPLES)))
    max_seconds = float(generator.choice([2, 2.03, 5, 17.5, 30]))
    together = cut(recording, probabilities, max_seconds=max_seconds, drops_silence=drops_silence)
    for _ in range(3):
        arrivals, lag_frames = random_arrival(generator, len(recording))
        bit_by_bit = cut(
            recording,
            probabilities,
            max_seconds=max_seconds,
            drops_silence=drops_silence,
            arrivals=arrivals,
            lag_frames=lag_frames,
        )
        assert seconds(bit_by_bit) == seconds(together)
        assert all(same(one, other) for one, other in zip(bit_by_bit, together, strict=True))


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_chunks_tile_the_recording_on_the_grid_within_the_limit(seed, drops_silence):
    generator = np.random.default_rng(seed)
    probabilities = random_speech(generator, int(generator.integers(1, 4000)))
    recording = recorded(probabilities, lacking=int(generator.integers(0, FRAME_SAMPLES)))
    max_seconds = float(generator.choice([2, 2.03, 5, 17.5, 30, 60]))
    start_seconds = float(generator.choice([0, 0.3, 1234.567]))

    pieces = cut(
        recording,
        probabilities,
        max_seconds=max_seconds,
        drops_silence=drops_silence,
        start_seconds=start_seconds,
    )

    ended = 0
    for piece in pieces:
        begin, end = bounds(piece, start_seconds)
        assert begin % GRID == 0
        assert begin == ended if not drops_silence else begin >= ended
        assert 0 < end - begin <= max_seconds * SAMPLE_RATE
        assert np.array_equal(piece.samples, recording[begin:end])
        assert piece.end_seconds == pytest.approx(start_seconds + end / SAMPLE_RATE, abs=1e-9)
        ended = end
    assert drops_silence or ended == len(recording)


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_a_chunk_after_a_cut_in_speech_has_an_overlap_and_no_other(seed, drops_silence):
    generator = np.random.default_rng(seed)
    probabilities = np.maximum(random_speech(generator, 4000), generator.choice([0, 0.36]))
    recording = recorded(probabilities)
    max_seconds = float(generator.choice([2, 2.03, 5, 17.5, 30]))
    pieces = cut(recording, probabilities, max_seconds=max_seconds, drops_silence=drops_silence)
    assert pieces[0].overlap is None
    assert not pieces[-1].cut_in_speech
    for piece, following in pairwise(pieces):
        assert piece.cut_in_speech == (following.overlap is not None)
        if following.overlap is not None:
            (first, cut_seconds), (begin, end) = bounds(piece), bounds(following)
            over = bounds(following.overlap)
            assert cut_seconds == begin, "no sample is dropped at a cut"
            assert over[0] == max(first, cut_seconds - 62 * GRID), "up to 4.96 s before it"
            assert over[1] == min(end, cut_seconds + 62 * GRID), "and as much after it"
            assert np.array_equal(following.overlap.samples, recording[slice(*over)])
    assert any(piece.cut_in_speech for piece in pieces) or probabilities.min() < 0.36


# silence according to a trusted detector is dropped


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_all_possible_speech_is_in_a_chunk_with_its_surroundings(seed):
    generator = np.random.default_rng(seed)
    probabilities = random_speech(generator, int(generator.integers(1, 4000)))
    recording = recorded(probabilities, lacking=int(generator.integers(0, FRAME_SAMPLES)))
    pieces = cut(recording, probabilities, max_seconds=float(generator.choice([2, 2.03, 30])))
    kept = np.zeros(len(recording), dtype=bool)
    for piece in pieces:
        kept[slice(*bounds(piece))] = True
    edge = round(EDGE_SECONDS * SAMPLE_RATE)
    for frame in np.flatnonzero(probabilities >= SURE):
        begin, end = frame * FRAME_SAMPLES, (frame + 1) * FRAME_SAMPLES
        assert kept[begin:end].all()
    for frame in np.flatnonzero(probabilities >= SPEECH_ENDS):
        begin, end = frame * FRAME_SAMPLES - edge, (frame + 1) * FRAME_SAMPLES + edge
        assert kept[max(0, begin) : end].all()


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_no_chunk_is_silent_starts_with_silence_or_contains_a_long_pause(seed):
    generator = np.random.default_rng(seed)
    probabilities = random_speech(generator, int(generator.integers(500, 4000)))
    recording = recorded(probabilities)
    pieces = cut(recording, probabilities, max_seconds=float(generator.choice([2, 2.03, 5, 30])))
    assert pieces
    for piece in pieces:
        begin, end = bounds(piece)
        inside = probabilities[-(-begin // FRAME_SAMPLES) : end // FRAME_SAMPLES]
        silent = (inside < SURE).astype(int)
        turns = np.flatnonzero(np.diff(silent, prepend=0, append=0))
        runs = turns.reshape(-1, 2)
        assert all(after - first < LONG_PAUSE_FRAMES for first, after in runs)
        if piece.overlap is None:
            touched = probabilities[begin // FRAME_SAMPLES : -(-end // FRAME_SAMPLES)]
            assert (touched >= SURE).any()
            head = int(np.argmin(silent)) if len(silent) else 0
            assert head * FRAME_SECONDS <= 0.3


@pytest.mark.parametrize("runs", [[(0.032, SILENCE)], [(1, SILENCE)], [(200, 0.09)]])
def test_silence_has_no_segment(runs):
    probabilities = frames(*runs)
    assert cut(recorded(probabilities), probabilities) == []


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        # 0.2 s around speech, on whole encoder frames
        ([(4, SILENCE), (4, SPEECH), (4, SILENCE)], [(3.76, 8.24)]),
        # a pause of 2 s ends a segment, a shorter one does not
        ([(4, SPEECH), (4, SILENCE), (4, SPEECH)], [(0, 4.24), (7.76, 12)]),
        ([(4, SPEECH), (1.984, SILENCE), (4, SPEECH)], [(0, 4.24), (5.76, 9.984)]),
        ([(4, SPEECH), (1.952, SILENCE), (4, SPEECH)], [(0, 9.952)]),
        # what may be speech counts as speech
        ([(4, SPEECH), (4, 0.1), (4, SPEECH)], [(0, 12)]),
        # the silence at the end is shorter than 2 s
        ([(4, SPEECH), (1.6, SILENCE)], [(0, 5.6)]),
        ([(4, SPEECH), (3.2, SILENCE)], [(0, 4.24)]),
    ],
)
def test_segments_begin_and_end_where_speech_does(runs, expected):
    probabilities = frames(*runs)
    pieces = cut(recorded(probabilities), probabilities)
    assert seconds(pieces) == expected


def test_a_long_pause_that_begins_at_the_limit_ends_the_segment_there():
    probabilities = frames((29.6, SPEECH), (6, SILENCE), (2, SPEECH))
    first, second = cut(recorded(probabilities), probabilities)
    assert first.seconds == pytest.approx(29.6 + EDGE_SECONDS, abs=0.1)
    assert not first.cut_in_speech
    assert second.start_seconds == pytest.approx(35.6 - EDGE_SECONDS, abs=0.1)


def test_silence_after_a_cut_is_dropped_except_for_the_overlap():
    probabilities = frames((29.92, SPEECH), (20, SILENCE), (2, SPEECH))
    first, bridged, last = cut(recorded(probabilities), probabilities)
    assert first.cut_in_speech
    assert bridged.overlap is not None
    assert bridged.start_seconds == first.end_seconds
    assert bridged.seconds < 0.4
    assert last.overlap is None
    assert last.start_seconds == pytest.approx(49.92 - EDGE_SECONDS, abs=0.1)


def test_a_chunk_has_its_speech_spans_on_the_clock():
    probabilities = frames(
        (4, SILENCE), (1.6, SPEECH), (0.8, SILENCE), (3.2, SPEECH), (4, SILENCE), (0.064, SPEECH)
    )
    first, second = cut(recorded(probabilities), probabilities, start_seconds=100.0)
    assert [(span.start_seconds, span.end_seconds) for span in first.speech] == [
        (pytest.approx(104.0), pytest.approx(105.6)),
        (pytest.approx(106.4), pytest.approx(109.6)),
    ]
    assert second.speech == (), "too short for a word, but decoded"


def test_a_span_of_speech_ends_with_the_segment():
    probabilities = frames((40, SPEECH))
    recording = recorded(probabilities)[:-100]
    pieces = cut(recording, probabilities)
    assert [piece.speech for piece in pieces] == [
        (Span(piece.start_seconds, piece.end_seconds),) for piece in pieces
    ]


def test_chunks_of_an_untrusted_detector_have_no_speech_spans():
    probabilities = frames((4, SILENCE), (2, SPEECH))
    (piece,) = cut(recorded(probabilities), probabilities, drops_silence=False)
    assert piece.speech == ()


# where a long segment is cut


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
@pytest.mark.parametrize("max_seconds", [5.0, 20.0, 30.0])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_a_cut_falls_into_the_middle_of_the_last_pause(seed, max_seconds, drops_silence):
    generator = np.random.default_rng(seed)
    probabilities = np.full(2000, SPEECH, dtype=np.float32)
    limit, length = int(max_seconds / FRAME_SECONDS), int(generator.integers(7, 40))
    # an earlier one, and later ones that are too short
    probabilities[40:60] = 0.2
    begin = int(generator.integers(70, limit - length))
    probabilities[begin : begin + length] = generator.choice([0.0, 0.2, 0.34])
    for blip in range(begin + length + 3, limit, 20):
        probabilities[blip : min(blip + 6, limit)] = 0.2
    first, second, *_ = cut(
        recorded(probabilities), probabilities, max_seconds=max_seconds, drops_silence=drops_silence
    )
    assert not first.cut_in_speech
    assert second.overlap is None
    middle = (begin + length / 2) * FRAME_SECONDS
    assert first.seconds == pytest.approx(middle, abs=0.0401)


def test_a_pause_in_the_first_second_is_left_alone():
    probabilities = frames((0.32, SPEECH), (0.32, 0.2), (9, SPEECH))
    first, *_ = cut(recorded(probabilities), probabilities, max_seconds=5)
    assert first.cut_in_speech
    assert first.seconds > 2


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
@pytest.mark.parametrize("max_seconds", [2.0, 10.0, 30.0])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_without_a_pause_the_cut_is_at_the_least_speech_like_frame(
    seed, max_seconds, drops_silence
):
    generator = np.random.default_rng(seed)
    probabilities = generator.uniform(0.6, 1.0, 2000).astype(np.float32)
    limit = int(max_seconds / FRAME_SECONDS)
    searched = int(min(8.0, max_seconds / 2) / FRAME_SECONDS)
    # the very best moment is too early, and so is not taken
    probabilities[limit - searched - 10 : limit - searched - 7] = 0.05
    dip = int(generator.integers(limit - searched + 1, limit - 4))
    probabilities[dip : dip + 3] = 0.3
    first, second, *_ = cut(
        recorded(probabilities), probabilities, max_seconds=max_seconds, drops_silence=drops_silence
    )
    assert first.cut_in_speech
    assert first.seconds == pytest.approx((dip + 1.5) * FRAME_SECONDS, abs=0.0401)
    assert second.overlap is not None
    assert second.start_seconds == first.end_seconds


@pytest.mark.parametrize("length", [1, GRID, 10 * SAMPLE_RATE - 1, 10 * SAMPLE_RATE])
@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
def test_a_recording_that_fits_is_not_cut(length, drops_silence):
    recording = noise(10)[:length]
    probabilities = np.full(-(-length // FRAME_SAMPLES), SPEECH, dtype=np.float32)
    (piece,) = cut(recording, probabilities, max_seconds=10, drops_silence=drops_silence)
    assert np.array_equal(piece.samples, recording)
    assert piece.start_seconds == 0.0
    assert not piece.cut_in_speech


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
def test_one_sample_more_than_the_limit_is_cut_once(drops_silence):
    recording = noise(11)[: 10 * SAMPLE_RATE + 1]
    probabilities = np.full(313, SPEECH, dtype=np.float32)
    assert len(cut(recording, probabilities, max_seconds=10, drops_silence=drops_silence)) == 2


@pytest.mark.parametrize("drops_silence", [False, True], ids=["tiles", "drops"])
def test_no_samples_give_no_chunk(drops_silence):
    assert cut(noise(0), np.zeros(0, dtype=np.float32), drops_silence=drops_silence) == []


def test_without_deletion_silence_is_tiled_like_everything_else():
    probabilities = frames((100, SILENCE))
    pieces = cut(recorded(probabilities), probabilities, drops_silence=False)
    assert sum(len(piece.samples) for piece in pieces) == len(probabilities) * FRAME_SAMPLES
    assert len(pieces) >= 4


# quiet recordings


@pytest.mark.parametrize(
    ("level", "decibels"), [(-20, 0.0), (-39, 0.0), (-46, 6.0), (-70, 30.0), (-90, 40.0)]
)
def test_a_very_quiet_chunk_is_raised_as_a_whole_with_its_gain(level, decibels):
    probabilities = frames((4, SPEECH))
    recording = recorded(probabilities) * np.float32(10 ** (level / 20) / 0.1)
    (piece,) = cut(recording, probabilities)
    assert piece.raised_decibels == pytest.approx(decibels, abs=0.5)
    ratios = piece.samples[recording != 0] / recording[recording != 0]
    assert ratios == pytest.approx(10 ** (piece.raised_decibels / 20), rel=0.02)
    assert piece.samples.dtype == np.float32


def test_digital_silence_stays_what_it_is():
    probabilities = frames((4, SPEECH))
    (piece,) = cut(np.zeros(len(probabilities) * FRAME_SAMPLES, np.float32), probabilities)
    assert not piece.samples.any()


def test_a_quiet_overlap_is_raised_like_its_chunks():
    probabilities = frames((40, SPEECH))
    recording = recorded(probabilities) * np.float32(0.005)
    before, after = cut(recording, probabilities)
    assert before.raised_decibels > 20
    assert after.overlap is not None
    raised = np.concatenate((before.samples, after.samples))
    cut_seconds = len(before.samples)
    begin = round((after.overlap.start_seconds - before.start_seconds) * SAMPLE_RATE)
    end = begin + len(after.overlap.samples)
    assert begin < cut_seconds < end
    assert np.array_equal(after.overlap.samples, raised[begin:end])


def test_samples_without_detected_speech_are_not_raised():
    probabilities = frames((40, SPEECH))
    recording = recorded(probabilities) * np.float32(0.005)
    pieces = cut(recording, probabilities, drops_silence=False)
    assert [piece.raised_decibels for piece in pieces] == [0.0, 0.0]
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), recording)


# a part of a segment


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((11.0, 12.5), (11.0, 12.5)),
        ((9.0, 12.5), (10.0, 12.5)),
        ((13.0, 99.0), (13.0, 14.0)),
        ((1.0, 99.0), (10.0, 14.0)),
    ],
)
def test_a_part_is_what_lies_in_the_segment(span, expected):
    chunk = Chunk(10.0, noise(4))
    part = chunk.part(Span(*span))
    assert (part.start_seconds, part.end_seconds) == pytest.approx(expected, abs=0.08)
    begin = round((part.start_seconds - 10.0) * SAMPLE_RATE)
    assert np.array_equal(part.samples, chunk.samples[begin : begin + len(part.samples)])


# with true detectors


@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_true_speech_is_cut_alike_however_it_arrives(seed):
    recording = decode(named("pause").path)
    listener = open_backend("cpu")

    def arrives(at: Iterable[int]) -> list[Chunk]:
        partials = np.split(recording, sorted(at))
        pieces = split(partials, lambda: SileroDetector(listener), max_seconds=5)
        return [*pieces]

    together = arrives([])
    generator = np.random.default_rng(seed)
    bit_by_bit = arrives(generator.integers(0, len(recording), 50).tolist())
    assert together
    assert seconds(bit_by_bit) == seconds(together)
    assert all(same(one, other) for one, other in zip(bit_by_bit, together, strict=True))


SPOKEN = [each for each in all_samples() if each.words and each.seconds < 30]


@pytest.mark.parametrize("spoken", SPOKEN, ids=lambda spoken: spoken.file)
def test_every_word_of_the_samples_is_in_a_chunk(spoken):
    recording = decode(spoken.path)
    listener = open_backend("cpu")
    pieces = split([recording], lambda: SileroDetector(listener), max_seconds=30)
    kept = np.zeros(len(recording), dtype=bool)
    for piece in pieces:
        kept[slice(*bounds(piece))] = True
    for word in spoken.words:
        assert kept[round(word["start"] * SAMPLE_RATE) : round(word["end"] * SAMPLE_RATE)].all()


def test_by_energy_the_segments_tile_the_recording():
    recording = decode(named("pause").path)
    partials = np.array_split(recording, 40)
    pieces = [*split(partials, EnergyDetector, max_seconds=5)]
    assert len(pieces) > 1
    assert [bounds(piece)[0] for piece in pieces[1:]] == [bounds(piece)[1] for piece in pieces[:-1]]
    assert (bounds(pieces[0])[0], bounds(pieces[-1])[1]) == (0, len(recording))
    for piece in pieces:
        assert np.array_equal(piece.samples, recording[slice(*bounds(piece))])


def test_each_channel_is_cut_alone_and_so_are_its_overlaps():
    left, right = noise(30, 1), noise(30, 2)
    right[10 * SAMPLE_RATE :] *= 0.001
    partials = np.array_split(np.stack([left, right], axis=1), 25)
    pieces = [*split(partials, EnergyDetector, max_seconds=5)]
    for number, recording in ((1, left), (2, right)):
        own = [piece for piece in pieces if piece.channel == number]
        assert sum(len(piece.samples) for piece in own) == len(recording)
        assert np.array_equal(own[0].samples, recording[: len(own[0].samples)])
        overlaps = [piece.overlap for piece in own if piece.overlap is not None]
        assert overlaps
        assert {overlap.channel for overlap in overlaps} == {number}


def test_a_segment_is_yielded_before_the_recording_has_ended():
    def endless() -> Iterator[Samples]:
        while True:
            yield noise(1)

    pieces = split(endless(), EnergyDetector, max_seconds=5)
    assert next(pieces).seconds <= 5
    assert next(pieces).seconds <= 5
    pieces.close()


# speech probabilities


@settings(deadline=None)
@given(
    first=st.integers(0, 50),
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    bounds=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 1500)), min_size=1, max_size=5),
)
def test_the_mean_of_a_span_is_that_of_the_frames_it_touches(first, probabilities, bounds):
    frames = SpeechFrames(2.0, first, np.array(probabilities, dtype=np.float32))
    spans = [Span(2 + start / 1000, 2 + (start + length) / 1000) for start, length in bounds]
    for (start, length), mean in zip(bounds, frames.means(spans), strict=True):
        numbers = [n for n in range(first, first + len(probabilities))
                   if 32 * n < start + length and 32 * (n + 1) > start]  # fmt: skip
        if numbers:
            touched = [probabilities[number - first] for number in numbers]
            assert mean == pytest.approx(sum(touched) / len(touched), abs=1e-5)
        assert min(probabilities) - 1e-5 <= mean <= max(probabilities) + 1e-5


def test_chunks_and_overlaps_have_the_probabilities_of_their_samples():
    probabilities = np.linspace(0.5, 0.99, 2000, dtype=np.float32)  # 64 s without a pause
    first, second, *_ = cut(recorded(probabilities), probabilities, start_seconds=7.0)
    assert first.cut_in_speech
    assert second.overlap is not None
    for chunk in (
        first,
        second,
        second.overlap,
        second.part(Span(second.start_seconds + 1, second.end_seconds)),
    ):
        assert chunk.frames is not None
        for seconds in (chunk.start_seconds + 0.5, chunk.end_seconds - 0.5):
            number = int((seconds - 7.0) * SAMPLE_RATE) // FRAME_SAMPLES
            (mean,) = chunk.frames.means([Span(seconds, seconds + 1e-6)])
            assert mean == pytest.approx(float(probabilities[number]))


def test_without_a_detector_there_are_no_probabilities():
    probabilities = frames((6, SPEECH))
    (chunk,) = cut(recorded(probabilities), probabilities, drops_silence=False)
    assert chunk.frames is None


class Watched(Detector):
    """Records how many of its kind compute at the same time."""

    trusts_silence = True
    computing = 0
    most = 0

    def _detect(self, blocks: Samples) -> Probabilities:
        Watched.computing += 1
        Watched.most = max(Watched.most, Watched.computing)
        time.sleep(0.01)
        Watched.computing -= 1
        return np.full(len(blocks) // FRAME_SAMPLES, SPEECH, dtype=np.float32)


class Meeting:
    """A backend whose first inference lasts until a second recording has reached its own."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)

    def probabilities(
        self, block: Samples, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[Probabilities, tuple[torch.Tensor, torch.Tensor]]:
        if state is None:
            self._both.wait(20.0)
        nothing = torch.zeros(0)
        return np.full(len(block) // FRAME_SAMPLES, SPEECH, dtype=np.float32), (nothing, nothing)


def test_recordings_are_computed_one_at_a_time() -> None:
    """Several threads with short numpy calls switch more than they compute."""

    def cut_in_thread(seed: int) -> int:
        block = noise(BLOCK_SAMPLES / SAMPLE_RATE, seed)
        return len(list(split([*[block] * 4, block[:-FRAME_SAMPLES]], Watched, max_seconds=8.0)))

    Watched.most = 0
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(cut_in_thread, range(4)))) == 1
    assert Watched.most == 1


def test_inferences_of_several_recordings_run_at_the_same_time() -> None:
    backend = Meeting()

    def cut_in_thread(seed: int) -> int:
        blocks = [noise(BLOCK_SAMPLES / SAMPLE_RATE, seed)] * 4
        return len(list(split(blocks, lambda: SileroDetector(backend), max_seconds=8.0)))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(cut_in_thread, range(2))) == [4] * 2


def test_chunks_of_other_recordings_are_cut_while_one_is_processed() -> None:
    """The slot for computation is free between the chunks of a recording."""
    blocks = [noise(BLOCK_SAMPLES / SAMPLE_RATE)] * 4
    first = split(blocks, Watched, max_seconds=8.0)
    next(first)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: len(list(split(blocks, Watched, max_seconds=8.0))))
        assert other.result(20.0) == 4
    assert len(list(first)) == 3


class Noting(Detector):
    """Notes its name whenever it computes."""

    trusts_silence = True

    def __init__(self, name: str, computed: list[str]) -> None:
        super().__init__()
        self._name, self._computed = name, computed

    def _detect(self, blocks: Samples) -> Probabilities:
        self._computed.append(self._name)
        return np.full(len(blocks) // FRAME_SAMPLES, SPEECH, dtype=np.float32)


def test_first_chunks_are_computed_before_those_of_longer_recordings() -> None:
    blocks, computed = [noise(BLOCK_SAMPLES / SAMPLE_RATE)] * 6, list[str]()
    longer, new = (
        split(blocks, lambda name=name: Noting(name, computed), max_seconds=8.0)
        for name in ("longer", "new")
    )
    next(longer)
    computed.clear()
    ends = time.monotonic() + 20.0
    with ThreadPoolExecutor(2) as pool, threads.COMPUTING.held():
        for waiting, chunks in enumerate((longer, new)):
            pool.submit(next, chunks)
            while threads.COMPUTING.waiting == waiting:
                assert time.monotonic() < ends
                time.sleep(0.001)
    assert computed[0] == "new"
