"""Audio tracks of a recording, and which of them is transcribed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from parakeet_worker import language
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.notices import Notice

Track: TypeAlias = int | str | None
"""A track that a request names by number, from 1, or by language; none where it names none."""

MOST_TRACKS = 32
"""Of one recording, transcribed side by side."""

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
    """How many there are, if they have no layout with a name."""

    @property
    def decodable(self) -> bool:
        """Whether ffmpeg knows the codec."""
        return self.codec not in _UNDECODABLE

    @property
    def aside(self) -> bool:
        """Whether it is made for others than most listeners."""
        return not self.flags.isdisjoint(("comment", "visual impaired"))

    def __str__(self) -> str:
        return f"{self.number} ({self.language})" if self.language else f"{self.number}"


def choose(tracks: Sequence[AudioTrack], wanted: Track) -> AudioTrack:
    """The track that is wanted, else the one that a player would play.

    That is the one flagged as default, else the first that is neither a comment nor a description
    for the visually impaired. Raises `InvalidRequest`.
    """
    if wanted is not None:
        return _named(tracks, wanted)
    known = [track for track in tracks if track.decodable] or tracks
    usual = [track for track in known if not track.aside] or known
    flagged = [track for track in usual if "default" in track.flags]
    return (flagged or usual)[0]


def _named(tracks: Sequence[AudioTrack], wanted: int | str) -> AudioTrack:
    if isinstance(wanted, int):
        found = [track for track in tracks if track.number == wanted]
    else:
        found = [track for track in tracks if _code(track.language) == _code(wanted)]
    if found:
        return found[0]
    listed = ", ".join(str(track) for track in tracks[:MOST_TRACKS])
    raise InvalidRequest("track", f"the recording has no such track; there are: {listed}")


def _code(tag: str | None) -> str | None:
    """A language of the model's by its code; another as it is written."""
    return tag and (language.code(tag) or tag.strip().casefold())


def notices(tracks: Sequence[AudioTrack], chosen: AudioTrack, wanted: Track) -> list[Notice]:
    """What the caller should know of the other tracks, if no track is named."""
    if wanted is not None:
        return []
    found = skipped(tracks)
    if len(tracks) > 1:
        message = f"the recording has {len(tracks)} audio tracks; track {chosen} was transcribed"
        found.append(Notice("several_tracks", message))
    return found


def skipped(tracks: Sequence[AudioTrack]) -> list[Notice]:
    """Those that cannot be decoded."""
    return [
        Notice("track_skipped", f"the codec of audio track {track} is unknown")
        for track in tracks
        if not track.decodable
    ]
