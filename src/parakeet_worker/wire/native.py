"""The native wire format: JSON or a form to a `JobInput`, or an error that names the field."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Discriminator, Field, Tag, ValidationError

from parakeet_worker import json_parsing, language
from parakeet_worker.audio.demuxers import headerless
from parakeet_worker.errors import (
    InvalidRequest,
    RequestError,
    echo,
    nearest,
    without_trace,
)
from parakeet_worker.options import (
    ALL_TRACKS,
    CUE_LIMITS,
    MAX_KNOWN_SPEAKERS,
    MAX_SPEAKERS,
    Attention,
    Channels,
    Format,
    OnDamage,
    SpeakerCount,
    Vad,
)
from parakeet_worker.request import (
    MAX_CLIP_SECONDS,
    Clip,
    FileSource,
    InlineSource,
    JobInput,
    Output,
    Request,
    S3Output,
    S3Source,
    Source,
    UrlOutput,
)
from parakeet_worker.wire.addresses import S3Wire, Url, source_at
from parakeet_worker.wire.known_speakers import KnownSpeakerWire, known_speakers
from parakeet_worker.wire.subtitles import (
    DEFAULTS,
    MaxCharactersPerSecond,
    MaxCueSeconds,
    MaxLineCharacters,
    MaxLines,
    cue_limits,
)
from parakeet_worker.wire.validation import MAX_FIELDS, WireModel, first_problem, kind, too_many

MAX_TRACK_NUMBER = 1000
MAX_INPUTS = 1000
"""Recordings of one job."""
_MAX_NAME_CHARACTERS = 100

# A file name extension, or a headerless format with rate and channels.
_FORMAT = r"^\.?[A-Za-z0-9]{1,8}(:[0-9]{1,6}(:[0-9]{1,2})?)?$"
# A media type with optional parameters, or nothing.
_CONTENT_TYPE = r"^([A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[ -~]*)?)?$"


class _ClipWire(WireModel):
    start: Annotated[float, Field(ge=0, lt=MAX_CLIP_SECONDS)] | None = None
    """Seconds from the start of the recording; its start if absent."""
    end: Annotated[float, Field(gt=0)] | None = None
    """Seconds from the start of the recording; its end if absent."""


_Speakers: TypeAlias = Annotated[int, Field(ge=1, le=MAX_SPEAKERS)]


class _SpeakersWire(WireModel):
    min: _Speakers | None = None
    """The minimum number of speakers."""
    max: _Speakers | None = None
    """The maximum number of speakers."""
    exact: _Speakers | None = None
    """The number of speakers, instead of `min` and `max`."""


def _kind_of_speakers(value: object) -> str:
    return "flag" if isinstance(value, bool) else "limits"


# With a discriminator, errors concern only the member of the union that the value is meant for.
_SpeakersOption: TypeAlias = Annotated[
    Annotated[bool, Tag("flag")] | Annotated[_SpeakersWire, Tag("limits")],
    Discriminator(_kind_of_speakers),
]


class _RequestWire(WireModel):
    """The fields of a request. Their descriptions are those of OpenAPI and of docs/calling.md."""

    audio_base64: str | None = None
    """The audio as base64, plain or as a data URI (`data:audio/mp3;base64,...`), in the standard
    or the URL-safe alphabet; line breaks are allowed."""
    audio_url: Url | None = None
    """An `http` or `https` URL, including pre-signed ones, or `s3://bucket/key`."""
    audio_s3: S3Wire | None = None
    """An object in a bucket."""
    audio_format: Annotated[str, Field(pattern=_FORMAT)] | None = None
    """The type of the file (`mp3`), a hint for ffmpeg's detection that is never trusted; or the
    format of samples without a header (`s16le:16000`)."""
    clip: _ClipWire | None = None
    """The part of the recording to transcribe."""
    format: Format = "json"
    """The format of the result; `rttm` has the turns of `speakers`, which it implies."""
    timestamp: bool = False
    """Add word, segment and token times to `json`."""
    max_line_characters: MaxLineCharacters = DEFAULTS.max_line_characters
    """The longest line of a cue of `srt` or `vtt`, in characters; a longer word is divided."""
    max_lines: MaxLines = DEFAULTS.max_lines
    """The most lines of a cue."""
    max_characters_per_second: MaxCharactersPerSecond = DEFAULTS.max_characters_per_second
    """The reading speed: a cue with more characters per second is shown longer, up to
    `max_cue_seconds` or the next cue."""
    max_cue_seconds: MaxCueSeconds = DEFAULTS.max_cue_seconds
    """The longest time a cue is shown, in seconds."""
    debug: bool = False
    """Add details of the recognition and the seconds of each stage."""
    vad: Vad = "auto"
    """`auto` skips silence, cuts in pauses and checks for missing words in detected speech; `off`
    decodes everything and cuts by loudness."""
    attention: Attention = "pieces"
    """`full` decodes a recording of up to 24 minutes in one piece instead of chunks of 30 s; this
    needs more memory and is usually less accurate."""
    channels: Channels = "mix"
    """`separate` transcribes each channel on its own (calls with one speaker per channel): every
    word, sentence and cue has its `channel`, from 1, and `text` has a line per turn."""
    track: (
        Annotated[int, Field(ge=1, le=MAX_TRACK_NUMBER)]
        | Annotated[str, Field(min_length=1, max_length=_MAX_NAME_CHARACTERS)]
        | None
    ) = None
    """The audio track to transcribe, by number from 1 or by language (`eng`, `en`); `all`
    transcribes each on its own, with its number as the `channel` of a word. By default the track
    flagged as default, else the first that is neither a commentary nor an audio description; if
    there are several, a warning states how many."""
    on_damage: OnDamage = "warn"
    """What happens if audio is missing or damaged: with `warn` everything that can be decoded is
    transcribed and the rest is listed in `warnings`; with `refuse` it is the error
    `audio_truncated` or `audio_damaged`."""
    language: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    """The spoken language, as a code (`pt`, `pt-BR`, `por`) or a name (`Portuguese`, `português`);
    `auto` equals no value: the language is detected."""
    speakers: _SpeakersOption | None = None
    """`true` labels the speaker of each word; an object limits their number."""
    known_speakers: (
        Annotated[list[KnownSpeakerWire], Field(min_length=1, max_length=MAX_KNOWN_SPEAKERS)] | None
    ) = None
    """People who may speak, each with a name and a voice; implies `speakers`."""
    stream: bool = False
    """Send each segment as soon as it and all earlier ones are complete, and the whole result
    last."""
    progress: bool = False
    """Report the progress of the job."""
    output_url: Url | None = None
    """Where to store a result that exceeds the limit: an `http` or `https` URL that accepts `PUT`,
    such as a pre-signed one, or `s3://bucket/key`."""
    output_s3: S3Wire | None = None
    """The object to store such a result in."""
    output_content_type: Annotated[str, Field(pattern=_CONTENT_TYPE, max_length=200)] | None = None
    """The `Content-Type` to send with it; an empty string sends none. By default
    `application/json`, or `application/gzip` if the name ends in `.gz`."""


_OBJECTS = ("clip", "audio_s3", "output_s3", "speakers", "known_speakers")
_SOURCES = ("audio_base64", "audio_url", "audio_s3")
_FIELDS = list(_RequestWire.model_fields)
_NUMBERS = CUE_LIMITS
# In a form, booleans are the words below; any other text is rejected.
_FLAGS = [
    *(name for name, field in _RequestWire.model_fields.items() if field.annotation is bool),
    "speakers",
]
_BOOLEANS = {"true": True, "false": False}
# Options of the job, not of one recording of a list.
_JOB_FIELDS = ("stream", "progress", "output_url", "output_s3", "output_content_type")
_ITEM_FIELDS = [name for name in _FIELDS if name not in _JOB_FIELDS]
_OPTION_FIELDS = [name for name in _FIELDS if name not in _SOURCES]


def parse(payload: object) -> JobInput:
    """Validate the `input` of a job. Raises `InvalidRequest` for the wrong field.

    With `inputs`, other fields are defaults for each object of the list. A null field counts as
    absent.
    """
    if not isinstance(payload, Mapping):
        raise InvalidRequest("input", f"must be an object, got {kind(payload)}")
    if payload.get("inputs") is None:
        wire = _validated(payload, "", [*_FIELDS, "inputs"])
        return _job((_request(wire, ""),), wire, listed=False)
    return _parse_list(payload)


def _job(
    requests: tuple[Request | RequestError, ...], wire: _RequestWire, *, listed: bool
) -> JobInput:
    output = _output(wire)
    return JobInput(requests, listed, stream=wire.stream, progress=wire.progress, output=output)


def _output(wire: _RequestWire) -> Output | None:
    if wire.output_url is not None and wire.output_s3 is not None:
        raise InvalidRequest("output_url", "cannot be combined with 'output_s3'")
    content_type = wire.output_content_type
    if wire.output_s3 is not None:
        return S3Output(wire.output_s3.key, wire.output_s3.bucket, content_type)
    if wire.output_url is None:
        if content_type is not None:
            reason = "requires 'output_url' or 'output_s3'"
            raise InvalidRequest("output_content_type", reason)
        return None
    address = source_at(wire.output_url, "output_url")
    if isinstance(address, S3Source):
        return S3Output(address.key, address.bucket, content_type)
    return UrlOutput(address.url, content_type)


def parse_form(fields: Iterable[tuple[str, str]], file: Path) -> JobInput:
    """Validate the fields of a form whose audio is `file`. Raises `InvalidRequest`.

    Fields are those of a job, as text; objects are JSON, and an empty field counts as absent.
    """
    payload: dict[str, object] = {}
    for name, text in fields:
        if name in payload:
            raise InvalidRequest(name, "occurs twice")
        payload[name] = _form_value(name, text)
    sources = [name for name in (*_SOURCES, "inputs") if payload.get(name) is not None]
    if sources:
        raise InvalidRequest(sources[0], "cannot be combined with a file")
    wire = _validated(payload, "", _OPTION_FIELDS)
    return _job((_options(wire, "")(FileSource(file)),), wire, listed=False)


def request_options(options: Mapping[str, object]) -> Callable[[Source], Request]:
    """Validate options; returns the request for a source. Raises `InvalidRequest`."""
    return _options(_validated(options, "", _OPTION_FIELDS), "")


def check_options(options: Mapping[str, object]) -> None:
    """Validate options, including those of a job. Raises `InvalidRequest`."""
    wire = _validated(options, "", _OPTION_FIELDS)
    _options(wire, "")
    _output(wire)


def _form_value(name: str, text: str) -> object:
    if not text:
        return None
    if name in _FLAGS and text in _BOOLEANS:
        return _BOOLEANS[text]
    if name not in (*_OBJECTS, *_NUMBERS):
        return text
    try:
        return json_parsing.parse(text)
    except json_parsing.NotParsed as failure:
        if name in _NUMBERS:
            return text  # rejected as not being a number
        raise InvalidRequest(name, str(failure)) from failure


def _parse_list(payload: Mapping[str, object]) -> JobInput:
    inputs = payload["inputs"]
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("inputs", "must be a list of at least one object")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequest("inputs", too_many("items", len(inputs), MAX_INPUTS))
    defaults = {name: value for name, value in payload.items() if name != "inputs"}
    sources = [name for name in _SOURCES if defaults.get(name) is not None]
    if sources:
        raise InvalidRequest(sources[0], "cannot be combined with 'inputs'; set it per item")
    wire = _validated(defaults, "", [*_FIELDS, "inputs"])
    if wire.stream:
        raise InvalidRequest("stream", "cannot be combined with 'inputs'")
    defaults = {name: value for name, value in defaults.items() if name not in _JOB_FIELDS}
    requests = tuple(_item(item, index, defaults) for index, item in enumerate(inputs))
    return _job(requests, wire, listed=True)


def _item(item: object, index: int, defaults: Mapping[str, object]) -> Request | RequestError:
    where = f"inputs[{index}]"
    try:
        if not isinstance(item, Mapping):
            raise InvalidRequest(where, f"must be an object, got {kind(item)}")
        fields = {
            name: defaults.get(name) if value is None else value for name, value in item.items()
        }
        wire = _validated({**defaults, **fields}, f"{where}.", _ITEM_FIELDS)
        return _request(wire, f"{where}.")
    except RequestError as error:
        return without_trace(error)


def _request(wire: _RequestWire, prefix: str) -> Request:
    source = _source(wire, prefix)
    return _options(wire, prefix)(source)


def _options(wire: _RequestWire, prefix: str) -> Callable[[Source], Request]:
    """The request for a source that is not part of the JSON."""
    if wire.timestamp and wire.format == "text":
        raise InvalidRequest(f"{prefix}timestamp", "cannot be combined with the format 'text'")
    track = track_of(wire.track, f"{prefix}track")
    if track == ALL_TRACKS and wire.channels == "separate":
        reason = "'all' cannot be combined with channels 'separate'"
        raise InvalidRequest(f"{prefix}track", reason)
    known = known_speakers(wire.known_speakers or (), f"{prefix}known_speakers")
    return partial(
        Request,
        audio_format=_ending(wire.audio_format),
        headerless=headerless(wire.audio_format, f"{prefix}audio_format"),
        clip=_clip(wire.clip, prefix),
        format=wire.format,
        timestamp=wire.timestamp,
        debug=wire.debug,
        vad=wire.vad,
        attention=wire.attention,
        channels=wire.channels,
        track=track,
        on_damage=wire.on_damage,
        language=language_code(wire.language, f"{prefix}language"),
        speakers=_speakers(wire, prefix),
        known_speakers=known,
        cue_limits=cue_limits(wire, "format", prefix),
    )


def _ending(audio_format: str | None) -> str | None:
    return audio_format and audio_format.lstrip(".").lower().partition(":")[0]


def _validated(payload: Mapping[str, object], prefix: str, known: list[str]) -> _RequestWire:
    if len(payload) > MAX_FIELDS:
        field = prefix.removesuffix(".") or "input"
        raise InvalidRequest(field, too_many("fields", len(payload), MAX_FIELDS))
    for name in payload:
        if name not in known:
            hint = nearest(str(name), known)
            raise InvalidRequest(f"{prefix}{name}", "no such field", hint)
    present = {name: value for name, value in payload.items() if value is not None}
    try:
        return _RequestWire.model_validate(present)
    except ValidationError as failure:
        raise first_problem(failure, _RequestWire).error(prefix) from failure


def _source(wire: _RequestWire, prefix: str) -> Source:
    present = [name for name in _SOURCES if getattr(wire, name) is not None]
    if len(present) != 1:
        got = " and ".join(present) or "none"
        names = ", ".join(_SOURCES)
        raise InvalidRequest(f"{prefix}audio_url", f"exactly one of {names} is required, got {got}")
    if wire.audio_base64 is not None:
        return InlineSource(wire.audio_base64)
    if wire.audio_s3 is not None:
        return S3Source(wire.audio_s3.key, wire.audio_s3.bucket)
    assert wire.audio_url is not None
    return source_at(wire.audio_url, f"{prefix}audio_url")


def track_of(value: int | str | None, field: str) -> int | str | None:
    """A track's number, language or `all`; a number may be text. Raises `InvalidRequest`."""
    if not isinstance(value, str):
        return value
    track = value.strip().casefold()
    if not (track.isascii() and track.isdecimal()):
        if not track:
            raise InvalidRequest(field, "must be a number from 1, a language or 'all'")
        return track
    number = int(track)
    if not 1 <= number <= MAX_TRACK_NUMBER:
        raise InvalidRequest(field, f"must be from 1 to {MAX_TRACK_NUMBER}, got {number}")
    return number


