"""Audio tracks of a recording, and which of them is transcribed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from parakeet_worker import language
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.notices import Notice

Track: TypeAlias = int | str | None
"""A requested track by number, from 1, or by language; None for the default."""

MAX_TRACKS = 32
"""Limit of tracks per recording with `all`."""

_UNDECODABLE = ("none", "unknown")

Flag: TypeAlias = Literal["default", "comment", "visual impaired"]


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """One audio stream, as ffmpeg lists it."""

    number: int
    """Among the audio tracks, from 1."""
    stream: int
    """Among all streams, from 0."""
    codec: str
    language: str | None = None
    flags: frozenset[str] = frozenset()
    many_channels: int | None = None
    """Number of channels without a named layout."""

    @property
    def decodable(self) -> bool:
        """Whether ffmpeg supports the codec."""
        return self.codec not in _UNDECODABLE

    @property
    def secondary(self) -> bool:
        """Whether it is a comment or audio description."""
        return not self.flags.isdisjoint(("comment", "visual impaired"))

    def __str__(self) -> str:
        return f"{self.number} ({self.language})" if self.language else f"{self.number}"


def choose(tracks: Sequence[AudioTrack], requested: Track) -> AudioTrack:
    """The requested track, otherwise the one that a player would play.

    That is the one flagged as default, else the first that is neither a comment nor a description
    for the visually impaired. Raises `InvalidRequest`.
    """
    if requested is not None:
        return _named(tracks, requested)
    known = [track for track in tracks if track.decodable] or tracks
    usual = [track for track in known if not track.secondary] or known
    flagged = [track for track in usual if "default" in track.flags]
    return (flagged or usual)[0]


def _named(tracks: Sequence[AudioTrack], requested: int | str) -> AudioTrack:
    if isinstance(requested, int):
        matches = [track for track in tracks if track.number == requested]
    else:
        matches = [track for track in tracks if _code(track.language) == _code(requested)]
    if matches:
        return matches[0]
    listed = ", ".join(str(track) for track in tracks[:MAX_TRACKS])
    raise InvalidRequest("track", f"no such track; the recording has: {listed}")


def _code(tag: str | None) -> str | None:
    """The code of a supported language, otherwise the tag itself."""
    return tag and (language.code(tag) or tag.strip().casefold())


def notices(tracks: Sequence[AudioTrack], chosen: AudioTrack, requested: Track) -> list[Notice]:
    """Warnings about other tracks if none was requested."""
    if requested is not None:
        return []
    result = skipped(tracks)
    if len(tracks) > 1:
        message = f"the recording has {len(tracks)} audio tracks; track {chosen} was transcribed"
        result.append(Notice("several_tracks", message))
    return result


def skipped(tracks: Sequence[AudioTrack]) -> list[Notice]:
    """Warnings for tracks that cannot be decoded."""
    return [
        Notice("track_skipped", f"the codec of audio track {track} is unknown")
        for track in tracks
        if not track.decodable
    ]
