"""Folders and globs to recordings, and where each result goes."""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_AUDIO = frozenset(
    {"aac", "ac3", "aif", "aiff", "amr", "ape", "au", "caf", "flac", "m4a", "m4b", "mka", "mp2"}
    | {"mp3", "oga", "ogg", "opus", "spx", "wav", "wma"}
)
_VIDEO = frozenset(
    {"3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm"}
    | {"wmv"}
)
ENDINGS = _AUDIO | _VIDEO
"""What is taken for a recording in a folder; a file that is named is taken whatever its ending."""

_WILD = frozenset("*?[")
_RESULT_ENDINGS = {"text": "txt", "verbose_json": "json"}


@dataclass(frozen=True, slots=True)
class Recording:
    """A file, and where it was found below the folder that was named."""

    path: Path
    below: Path = Path()


@dataclass(frozen=True, slots=True)
class Task:
    """One file to transcribe, and where its result goes; None is standard output."""

    path: Path
    target: Path | None

    @property
    def name(self) -> str:
        """The file as the user named it, in letters that can be printed."""
        return os.fsencode(self.path).decode(errors="replace")

    @property
    def size(self) -> int:
        """Bytes of the file, if it is one."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def gather(given: Sequence[Path]) -> list[Recording]:
    """Files as they are named, those in folders, and those that a pattern means.

    A folder or pattern without recordings stands for itself, and will be told as missing.
    """
    found: list[Recording] = []
    seen: set[Path] = set()
    for path in given:
        if path.is_dir():
            several = _in_folder(path)
        elif _WILD & set(str(path)) and not path.exists():
            several = [Recording(Path(name)) for name in sorted(_meant(str(path)))]
        else:
            found.append(Recording(path))
            seen.add(path)
            continue
        fresh = [recording for recording in several if recording.path not in seen]
        seen.update(recording.path for recording in fresh)
        found += fresh if several else [Recording(path)]
    return found


def _in_folder(folder: Path) -> list[Recording]:
    found: list[Recording] = []

    def unreadable(failure: OSError) -> None:
        found.append(Recording(Path(str(failure.filename))))

    for where, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder)
        found += [Recording(Path(where) / name, below) for name in sorted(names) if _sounds(name)]
    return found


def _sounds(name: str) -> bool:
    ending = Path(name).suffix.lstrip(".").lower()
    return ending in ENDINGS and not name.startswith(".")


def _meant(pattern: str) -> Iterator[str]:
    """What the pattern means: with an ending in it all of that, else what may be a recording."""
    ending = Path(pattern).suffix
    every = bool(ending) and not _WILD & set(ending)
    for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207  # absolute ones as well
        if Path(name).is_file() and (every or _sounds(Path(name).name)):
            yield name


def plan_tasks(
    recordings: Sequence[Recording], format_: str, output: Path | None, *, beside: bool = False
) -> list[Task]:
    """Where each result goes: no two to one place, not even where case makes no difference."""
    if output is None and not beside:
        return [Task(recording.path, None) for recording in recordings]
    ending = _RESULT_ENDINGS.get(format_, format_)
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
        path = recording.path
        names = _names(path, alone=stems[folder, path.stem.casefold()] == 1)
        name = next(name for name in names if name.casefold() not in taken[folder])
        taken[folder].add(name.casefold())
        tasks.append(Task(path, folder / f"{name}.{ending}"))
    return tasks


def _names(path: Path, *, alone: bool) -> Iterator[str]:
    """What the result may be called: `talk`, or `talk.mp3` beside a `talk.wav`, or `talk.mp3-2`."""
    if alone:
        yield path.stem
    yield path.name
    for number in count(2):
        yield f"{path.name}-{number}"
