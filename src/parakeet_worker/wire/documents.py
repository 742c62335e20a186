"""Types of the JSON answers, from which the OpenAPI document is generated."""

from typing import Any, Literal, TypeAlias

from pydantic import ConfigDict, TypeAdapter

from parakeet_worker.wire.validation import WireModel

REFERENCE = "#/components/schemas/{model}"


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
    segment. Absent with the native option `vad: off`, which OpenAI's API does not have, and with
    the engine `tones`."""


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


class DiarizedSegment(WireModel):
    """A sentence of one speaker."""

    type: str
    """Always transcript.text.segment."""
    id: str
    start: float
    end: float
    text: str
    speaker: str | None


class OpenAIDiarizedTranscript(WireModel):
    """The format diarized_json of OpenAI's API."""

    task: str
    duration: float
    text: str
    segments: list[DiarizedSegment]
    model: str
    usage: Usage
    warnings: list[Warning] | None = None


class OpenAIError(WireModel):
    """What failed."""

    message: str
    type: str
    """invalid_request_error, service_unavailable_error or server_error."""
    param: str | None
    """The field to change, if there is one."""
    code: str
    """Stable identifier; see docs/errors.md."""


class OpenAIFailure(WireModel):
    """An error in the structure of OpenAI's API."""

    error: OpenAIError


class Model(WireModel):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(WireModel):
    """All models: the served one."""

    object: Literal["list"]
    data: list[Model]


class Ready(WireModel):
    """State of a worker that accepts requests."""

    status: str


class Health(WireModel):
    """State of the worker."""

    status: Literal["warming", "ready", "full", "lost"]
    model: str
    kernels: dict[str, Any] | None = None
    """On a GPU: the number of compared kernels, and those replaced by plain PyTorch."""


Native: TypeAlias = (
    Transcript | VerboseTranscript | StoredResult | list[Transcript | VerboseTranscript | Failure]
)
OpenAI: TypeAlias = OpenAITranscript | OpenAIVerboseTranscript | OpenAIDiarizedTranscript
NATIVE: TypeAdapter[Native] = TypeAdapter(Native)
OPENAI: TypeAdapter[OpenAI] = TypeAdapter(OpenAI)


def schemas(**types: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON schema of each type by its keyword, and the schemas they refer to by name."""
    by_type, named = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter[Any](each)) for name, each in types.items()],
        ref_template=REFERENCE,
    )
    return (
        {name: schema for (name, _), schema in by_type.items()},
        {name: _optional(schema) for name, schema in named["$defs"].items()},
    )


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    """A field that may be absent is never null."""
    for name, field in schema["properties"].items():
        if field.get("default", 0) is None:
            kinds = [each for each in field["anyOf"] if each.get("type") != "null"]
            described = {key: field[key] for key in ("title", "description") if key in field}
            kind = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
            schema["properties"][name] = {**kind, **described}
    return schema
