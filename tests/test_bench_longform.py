"""Long recordings with known words, how words are aligned in time, and how windows are merged."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import longform, spoken
from bench.alignment import aligned, counted
from bench.cutting import ALONE, HypothesisWord, merge
from bench.spoken import ReferenceWord, Spoken, Voices, made, packed
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.recognition.chunks import Span


def words(text: str, begin: float = 0.0, every: float = 0.5) -> list[HypothesisWord]:
    return [HypothesisWord(word, begin + every * n) for n, word in enumerate(text.split())]


def test_every_error_is_counted_once():
    reference, hypothesis = words("one two three four five"), words("one two tree four")
    alignment = aligned(reference, hypothesis)
    assert alignment.fates == ("right", "right", "wrong", "right", "lost")
    assert alignment.errors == 2
    counts = counted(reference, hypothesis, alignment)
    assert (counts.words, counts.substitutions, counts.deletions, counts.insertions) == (5, 1, 1, 0)


def test_empty_reference_and_empty_hypothesis():
    assert aligned(words("one two"), []).fates == ("lost", "lost")
    assert aligned([], words("one two")).inserted == (0, 1)
    assert aligned([], []).errors == 0


def test_a_repeated_word_is_the_one_at_its_time():
    reference = words("no no no")
    hypothesis = [reference[0], reference[2]]
    assert aligned(reference, hypothesis).partners == (0, None, 1)


def test_a_word_far_from_its_place_is_another():
    alignment = aligned(words("yes"), words("yes", begin=1.5))
    assert (alignment.fates, alignment.inserted) == (("lost",), (0,))


def test_a_repeated_insertion_is_doubled():
    reference = words("one two three")
    hypothesis = [*reference[:2], HypothesisWord("two", 0.7), reference[2]]
    alignment = aligned(reference, hypothesis)
    assert alignment.doubled == {2}
    assert counted(reference, hypothesis, alignment, lambda at: at > 2).doubled == 0


def test_a_word_in_a_long_silence_is_inserted():
    reference = [HypothesisWord("one", 0.0), HypothesisWord("two", 60.0)]
    alignment = aligned(reference, [reference[0], HypothesisWord("and", 30.0), reference[1]])
    assert (alignment.fates, alignment.inserted) == (("right", "right"), (1,))


def test_windows_are_merged_at_a_common_word():
    reference = words("a b c d e f g h", every=1.0)
    left = [*reference[:5], HypothesisWord("x", 5.0)]
    right = [HypothesisWord("y", 2.0), *reference[3:]]
    assert merge(left, right, Span(2.0, 6.0)) == reference


def test_windows_without_a_common_word_are_merged_in_the_middle():
    left, right = words("a b c d", every=1.0), words("w x y z", begin=2.2, every=1.0)
    assert [word.text for word in merge(left, right, Span(2.0, 4.0))] == list("abcxyz")


def test_packed_words_have_no_pause_between_them_and_keep_their_audio():
    samples = np.zeros(4 * SAMPLE_RATE, np.float32)
    reference = (
        ReferenceWord("a", 0.5, 1.0),
        ReferenceWord("b", 1.05, 1.5),
        ReferenceWord("c", 3.0, 3.5),
    )
    for index, word in enumerate(reference):
        first, after = (round(at * SAMPLE_RATE) for at in (word.start_seconds, word.end_seconds))
        samples[first:after] = index + 1
    result = packed(Spoken(samples, reference))
    assert len(result.samples) / SAMPLE_RATE == pytest.approx(1.74, abs=0.01)
    for index, word in enumerate(result.words):
        middle = round((word.start_seconds + word.end_seconds) / 2 * SAMPLE_RATE)
        assert result.samples[middle] == index + 1
    gaps = [after.start_seconds - word.end_seconds for word, after in pairwise(result.words)]
    assert max(gaps) < 0.13


def test_a_recording_has_the_requested_length_and_is_deterministic(tmp_path):
    voices = Voices(longform.SAMPLES)
    one = made(voices, 6, 3, tmp_path / "one.wav")
    other = made(voices, 6, 3, tmp_path / "other.wav")
    assert one == other
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "other.wav").read_bytes()
    assert 360 <= one.seconds < 390
    assert sum(span.seconds for span in one.packed) > 60
    assert sum(span.seconds for span in one.crowded) > 60
    starts = [word.start_seconds for word in one.words]
    assert starts == sorted(starts)
    assert starts[-1] < one.seconds


def test_a_span_is_read_as_it_was_written(tmp_path):
    recording = made(Voices(longform.SAMPLES), 0.2, 1, tmp_path / "one.wav")
    spans = [Span(0, 2), Span(recording.seconds - 1, recording.seconds + 9)]
    first, last = spoken.read_spans(tmp_path / "one.wav", spans)
    assert (len(first), len(last)) == (2 * SAMPLE_RATE, SAMPLE_RATE)


def test_every_strategy_is_measured(tmp_path, capsys):
    errors = tmp_path / "errors.jsonl"
    longform.main([
        "--minutes=1.5", "--threads=1", "--device=cpu", "--strategies=worker; every 30 s",
        f"--results={tmp_path}", f"--list-errors={errors}",
    ])  # fmt: skip
    (path,) = tmp_path.glob("longform-demo-samples-*.json")
    written = json.loads(path.read_text())
    assert str(Path(longform.__file__).parent.parent) not in path.read_text()
    printed = capsys.readouterr().out
    alone, worker, fixed = written["figures"]
    assert [one["strategy"] for one in written["figures"]] == [ALONE, "worker", "every 30 s"]
    assert alone["added_percent"] == 0
    assert alone["against_alone"]["insertions"] == alone["everywhere"]["lost"] == 0
    for one in written["figures"]:
        counts, kinds = one["everywhere"]["counts"], one["kinds"].values()
        assert one["strategy"] in printed
        assert counts["words"] == alone["everywhere"]["counts"]["words"] > 50
        for field in ("words", "substitutions", "deletions", "insertions"):
            parts = [kind[place]["counts"][field] for kind in kinds for place in kind]
            assert sum(parts) == counts[field]
        assert one["peak_over_idle_mebibytes"] > 0
    assert worker["account"]["cuts_in_speech"] == worker["cuts_in_speech"]
    assert fixed["cuts_in_speech"] == int(fixed["audio_seconds"] / 30)
    for line in errors.read_text().splitlines():
        assert json.loads(line)["what"] in ("lost", "wrong", "added", "doubled")
