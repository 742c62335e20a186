"""Files, folders, patterns, pipes and URLs to recordings, and where each result goes."""

import glob
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from parakeet_worker.options import Format

_AUDIO = frozenset(
    {"aac", "ac3", "adx", "aif", "aiff", "alaw", "amr", "ape", "au", "caf", "dsf", "dss", "dts"}
    | {"flac", "g722", "gsm", "m4a", "m4b", "mka", "mp2", "mp3", "oga", "ogg", "opus", "qoa"}
    | {"sph", "spx", "tta", "ulaw", "voc", "w64", "wav", "wma", "wv"}
)
_VIDEO = frozenset(
    {"3gp", "asf", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv"}
    | {"ts", "webm", "wmv", "wtv"}
)
ENDINGS = _AUDIO | _VIDEO
"""Endings of recordings in folders; a file that is named is taken whatever its ending."""

RESULT_ENDINGS: Mapping[Format, str] = {
    "json": "json",
    "verbose_json": "json",
    "text": "txt",
    "srt": "srt",
    "vtt": "vtt",
    "tsv": "tsv",
    "rttm": "rttm",
}

STDIN = "-"

_WILD = frozenset("*?[")
_SCHEMES = ("http://", "https://", "s3://")
# Descriptors of this process, which ffmpeg's does not have.
_DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


@dataclass(frozen=True, slots=True)
class Recording:
    """An input: a file and its place below the folder that was named, a pipe, or a URL."""

    path: Path
    below: Path = Path()
    url: str | None = None

    @property
    def piped(self) -> bool:
        """Whether it can be read only once: standard input, a FIFO, a device."""
        if self.url is not None:
            return False
        name = str(self.path)
        if name == STDIN or name.startswith(_DESCRIPTORS):
            return True
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return False
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@dataclass(frozen=True, slots=True)
class Task:
    """One recording to transcribe, and a file for each format; none is standard output."""

    recording: Recording
    targets: Mapping[Format, Path]
    copied: Path | None = None
    """The content of a pipe in a file."""

    @property
    def name(self) -> str:
        """The recording as the user named it, printable; a URL without its query."""
        if self.recording.url is not None:
            return redacted(self.recording.url)
        return os.fsencode(self.recording.path).decode(errors="replace")

    @property
    def size(self) -> int:
        """Bytes of the file; 0 if it is none."""
        try:
            return 0 if self.recording.url else self.path.stat().st_size
        except OSError:
            return 0

    @property
    def path(self) -> Path:
        """The file to read."""
        return self.copied or self.recording.path

    @property
    def exists(self) -> bool:
        """False for a file that is missing; of a URL nothing is known."""
        recording = self.recording
        return recording.url is not None or recording.piped or recording.path.is_file()


def redacted(url: str) -> str:
    """The URL without credentials and query, which may hold a signature."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def gather(inputs: Sequence[str | Path]) -> list[Recording]:
    """Files, the recordings in folders, those that match a pattern, `-` for a pipe, and URLs.

    A folder or pattern without recordings is returned as it is, to be reported as missing.
    """
    recordings: list[Recording] = []
    seen: set[Path] = set()
    for name in inputs:
        if str(name).lower().startswith(_SCHEMES):
            recordings.append(Recording(_name_in(str(name)), url=str(name)))
            continue
        path = Path(name)
        if path.is_dir():
            several = _in_folder(path)
        elif _WILD & set(str(path)) and not path.exists():
            several = [Recording(Path(match)) for match in sorted(_matches(str(path)))]
        else:
            recordings.append(Recording(path))
            seen.add(path)
            continue
        fresh = [recording for recording in several if recording.path not in seen]
        seen.update(recording.path for recording in fresh)
        recordings += fresh if several else [Recording(path)]
    return recordings


def _name_in(url: str) -> Path:
    """The last part of the URL's path, else its host, as the name of the results."""
    parts = urlsplit(url)
    last = unquote(parts.path).rstrip("/").rpartition("/")[2].replace("\0", "")
    return Path(last or parts.hostname or "recording")


def _in_folder(folder: Path) -> list[Recording]:
    recordings: list[Recording] = []

    def unreadable(failure: OSError) -> None:
        recordings.append(Recording(Path(str(failure.filename))))

    for where, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder)
        recordings += [
            Recording(Path(where) / name, below) for name in sorted(names) if _is_audio(name)
        ]
    return recordings


def _is_audio(name: str) -> bool:
    ending = Path(name).suffix.lstrip(".").lower()
    return ending in ENDINGS and not name.startswith(".")


def _matches(pattern: str) -> Iterator[str]:
    """Files that match: with an ending in the pattern all of them, else what may be a recording."""
    ending = Path(pattern).suffix
    every = bool(ending) and not _WILD & set(ending)
    for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207  # absolute ones as well
        if Path(name).is_file() and (every or _is_audio(Path(name).name)):
            yield name


def plan_tasks(
    recordings: Sequence[Recording],
    formats: Sequence[Format],
    output: Path | None,
    *,
    alongside: bool = False,
) -> list[Task]:
    """Each recording with unique result files, also on case-insensitive file systems.

    Pipes and URLs have no folder: without `output`, their results go to standard output.
    """
    if output is None and not alongside:
        return [Task(recording, {}) for recording in recordings]
    folders = [
        recording.path.parent if output is None else output / recording.below
        for recording in recordings
    ]
    stems = Counter(
        (folder, recording.path.stem.casefold())
        for folder, recording in zip(folders, recordings, strict=True)
    )
    taken: dict[Path, set[str]] = defaultdict(set)
    tasks = []
    for folder, recording in zip(folders, recordings, strict=True):
        if output is None and (recording.piped or recording.url is not None):
            tasks.append(Task(recording, {}))
            continue
        path = Path("stdin") if recording.piped else recording.path
        names = _names(path, alone=stems[folder, recording.path.stem.casefold()] == 1)
        name = next(name for name in names if name.casefold() not in taken[folder])
        taken[folder].add(name.casefold())
        targets = {format_: folder / f"{name}.{RESULT_ENDINGS[format_]}" for format_ in formats}
        tasks.append(Task(recording, targets))
    return tasks


def _names(path: Path, *, alone: bool) -> Iterator[str]:
    """Names for a result: `talk`, or `talk.mp3` alongside a `talk.wav`, or `talk.mp3-2`."""
    if alone:
        yield path.stem
    yield path.name
    for number in count(2):
        yield f"{path.name}-{number}"
