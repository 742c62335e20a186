"""Recordings with transcripts, in the layouts of public speech corpora.

A NeMo manifest (JSON lines) or a JSON list; a CSV or TSV with a head, as Common Voice's; FLEURS'
TSV, which has none; a folder of LibriSpeech's `*.trans.txt`, or of recordings with a `.txt` each.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.language import LANGUAGES

_AUDIO = ("audio_filepath", "audio", "path", "file", "file_name")
_TEXT = ("text", "sentence", "transcription", "transcript")
_LANGUAGE = ("language", "lang", "locale")
_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
# FLEURS' columns before the ones that count characters and samples.
_FLEURS = ("id", "file_name", "raw_transcription", "transcription")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording and its transcript."""

    audio: Path
    text: str
    language: str | None
    """The primary subtag of the set's language tag, such as `sv` or `mul`; None without one."""


class Unreadable(SystemExit):
    """A set that is not laid out in a way that is known; its text is the message."""


def read(place: Path) -> tuple[Utterance, ...]:
    """The utterances of a folder or of a manifest; raises `Unreadable`."""
    if place.is_dir():
        utterances = tuple(_of_folder(place))
    elif place.is_file():
        utterances = tuple(_of_row(place, row) for row in _rows(place))
    else:
        raise Unreadable(f"{place}: no such file or folder")
    if not utterances:
        raise Unreadable(f"{place}: no transcripts in it")
    return utterances


def _rows(manifest: Path) -> Iterable[Mapping[str, object]]:
    """The manifest's rows by column."""
    content = manifest.read_text(encoding="utf-8-sig")
    if manifest.suffix in (".json", ".jsonl"):
        listed = content.lstrip().startswith("[")
        lines = [line for line in content.splitlines() if line.strip()]
        rows: list[Mapping[str, object]]
        rows = json.loads(content) if listed else [json.loads(line) for line in lines]
        return rows
    if manifest.suffix == ".tsv":
        # Common Voice and FLEURS do not quote cells; quotation marks are literal.
        cells = csv.reader(content.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    elif manifest.suffix == ".csv":
        cells = csv.reader(content.splitlines(keepends=True))
    else:
        raise Unreadable(f"{manifest}: neither .json, .jsonl, .csv nor .tsv")
    return _by_column(list(cells))


def _by_column(rows: Sequence[Sequence[str]]) -> Iterator[Mapping[str, object]]:
    """Rows under their head; without a head that is known they are taken for FLEURS'."""
    head = rows[0] if rows and set(rows[0]) & set(_AUDIO) else None
    for row in rows[1:] if head else rows:
        yield dict(zip(head or _FLEURS, row, strict=False))


def _of_row(manifest: Path, row: Mapping[str, object]) -> Utterance:
    name, text = _first(row, _AUDIO), _first(row, _TEXT)
    if not name or text is None:
        raise Unreadable(f"{manifest}: a row without audio or without text: {dict(row)}")
    tag = _first(row, _LANGUAGE)
    language = _code(tag) if tag else _of_folders(manifest)
    return Utterance(_found(manifest, name), text, language)


def _first(row: Mapping[str, object], names: Sequence[str]) -> str | None:
    values = (row[name] for name in names if row.get(name) is not None)
    return next((str(value) for value in values), None)


def _found(manifest: Path, name: str) -> Path:
    """Find an audio file next to the manifest, or in the folders of Common Voice and FLEURS."""
    folder, split = manifest.parent, manifest.stem
    places = (folder, folder / "clips", folder / "audio" / split, folder / "audio", folder / split)
    paths = [place / name for place in places]
    for path in paths:
        if path.is_file():
            return path
    raise Unreadable(f"{manifest}: no such audio: {paths[0]}")


def _code(tag: str) -> str:
    """`sv` of `sv`, `sv-SE` or `sv_se`."""
    return tag.lower().replace("_", "-").partition("-")[0]


def _of_folders(path: Path) -> str | None:
    """The language that the nearest folder is named for, as `de_de` or `de`."""
    names = [folder.name for folder in path.absolute().parents]
    tags = (name for name in names if re.fullmatch(r"[a-z]{2}([-_]\w{2,3})?", name))
    return next((_code(tag) for tag in tags if _code(tag) in LANGUAGES), None)


def _of_folder(folder: Path) -> Iterator[Utterance]:
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield Utterance(_recording(transcripts.with_name(name)), text, _of_folders(transcripts))
    for transcript in sorted(folder.rglob("*.txt")):
        audio = _audio_next_to(transcript.with_suffix(""))
        if audio is not None:
            text = transcript.read_text(encoding="utf-8").strip()
            yield Utterance(audio, text, _of_folders(transcript))


def _recording(stem: Path) -> Path:
    audio = _audio_next_to(stem)
    if audio is None:
        raise Unreadable(f"no such audio: {stem}{{{','.join(_SUFFIXES)}}}")
    return audio


def _audio_next_to(stem: Path) -> Path | None:
    """The recording of this name, whatever its format; a dot in the name belongs to it."""
    paths = (stem.with_name(stem.name + suffix) for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
