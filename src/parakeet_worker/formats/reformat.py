"""Words of an earlier answer in another format, with nothing transcribed again."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.formats import render
from parakeet_worker.recognition.transcript import TimedToken, Transcript, Word

TextFormat: TypeAlias = Literal["text", "srt", "vtt", "tsv"]
"""The formats that say no more than words with their times do."""

MAX_WORDS = 100_000
"""Seven hours of quick speech."""
_MAX_WORD_CHARACTERS = 500
_MAX_SECONDS = 1e7
_MAX_CHANNELS = 64
_MAX_FIELDS = 32
_WORDS_AT_ONCE = 500
"""Validating holds the interpreter's lock until it is done."""

Seconds = Annotated[float, Field(ge=0, le=_MAX_SECONDS)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _WordWire(_Wire):
    word: Annotated[
        str, Field(min_length=1, max_length=_MAX_WORD_CHARACTERS, pattern=r"^[^\r\n]*$")
    ]
    start: Seconds
    end: Seconds
    confidence: Probability | None = None
    channel: Annotated[int, Field(ge=1, le=_MAX_CHANNELS)] | None = None


class Rewriting(_Wire):
    """`words` as they stand in `verbose_json`, and how to write them."""

    format: TextFormat
    words: Annotated[list[_WordWire], Field(max_length=MAX_WORDS)]


class _Outer(_Wire):
    format: TextFormat
    words: list[Any]


_WORDS: TypeAdapter[list[_WordWire]] = TypeAdapter(
    Annotated[list[_WordWire], Field(fail_fast=True)]
)


def rewrite(payload: object) -> str:
    """The words of a `Rewriting` as the content of a file; raises `InvalidRequest`."""
    if isinstance(payload, dict) and len(payload) > _MAX_FIELDS:
        raise InvalidRequest("body", f"has {len(payload)} fields, limit {_MAX_FIELDS}")
    try:
        outer = _Outer.model_validate(payload)
    except ValidationError as failure:
        raise _named(failure) from failure
    if len(outer.words) > MAX_WORDS:
        raise InvalidRequest("words", f"has {len(outer.words)} items, limit {MAX_WORDS}")
    wires = [wire for at in range(0, len(outer.words), _WORDS_AT_ONCE)
             for wire in _validated(outer.words, at)]  # fmt: skip
    _check_times(wires)
    words = tuple(_word(word) for word in wires)
    return render.written(Transcript(words), outer.format)


def _validated(words: Sequence[Any], first: int) -> list[_WordWire]:
    some = list(words[first : first + _WORDS_AT_ONCE])
    for index, word in enumerate(some, start=first):
        if isinstance(word, dict) and len(word) > _MAX_FIELDS:
            raise InvalidRequest(f"words.{index}", f"has {len(word)} fields, limit {_MAX_FIELDS}")
    try:
        return _WORDS.validate_python(some)
    except ValidationError as failure:
        raise _named(failure, first) from failure


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


def _named(failure: ValidationError, first_word: int | None = None) -> InvalidRequest:
    """The first complaint of pydantic, in our words."""
    first = failure.errors(include_url=False)[0]
    place = first["loc"]
    if first_word is not None:
        place = ("words", first_word + int(place[0]), *place[1:])
    field = ".".join(str(part) for part in place) or "body"
    if first["type"] == "extra_forbidden":
        return InvalidRequest(field, "no such field")
    if first["type"] == "missing":
        return InvalidRequest(field, "is required")
    if first["type"] == "string_unicode":
        return InvalidRequest(field, "has a lone surrogate, which is no character")
    said = "must be an object" if first["type"] == "model_type" else first["msg"]
    return InvalidRequest(
        field, said.replace("Input should be", "must be").replace("String should", "must")
    )
