"""Both detectors, and what is made of their numbers."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.backends import open_backend
from parakeet_worker.vad.base import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    MIN_SILENCE_FRAMES,
    MIN_SPEECH_FRAMES,
    SPEECH_BEGINS,
    SPEECH_ENDS,
    Detector,
    Probabilities,
    speech_spans,
)
from parakeet_worker.vad.energy import EnergyDetector
from parakeet_worker.vad.silero_detector import SileroDetector
from recordings import decode, noise, silence
from speech import all_samples, named, sample

RECORDED = [each for each in all_samples() if each.words and each.seconds < 30]

Make = Callable[[], Detector]


@pytest.fixture(scope="module", params=["silero", "energy"])
def detector(request: pytest.FixtureRequest) -> Make:
    """Makes a detector of each kind."""
    if request.param == "energy":
        return EnergyDetector
    listener = open_backend("cpu")
    return lambda: SileroDetector(listener)


def probabilities_of(
    detector: Detector, recording: Samples, at: Iterable[int] = ()
) -> Probabilities:
    """A recording that arrives in parts, divided `at` these samples."""
    result = [detector.feed(part) for part in np.split(recording, sorted(at))]
    return np.concatenate([*result, detector.finish()])


@cache
def minute() -> Samples:
    return decode(named("minute").path)[:-77]


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 65_535, 65_536, 65_537, 200_000])
def test_every_started_frame_has_one_probability(detector, length):
    result = probabilities_of(detector(), minute()[:length])
    assert result.dtype == np.float32
    assert len(result) == -(-length // FRAME_SAMPLES)
    assert np.all((result >= 0) & (result <= 1))


@settings(max_examples=8)
@given(at=st.lists(st.integers(0, 59 * 16_000), max_size=300))
def test_the_sizes_of_blocks_do_not_change_the_result(detector, at):
    recording = minute()
    assert np.array_equal(
        probabilities_of(detector(), recording, at), probabilities_of(detector(), recording)
    )


def test_small_inputs_give_the_probabilities_of_the_whole(detector):
    recording = decode(sample("en").path)[:3000]
    singles = range(1, len(recording))
    assert np.array_equal(
        probabilities_of(detector(), recording, singles),
        probabilities_of(detector(), recording),
    )


def test_most_frames_are_known_before_the_recording_ends(detector):
    recording = minute()
    listening = detector()
    known = sum(len(listening.feed(part)) for part in np.array_split(recording, 50))
    assert known * FRAME_SECONDS > len(recording) / 16_000 - 4.2


def test_nothing_is_left_after_the_end(detector):
    listening = detector()
    assert len(probabilities_of(listening, noise(1))) == 32
    assert len(listening.finish()) == 0


def test_read_only_samples_are_accepted_and_unchanged(detector):
    recording = np.frombuffer(minute().tobytes(), dtype="<f4")
    before = recording.copy()
    assert np.array_equal(
        probabilities_of(detector(), recording), probabilities_of(detector(), before)
    )
    assert np.array_equal(recording, before)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_sample_is_silence_and_spoils_nothing_after_it(detector, broken):
    recording = minute()
    recording[30_000] = 0
    expected = probabilities_of(detector(), recording)
    recording[30_000] = broken
    assert np.array_equal(probabilities_of(detector(), recording), expected)


def test_silence_is_no_speech(detector):
    assert speech_spans(probabilities_of(detector(), silence(20))) == []


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.file)
def test_words_lie_in_speech_spans(detector, recorded):
    result = probabilities_of(detector(), decode(recorded.path))
    clock = np.arange(len(result)) * FRAME_SECONDS
    in_word = np.zeros(len(result), dtype=bool)
    for word in recorded.words:
        in_word |= (clock >= word["start"]) & (clock < word["end"])
    in_speech = np.zeros(len(result), dtype=bool)
    for first, after in speech_spans(result):
        in_speech[first:after] = True
    assert np.mean(in_speech[in_word]) > 0.8


MARKS = {"#": 0.9, "-": 0.4, ".": 0.1}


def drawn(picture: str) -> Probabilities:
    return np.array([MARKS[mark] for mark in picture], dtype=np.float32)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("", []),
        ("........", []),
        ("--------", []),
        ("########", [(0, 8)]),
        ("..####..", [(2, 6)]),
        # between the thresholds the state stays
        ("--####--", [(2, 8)]),
        ("####----####", [(0, 12)]),
        ("####--......--####", [(0, 6), (14, 18)]),
        ("..--##--..", [(4, 8)]),
        # a pause counts from 6 frames, speech from 4
        ("####.....####", [(0, 13)]),
        ("####......####", [(0, 4), (10, 14)]),
        (".###......####", [(10, 14)]),
        # short spans are joined before short ones are dropped
        ("#.#.#", [(0, 5)]),
        ("#......#......#", []),
    ],
)
def test_speech_spans_match_drawn_probabilities(picture, expected):
    assert speech_spans(drawn(picture)) == expected


def test_the_thresholds_themselves_begin_and_hold_speech():
    begins, ends = np.float32(SPEECH_BEGINS), np.float32(SPEECH_ENDS)
    below_begin, below_end = np.nextafter(begins, np.float32(0)), np.nextafter(ends, np.float32(0))
    assert speech_spans(np.array([begins, *[ends] * 9], dtype=np.float32)) == [(0, 10)]
    assert speech_spans(np.full(10, below_begin)) == []
    assert speech_spans(np.array([*[begins] * 5, below_end, *[ends] * 9])) == [(0, 5)]


def plainly(probabilities: Probabilities) -> list[tuple[int, int]]:
    """The same frame by frame."""
    raw: list[list[int]] = []
    speaks = False
    for frame, probability in enumerate(probabilities.tolist()):
        speaks = probability >= SPEECH_BEGINS or (speaks and probability >= SPEECH_ENDS)
        if not speaks:
            continue
        if raw and frame - raw[-1][1] < MIN_SILENCE_FRAMES:
            raw[-1][1] = frame + 1
        else:
            raw.append([frame, frame + 1])
    return [(first, after) for first, after in raw if after - first >= MIN_SPEECH_FRAMES]


RUNS = st.builds(str.__mul__, st.sampled_from("#-."), st.integers(1, 7))


@given(st.lists(RUNS, min_size=1, max_size=60).map("".join))
def test_speech_spans_match_a_loop_over_the_frames(marks):
    probabilities = drawn(marks)
    assert speech_spans(probabilities) == plainly(probabilities)


def test_torch_is_imported_with_the_network_only():
    modules = ("vad", "vad.base", "vad.energy")
    imports = ", ".join(f"parakeet_worker.{name}" for name in modules)
    program = f"import json, sys\nimport {imports}\nprint(json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = json.loads(ran.stdout)
    assert "parakeet_worker.vad.energy" in loaded
    assert "torch" not in loaded
