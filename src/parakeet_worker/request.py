"""Domain types of a request: where the audio is, how to transcribe it and how to answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from parakeet_worker.audio.demuxers import Headerless
from parakeet_worker.errors import InvalidRequest, RequestError
from parakeet_worker.options import (
    Attention,
    Channels,
    CueLimits,
    Format,
    OnDamage,
    SpeakerCount,
    Vad,
)

if TYPE_CHECKING:
    from parakeet_worker.engine.base import Samples  # numpy is not a dependency of the client

MAX_CLIP_SECONDS = 1e8
"""After the end of any recording: a clip with this end has no end."""


@dataclass(frozen=True, slots=True)
class InlineSource:
    """Audio inside the request, as base64 or a base64 data URI."""

    base64: str


@dataclass(frozen=True, slots=True)
class UrlSource:
    """Audio at an http or https URL."""

    url: str


@dataclass(frozen=True, slots=True)
class S3Source:
    """Audio in an S3 bucket; None is the operator's bucket."""

    key: str
    bucket: str | None = None


@dataclass(frozen=True, slots=True)
class FileSource:
    """A local file; from the command line or Python only."""

    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class SamplesSource:
    """Mono samples in memory, at `sample_rate` Hz; from Python only."""

    samples: "Samples"
    """Float32, from -1 to 1."""
    sample_rate: int
    """Samples per second."""


Source: TypeAlias = InlineSource | UrlSource | S3Source | FileSource | SamplesSource


@dataclass(frozen=True, slots=True)
class VoiceEmbedding:
    """An embedding of a voice that was computed before."""

    model: str
    """The embedding network and its weights."""
    values: bytes
    """Numbers in float32, little-endian."""


@dataclass(frozen=True, slots=True)
class KnownSpeaker:
    """A person who may speak in the recording."""

    name: str
    voice: Source | VoiceEmbedding
    """A recording of the person alone, or its embedding."""
    field: str
    """Where in the request it is."""


@dataclass(frozen=True, slots=True)
class UrlOutput:
    """A URL to PUT the answer to, such as a pre-signed one."""

    url: str
    content_type: str | None = None
    """The Content-Type to send, empty for none; None selects one by format."""


@dataclass(frozen=True, slots=True)
class S3Output:
    """An S3 object for the answer; None is the operator's bucket."""

    key: str
    bucket: str | None = None
    content_type: str | None = None
    """As in `UrlOutput`."""


Output: TypeAlias = UrlOutput | S3Output


@dataclass(frozen=True, slots=True)
class Clip:
    """The part of the recording to transcribe."""

    start_seconds: float = 0.0
    """Start of the part to transcribe, in seconds from the start of the recording."""
    end_seconds: float | None = None
    """End of the part, in seconds from the start of the recording; None is its end."""

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds < MAX_CLIP_SECONDS:
            raise InvalidRequest("clip.start", f"must be from 0 to {MAX_CLIP_SECONDS:.0f}")
        if self.end_seconds is not None and not self.end_seconds > self.start_seconds:
            raise InvalidRequest("clip.end", "must be greater than clip.start")
        if self.end_seconds is not None and self.end_seconds >= MAX_CLIP_SECONDS:
            object.__setattr__(self, "end_seconds", None)


@dataclass(frozen=True, slots=True)
class Request:
    """One recording to transcribe, and the options."""

    source: Source
    audio_format: str | None = None
    """The file's type according to the client: a hint for ffmpeg's detection, never trusted."""
    clip: Clip = Clip()
    format: Format = "json"
    timestamp: bool = False
    debug: bool = False
    vad: Vad = "auto"
    """`auto` skips silence and decodes speech without words again; `off` decodes everything and
    cuts by level."""
    attention: Attention = "pieces"
    """`full` decodes the recording as one chunk."""
    channels: Channels = "mix"
    """`separate` transcribes each channel on its own, as in calls with one speaker per channel."""
    track: int | str | None = None
    """An audio track by number, from 1, or language; `all` transcribes each on its own."""
    on_damage: OnDamage = "warn"
    """`refuse` makes missing or damaged audio an error instead of a warning."""
    language: str | None = None
    """One of `language.LANGUAGES`; suppresses tokens of other scripts."""
    speakers: SpeakerCount | None = None
    """How many speakers to label; None labels none."""
    known_speakers: tuple[KnownSpeaker, ...] = ()
    """Only with `speakers`."""
    headerless: Headerless | None = None
    """Sample format of a file without a header."""
    cue_limits: CueLimits = CueLimits()  # noqa: RUF009  # frozen
    """Limits of the cues of `srt` and `vtt`."""


@dataclass(frozen=True, slots=True)
class JobInput:
    """The validated input of a job: one request, or a list that is answered by a list."""

    requests: tuple[Request | RequestError, ...]
    """In a list, an invalid request is represented by its error."""
    listed: bool
    stream: bool = False
    """Send each segment as soon as it is complete."""
    progress: bool = False
    """Report progress."""
    output: Output | None = None
    """Where to store an answer that exceeds the transport's limit."""
