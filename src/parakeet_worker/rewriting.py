"""Words of an earlier answer in another format, with nothing transcribed again."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parakeet_worker import render
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.transcript import TimedToken, Transcript, Word

TextFormat: TypeAlias = Literal["text", "srt", "vtt", "tsv"]
"""The formats that say no more than words with their times do."""

Seconds = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _WordWire(_Wire):
    word: Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]*$")]
    start: Seconds
    end: Seconds
    confidence: Probability | None = None
    channel: Annotated[int, Field(ge=1)] | None = None


class Rewriting(_Wire):
    """`words` as they stand in `verbose_json`, and how to write them."""

    format: TextFormat
    words: list[_WordWire]


def rewrite(payload: object) -> str:
    """The words of a `Rewriting` as the content of a file; raises `InvalidRequest`."""
    try:
        wire = Rewriting.model_validate(payload)
    except ValidationError as failure:
        raise _named(failure) from failure
    _check_times(wire.words)
    words = tuple(_word(word) for word in wire.words)
    return render.written(Transcript(words), wire.format)


def _word(wire: _WordWire) -> Word:
    """As one token: what is written needs no more of a word than its ends."""
    return Word(wire.word, (TimedToken(wire.word, wire.start, wire.end, 0.0),), wire.channel)


def _check_times(words: Sequence[_WordWire]) -> None:
    for index, word in enumerate(words):
        if word.end < word.start:
            raise InvalidRequest(f"words.{index}.end", "lies before its start")
    for index, (word, following) in enumerate(pairwise(words), start=1):
        if following.start < word.start:
            raise InvalidRequest(f"words.{index}.start", "lies before the start of the word before")


def _named(failure: ValidationError) -> InvalidRequest:
    """The first complaint of pydantic, in our words."""
    first = failure.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    if first["type"] == "extra_forbidden":
        return InvalidRequest(field, "no such field")
    if first["type"] == "missing":
        return InvalidRequest(field, "is required")
    said = "must be an object" if first["type"] == "model_type" else first["msg"]
    return InvalidRequest(
        field, said.replace("Input should be", "must be").replace("String should", "must")
    )
