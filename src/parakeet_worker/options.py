"""The values that the options of a request may have, for every surface that offers them."""

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, TypedDict

Format: TypeAlias = Literal["json", "verbose_json", "text", "srt", "vtt", "tsv", "rttm"]
Vad: TypeAlias = Literal["auto", "off"]
Attention: TypeAlias = Literal["pieces", "full"]
Channels: TypeAlias = Literal["mix", "separate"]
OnDamage: TypeAlias = Literal["warn", "refuse"]

CUE_FORMATS: tuple[Format, ...] = ("srt", "vtt")
"""The formats that are subtitles."""

ALL_TRACKS = "all"
"""Value of `track` that transcribes every track."""


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """Options of a request that concern decoding, for decoding before upload."""

    audio_format: str | None = None
    channels: Channels = "mix"
    track: int | str | None = None
    on_damage: OnDamage = "warn"


MAX_SPEAKERS = 20
"""Speakers of one recording."""

MAX_KNOWN_SPEAKERS = 50
"""Known speakers of one request."""

MIN_REFERENCE_SECONDS = 2.0
"""Shortest recording of a known speaker's voice."""

MAX_REFERENCE_SECONDS = 30.0
"""Longest recording of a known speaker's voice."""

MAX_REFERENCE_BYTES = 16 << 20
"""Largest recording of a known speaker's voice: 30 s without compression at 96 kHz, 24 bit."""


@dataclass(frozen=True, slots=True)
class SpeakerCount:
    """How many speakers a recording may have."""

    min: int = 1
    max: int = MAX_SPEAKERS


@dataclass(frozen=True, slots=True)
class CueLimits:
    """Limits of each cue of `srt` and `vtt`."""

    max_line_characters: int = 42
    max_lines: int = 2
    max_characters_per_second: float = 17.0
    """A cue that exceeds it is shown longer, up to `max_cue_seconds` or the next cue."""
    max_cue_seconds: float = 7.0


CUE_LIMITS = tuple(field.name for field in fields(CueLimits))


class CueLimitKeywords(TypedDict, total=False):
    """`CueLimits` as keyword arguments; None is the default."""

    max_line_characters: int | None
    max_lines: int | None
    max_characters_per_second: float | None
    max_cue_seconds: float | None
