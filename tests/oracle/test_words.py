"""Words, sentences and tokens with times against NeMo's, key by key and value by value.

Intended differences:
- NeMo's `char` is a list of one string; here it is the string.
- NeMo's seconds are products such as 0.5600000000000001; here they are rounded to milliseconds.
- NeMo writes the unknown piece as two question marks; here control pieces are written as nothing.
- A word to which NeMo gives no length lasts one frame here.
- A time that NeMo puts after the end of the audio is moved to the end; its offset stays the
  nearest frame to that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nemo.collections.asr.parts.utils.timestamp_utils import process_timestamp_outputs

from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native import checkpoint
from parakeet_worker.formats import render
from parakeet_worker.recognition import transcript
from parakeet_worker.recognition.chunks import Chunk
from utterances import Utterance

Entries = list[dict[str, Any]]

FRAME_SECONDS = 0.08


@pytest.fixture(scope="module")
def nemo_timed(nemo_hypotheses: Sequence[Any]) -> list[dict[str, Entries]]:
    timed = process_timestamp_outputs(
        list(nemo_hypotheses), subsampling_factor=8, window_stride=0.01
    )
    return [hypothesis.timestamp for hypothesis in timed]


@pytest.fixture(scope="module")
def native_timed(
    spoken: Sequence[Utterance], native_hypotheses: Sequence[Hypothesis]
) -> list[dict[str, Entries]]:
    timed = []
    for utterance, hypothesis in zip(spoken, native_hypotheses, strict=True):
        stitched = transcript.stitch(Chunk(0.0, utterance.samples), hypothesis)
        times: Any = render.json_document(stitched, timestamp=True)["timestamps"]
        timed.append(times)
    return timed


@pytest.mark.parametrize("key", ["word", "segment", "char"])
def test_every_entry_equals_nemos(
    spoken: Sequence[Utterance],
    nemo_timed: Sequence[dict[str, Entries]],
    native_timed: Sequence[dict[str, Entries]],
    key: str,
) -> None:
    compared = 0
    for utterance, exact, native in zip(spoken, nemo_timed, native_timed, strict=True):
        seconds, reference = len(utterance.samples) / 16_000, lengthened(exact)
        assert native[key] == [as_native(key, entry, seconds) for entry in reference[key]], (
            utterance.name
        )
        compared += len(reference[key])
    assert compared > 400


def lengthened(reference: dict[str, Entries]) -> dict[str, Entries]:
    """NeMo's entries with words of no length lasting one frame."""
    empty = {
        word["start_offset"]
        for word in reference["word"]
        if word["start_offset"] == word["end_offset"]
    }
    words = [
        later(word, "end") if word["start_offset"] in empty else word for word in reference["word"]
    ]
    segments = [
        later(segment, "end") if segment["end_offset"] in empty else segment
        for segment in reference["segment"]
    ]
    tokens: Entries = []
    inside: int | None = None
    for token in reference["char"]:
        place = token["start_offset"]
        if place in empty and inside != place and token["char"][0].strip(".,?!"):
            inside = place
            tokens.append(later(token, "end"))
        elif place in empty and inside == place:
            tokens.append(later(token, "start", "end"))
        else:
            tokens.append(token)
    return {"word": words, "segment": segments, "char": tokens}


def later(entry: dict[str, Any], *ends: str) -> dict[str, Any]:
    """The entry with these of its times one frame later."""
    moved = {f"{end}_offset": entry[f"{end}_offset"] + 1 for end in ends}
    return {**entry, **moved, **{end: entry[end] + FRAME_SECONDS for end in ends}}


def as_native(key: str, entry: dict[str, Any], seconds: float) -> dict[str, Any]:
    """NeMo's entry with the differences of this file's first lines, and no other."""
    changed = dict(entry)
    if key == "char":
        (changed[key],) = entry[key]
    for end in ("start", "end"):
        if entry[end] > seconds:
            changed[f"{end}_offset"] = round(seconds / FRAME_SECONDS)
        changed[end] = round(min(entry[end], seconds), 3)
    return changed


def test_the_words_join_to_the_text(
    nemo_hypotheses: Sequence[Any],
    spoken: Sequence[Utterance],
    native_hypotheses: Sequence[Hypothesis],
) -> None:
    for utterance, expected, hypothesis in zip(
        spoken, nemo_hypotheses, native_hypotheses, strict=True
    ):
        stitched = transcript.stitch(Chunk(0.0, utterance.samples), hypothesis)
        assert stitched.text == expected.text


def test_the_unknown_piece_is_empty(nemo_demo: Any, demo_path: Path) -> None:
    read = checkpoint.read_checkpoint(demo_path)
    assert read.vocabulary.pieces[0] == "<unk>"
    assert nemo_demo.tokenizer.ids_to_text([0]).strip() == "\N{DOUBLE QUESTION MARK}"
    assert read.vocabulary.text(0) == ""