def _speakers(wire: _RequestWire, prefix: str) -> SpeakerCount | None:
    """The allowed numbers of speakers, None without labels. Raises `InvalidRequest`."""
    for field, implies in (
        ("the format 'rttm'", wire.format == "rttm"),
        ("'known_speakers'", wire.known_speakers is not None),
    ):
        if implies and wire.speakers is False:
            raise InvalidRequest(f"{prefix}speakers", f"must not be false with {field}")
        if implies and wire.speakers is None:
            return SpeakerCount()
    return _count(wire.speakers, f"{prefix}speakers")


def _count(wire: bool | _SpeakersWire | None, field: str) -> SpeakerCount | None:
    if wire is None or wire is False:
        return None
    if wire is True:
        return SpeakerCount()
    if wire.exact is not None:
        if wire.min is not None or wire.max is not None:
            raise InvalidRequest(f"{field}.exact", "cannot be combined with 'min' or 'max'")
        return SpeakerCount(wire.exact, wire.exact)
    count = SpeakerCount(wire.min or 1, wire.max or MAX_SPEAKERS)
    if count.min > count.max:
        raise InvalidRequest(f"{field}.min", "must not be greater than 'max'")
    return count


def _clip(wire: _ClipWire | None, prefix: str) -> Clip:
    if wire is None:
        return Clip()
    start = wire.start or 0.0
    if wire.end is not None and wire.end <= start:
        raise InvalidRequest(f"{prefix}clip.end", "must be greater than clip.start")
    return Clip(start, wire.end)


def language_code(value: str | None, field: str) -> str | None:
    """The ISO 639-1 code of a language, None for `auto`. Raises `InvalidRequest` for `field`."""
    if value is None or value.strip().casefold() in language.AUTOMATIC:
        return None
    code = language.code(value)
    if code is None:
        known = [*(name.casefold() for name in language.LANGUAGES.values()), *language.LANGUAGES]
        hint = nearest(value.strip().casefold(), known)
        raise InvalidRequest(field, f"'{echo(value)}' is not a language of the model", hint)
    return code


REQUEST = _RequestWire
"""The type of a request for one recording, for its schema."""
