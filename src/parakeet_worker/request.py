"""Domain types of a request: where the audio is, how to transcribe it and how to answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from parakeet_worker.audio.demuxers import Headerless
from parakeet_worker.errors import InvalidRequest, RequestError
from parakeet_worker.options import Attention, Channels, Format, OnDamage, Vad

if TYPE_CHECKING:
    from parakeet_worker.engine.base import Samples  # numpy is not a dependency of the client

MAX_CLIP_SECONDS = 1e8
"""Later than the end of any recording: a clip that ends there has no end."""


@dataclass(frozen=True, slots=True)
class InlineSource:
    """Audio inside the request, as base64 or a base64 data URI."""

    base64: str


@dataclass(frozen=True, slots=True)
class UrlSource:
    """Audio behind http or https."""

    url: str


@dataclass(frozen=True, slots=True)
class S3Source:
    """Audio in an S3 bucket; the operator's bucket if none is named."""

    key: str
    bucket: str | None = None


@dataclass(frozen=True, slots=True)
class FileSource:
    """Audio on this machine; the command line and Python make it, the wire cannot."""

    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class SamplesSource:
    """Audio in memory, mono at `sample_rate`; Python makes it, the wire cannot."""

    samples: "Samples"
    sample_rate: int


Source: TypeAlias = InlineSource | UrlSource | S3Source | FileSource | SamplesSource


@dataclass(frozen=True, slots=True)
class UrlOutput:
    """An address that takes the answer by PUT, as a pre-signed URL does."""

    url: str
    content_type: str | None = None
    """The Content-Type to send, empty for none; None is what fits the answer."""


@dataclass(frozen=True, slots=True)
class S3Output:
    """A place for the answer in an S3 bucket; the operator's bucket if none is named."""

    key: str
    bucket: str | None = None
    content_type: str | None = None
    """The same as of a `UrlOutput`."""


Output: TypeAlias = UrlOutput | S3Output


@dataclass(frozen=True, slots=True)
class Clip:
    """The part of the recording that is wanted, in seconds from its start."""

    start_seconds: float = 0.0
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds < MAX_CLIP_SECONDS:
            raise InvalidRequest("clip.start", f"must be from 0 to {MAX_CLIP_SECONDS:.0f}")
        if self.end_seconds is not None and not self.end_seconds > self.start_seconds:
            raise InvalidRequest("clip.end", "must be greater than clip.start")
        if self.end_seconds is not None and self.end_seconds >= MAX_CLIP_SECONDS:
            object.__setattr__(self, "end_seconds", None)


@dataclass(frozen=True, slots=True)
class Request:
    """One recording to transcribe, and how to answer."""

    source: Source
    audio_format: str | None = None
    """What the caller says the file is: a hint to ffmpeg's own detection, never trusted."""
    clip: Clip = Clip()
    format: Format = "json"
    timestamp: bool = False
    debug: bool = False
    vad: Vad = "auto"
    """`auto` leaves silence out and looks for words wherever someone speaks; `off` listens to
    everything and cuts by energy."""
    attention: Attention = "pieces"
    """`full` hears the recording in one piece."""
    channels: Channels = "mix"
    """`separate` hears each channel by itself, as in calls with one speaker on each."""
    track: int | str | None = None
    """Of several audio tracks the one with that number, from 1, or language; `all` hears each."""
    on_damage: OnDamage = "warn"
    """`refuse` makes an error of what would be a warning: a part that is missing or damaged."""
    language: str | None = None
    """One of `language.LANGUAGES`: no word in another script is heard."""
    headerless: Headerless | None = None
    """How samples lie in a file without a header, which no detection could know."""


@dataclass(frozen=True, slots=True)
class JobInput:
    """What one job asks for: one request, or a list that is answered as a list."""

    requests: tuple[Request | RequestError, ...]
    """In a list, a request that cannot be read stands as its error and stops no other."""
    listed: bool
    stream: bool = False
    """Segments are wanted as they are done, before the whole."""
    progress: bool = False
    """The caller wants to be told how far it is."""
    output: Output | None = None
    """Where an answer goes that is too large for the door it came through."""
