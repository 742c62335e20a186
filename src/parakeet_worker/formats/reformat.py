"""Words of an earlier answer in another format, without transcribing again."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.formats import render
from parakeet_worker.recognition.transcript import SpeakerLabel, TimedToken, Transcript, Word
from parakeet_worker.wire.subtitles import (
    DEFAULTS,
    MaxCharactersPerSecond,
    MaxCueSeconds,
    MaxLineCharacters,
    MaxLines,
    cue_limits,
)
from parakeet_worker.wire.validation import MAX_FIELDS, WireModel, first_problem, too_many

TextFormat: TypeAlias = Literal["text", "srt", "vtt", "tsv"]
"""The formats that can be written from words and times alone."""

MAX_WORDS = 100_000
"""About seven hours of fast speech."""
_MAX_WORD_CHARACTERS = 500
_MAX_SECONDS = 1e7
_MAX_CHANNELS = 64
_MAX_NAME_CHARACTERS = 100
_WORDS_PER_BATCH = 500
"""Validation holds the interpreter's lock until it returns."""

Seconds = Annotated[float, Field(ge=0, le=_MAX_SECONDS)]
Probability = Annotated[float, Field(ge=0, le=1)]
_Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=_MAX_NAME_CHARACTERS, pattern=r"^[^\r\n]*$")
]


class _WordWire(WireModel):
    word: Annotated[
        str, Field(min_length=1, max_length=_MAX_WORD_CHARACTERS, pattern=r"^[^\r\n]*$")
    ]
    start: Seconds
    end: Seconds
    confidence: Probability | None = None
    channel: Annotated[int, Field(ge=1, le=_MAX_CHANNELS)] | None = None
    speaker: _Name | None = None
    speaker_confidence: Probability | None = None
    overlap: bool = False


class _Target(WireModel):
    format: TextFormat
    max_line_characters: MaxLineCharacters = DEFAULTS.max_line_characters
    """The longest line of a cue of `srt` or `vtt`, in characters; a longer word is divided."""
    max_lines: MaxLines = DEFAULTS.max_lines
    """The most lines of a cue."""
    max_characters_per_second: MaxCharactersPerSecond = DEFAULTS.max_characters_per_second
    """The reading speed: a cue with more characters per second is shown longer, up to
    `max_cue_seconds` or the next cue."""
    max_cue_seconds: MaxCueSeconds = DEFAULTS.max_cue_seconds
    """The longest time a cue is shown, in seconds."""


class Rewriting(_Target):
    """`words` of `verbose_json`, and the format to write them in."""

    words: Annotated[list[_WordWire], Field(max_length=MAX_WORDS)]


class _Outer(_Target):
    words: list[Any]


_WORDS: TypeAdapter[list[_WordWire]] = TypeAdapter(
    Annotated[list[_WordWire], Field(fail_fast=True)]
)


def rewrite(payload: object) -> str:
    """The words of a `Rewriting` as the content of a file. Raises `InvalidRequest`."""
    try:
        outer = _Outer.model_validate(payload)
    except ValidationError as failure:
        raise first_problem(failure, _Outer).error() from failure
    limits = cue_limits(outer)
    if len(outer.words) > MAX_WORDS:
        raise InvalidRequest("words", too_many("items", len(outer.words), MAX_WORDS))
    wires = [wire for at in range(0, len(outer.words), _WORDS_PER_BATCH)
             for wire in _validated(outer.words, at)]  # fmt: skip
    _check_times(wires)
    words = tuple(_word(word) for word in wires)
    return render.render(Transcript(words), outer.format, limits=limits)


def _validated(words: Sequence[Any], first: int) -> list[_WordWire]:
    some = list(words[first : first + _WORDS_PER_BATCH])
    for index, word in enumerate(some, start=first):
        if isinstance(word, dict) and len(word) > MAX_FIELDS:
            raise InvalidRequest(f"words.{index}", too_many("fields", len(word), MAX_FIELDS))
    try:
        return _WORDS.validate_python(some)
    except ValidationError as failure:
        problem = first_problem(failure, list[_WordWire])
        number, *path = problem.path
        path = ["words", first + int(number), *path]
        raise replace(problem, path=tuple(path)).error() from failure


def _word(wire: _WordWire) -> Word:
    """A word of one token: the formats use only its start and end."""
    token = TimedToken(wire.word, wire.start, wire.end, 0.0)
    speaker = None
    if wire.speaker is not None:
        speaker = SpeakerLabel(wire.speaker, wire.speaker_confidence or 0.0, wire.overlap)
    return Word(wire.word, (token,), wire.channel, speaker=speaker)


def _check_times(words: Sequence[_WordWire]) -> None:
    for index, word in enumerate(words):
        if word.end < word.start:
            raise InvalidRequest(f"words.{index}.end", "is before its start")
    for index, (word, following) in enumerate(pairwise(words), start=1):
        if following.start < word.start:
            raise InvalidRequest(f"words.{index}.start", "is before the start of the previous word")
