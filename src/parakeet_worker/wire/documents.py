"""Types of the JSON answers, from which the OpenAPI document is generated."""

from typing import Any, TypeAlias

from pydantic import ConfigDict, TypeAdapter

from parakeet_worker.wire.validation import WireModel


class Warning(WireModel):  # noqa: A001  # the name in the OpenAPI document
    """A missing or damaged part of the recording, or an option without effect."""

    code: str
    """Stable identifier."""
    message: str
    """One sentence."""
    start: float | None = None
    """Start of the part, in seconds."""
    end: float | None = None
    """End of the part, in seconds."""


class Span(WireModel):
    """An interval of the recording, in seconds."""

    start: float
    end: float


class Word(WireModel):
    """A word with the punctuation that follows it."""

    word: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    confidence: float
    """Geometric mean of the token probabilities."""
    channel: int | None = None
    """Channel or track, from 1, if transcribed separately."""


class OpenAISegment(WireModel):
    """A sentence."""

    id: int
    """Number of the segment, from 0."""
    seek: int
    """`start` in units of 10 ms."""
    start: float
    """Seconds from the start of the recording."""
    end: float
    """Seconds from the start of the recording."""
    text: str
    """The sentence."""
    tokens: list[int]
    """Indices of the tokens in the model's own vocabulary, which is not Whisper's."""
    temperature: float
    """0: decoding is greedy."""
    avg_logprob: float
    """Mean log-probability of the tokens."""
    compression_ratio: float
    """Bytes of the text divided by its bytes after zlib compression, as Whisper defines it."""
    no_speech_prob: float | None = None
    """1 minus the mean speech probability, from voice activity detection, over the words of the
    segment; absent without a speech detector."""


class Segment(OpenAISegment):
    """A sentence with its language."""

    language: str | None
    """Identified language, by its English name in lower case."""
    language_probability: float | None
    channel: int | None = None
    """Channel or track, from 1, if transcribed separately."""


class VerboseTranscript(WireModel):
    """The format verbose_json."""

    task: str
    language: str | None
    language_probability: float | None
    duration: float
    """Seconds of audio."""
    text: str
    segments: list[Segment]
    words: list[Word]
    uncovered: list[Span]
    """Detected speech without words."""
    warnings: list[Warning] | None = None
    debug: dict[str, Any] | None = None


class Transcript(WireModel):
    """The other formats; subtitles are in the field with the name of the format."""

    text: str
    srt: str | None = None
    vtt: str | None = None
    tsv: str | None = None
    timestamps: dict[str, list[dict[str, Any]]] | None = None
    """Lists `word`, `segment` and `char` as in NeMo, with `timestamp`."""
    warnings: list[Warning] | None = None
    debug: dict[str, Any] | None = None


class Failure(WireModel):
    """The error of one recording of a list, with further facts by code."""

    model_config = ConfigDict(extra="allow")

    error: str
    """The code and one sentence."""
    code: str
    """Stable identifier; see docs/errors.md."""


class StoredResult(WireModel):
    """A result that exceeds the limit and was stored in the requested location."""

    written_to: dict[str, Any]
    """The location, and `bytes`."""


class Usage(WireModel):
    """The amount of audio."""

    type: str
    """Always duration."""
    seconds: int


class LogProb(WireModel):
    """A token of the text."""

    token: str
    logprob: float
    bytes: list[int]
    """UTF-8."""


class OpenAITranscript(WireModel):
    """The format json of OpenAI's API."""

    text: str
    model: str
    """The model that was used."""
    usage: Usage
    logprobs: list[LogProb] | None = None
    warnings: list[Warning] | None = None


class OpenAIVerboseTranscript(WireModel):
    """The format verbose_json of OpenAI's API."""

    task: str
    language: str | None
    duration: float
    text: str
    model: str
    usage: Usage
    segments: list[OpenAISegment] | None = None
    words: list[Word] | None = None
    warnings: list[Warning] | None = None


Native: TypeAlias = (
    Transcript | VerboseTranscript | StoredResult | list[Transcript | VerboseTranscript | Failure]
)
OpenAI: TypeAlias = OpenAITranscript | OpenAIVerboseTranscript
NATIVE: TypeAdapter[Native] = TypeAdapter(Native)
OPENAI: TypeAdapter[OpenAI] = TypeAdapter(OpenAI)


def schemas() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The JSON schemas of native and OpenAI answers, and those they refer to by name."""
    both = [
        adapter.json_schema(ref_template="#/components/schemas/{model}")
        for adapter in (NATIVE, OPENAI)
    ]
    named = {name: _optional(each) for one in both for name, each in one.pop("$defs").items()}
    return both[0], both[1], named


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    """A field that may be absent is never null."""
    for name, field in schema["properties"].items():
        if field.get("default", 0) is None:
            (kind,) = (each for each in field["anyOf"] if each.get("type") != "null")
            described = {key: field[key] for key in ("title", "description") if key in field}
            schema["properties"][name] = {**kind, **described}
    return schema
