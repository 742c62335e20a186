"""Words, sentences and tokens with times against NeMo's, key by key and value by value.

Different on purpose:
- NeMo's `char` is a list with one text in it; ours is the text.
- NeMo's seconds are products such as 0.5600000000000001; ours are rounded to milliseconds.
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
def nemo_timed(nemo_heard: Sequence[Any]) -> list[dict[str, Entries]]:
    timed = process_timestamp_outputs(list(nemo_heard), subsampling_factor=8, window_stride=0.01)
    return [hypothesis.timestamp for hypothesis in timed]


@pytest.fixture(scope="module")
def ours_timed(
    spoken: Sequence[Utterance], native_heard: Sequence[Hypothesis]
) -> list[dict[str, Entries]]:
    found = []
    for utterance, hypothesis in zip(spoken, native_heard, strict=True):
        heard = transcript.stitch(Chunk(0.0, utterance.samples), hypothesis)
        times: Any = render.json_document(heard, timestamp=True)["timestamps"]
        found.append(times)
    return found


@pytest.mark.parametrize("key", ["word", "segment", "char"])
def test_every_entry_is_nemos(
    spoken: Sequence[Utterance],
    nemo_timed: Sequence[dict[str, Entries]],
    ours_timed: Sequence[dict[str, Entries]],
    key: str,
) -> None:
    compared = 0
    for utterance, exact, ours in zip(spoken, nemo_timed, ours_timed, strict=True):
        seconds, theirs = len(utterance.samples) / 16_000, lengthened(exact)
        assert ours[key] == [as_ours(key, entry, seconds) for entry in theirs[key]], utterance.name
        compared += len(theirs[key])
    assert compared > 400


def lengthened(theirs: dict[str, Entries]) -> dict[str, Entries]:
    """NeMo's entries with words of no length lasting one frame."""
    empty = {
        word["start_offset"]
        for word in theirs["word"]
        if word["start_offset"] == word["end_offset"]
    }
    words = [
        later(word, "end") if word["start_offset"] in empty else word for word in theirs["word"]
    ]
    segments = [
        later(segment, "end") if segment["end_offset"] in empty else segment
        for segment in theirs["segment"]
    ]
    tokens: Entries = []
    inside: int | None = None
    for token in theirs["char"]:
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


def as_ours(key: str, entry: dict[str, Any], seconds: float) -> dict[str, Any]:
    """NeMo's entry with the differences of this file's first lines, and no other."""
    changed = dict(entry)
    if key == "char":
        (changed[key],) = entry[key]
    for end in ("start", "end"):
        if entry[end] > seconds:
            changed[f"{end}_offset"] = round(seconds / FRAME_SECONDS)
        changed[end] = round(min(entry[end], seconds), 3)
    return changed


def test_the_text_is_the_words(
    nemo_heard: Sequence[Any],
    spoken: Sequence[Utterance],
    native_heard: Sequence[Hypothesis],
) -> None:
    for utterance, expected, hypothesis in zip(spoken, nemo_heard, native_heard, strict=True):
        heard = transcript.stitch(Chunk(0.0, utterance.samples), hypothesis)
        assert heard.text == expected.text


def test_the_unknown_piece_is_written_as_nothing(nemo_demo: Any, demo_path: Path) -> None:
    read = checkpoint.read_checkpoint(demo_path)
    assert read.vocabulary.pieces[0] == "<unk>"
    assert nemo_demo.tokenizer.ids_to_text([0]).strip() == "\N{DOUBLE QUESTION MARK}"
    assert read.vocabulary.text(0) == ""
