"""A transcript to what the caller gets: one function per output format."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeAlias

from parakeet_worker import cues
from parakeet_worker.request import Format
from parakeet_worker.transcript import Sentence, TimedToken, Transcript, Word, mean_logprob

Document: TypeAlias = dict[str, object]


def document(transcript: Transcript, format: Format, *, timestamp: bool = False) -> Document:  # noqa: A002  # the wire's name
    """The answer as a JSON object; `text` is always in it.

    A format that is not JSON stands as one string under its own name, beside `text`.
    """
    if format == "json":
        answer = json_document(transcript, timestamp=timestamp)
    elif format == "verbose_json":
        answer = verbose_document(transcript)
    elif format == "text":
        answer = {"text": transcript.text}
    else:
        answer = {"text": transcript.text, format: _WRITERS[format](transcript)}
    warnings = [*transcript.warnings, *_warnings(transcript)]
    if warnings:
        answer["warnings"] = warnings
    return answer


def _warnings(transcript: Transcript) -> list[str]:
    seconds = sum(span.seconds for span in transcript.uncovered)
    places = ", ".join(f"{span.start_seconds:.1f}" for span in transcript.uncovered)
    return [f"no words were found in {seconds:.1f} s of speech, at {places} s"] * bool(places)


def written(transcript: Transcript, format: Format, *, timestamp: bool = False) -> str:  # noqa: A002  # the wire's name
    """The answer as the content of a file."""
    writer = _WRITERS.get(format)
    if writer is not None:
        return writer(transcript)
    answer = document(transcript, format, timestamp=timestamp)
    return json.dumps(answer, ensure_ascii=False, indent=2) + "\n"


def json_document(transcript: Transcript, *, timestamp: bool) -> Document:
    """`text`, and NeMo's three lists of times if they are asked for."""
    answer: Document = {"text": transcript.text}
    if timestamp:
        frame = transcript.frame_seconds
        answer["timestamps"] = {
            "word": [_nemo("word", word.text, word, frame) for word in transcript.words],
            "segment": [
                _nemo("segment", sentence.text, sentence, frame)
                for sentence in transcript.sentences
            ],
            "char": [
                _nemo("char", token.text, token, frame)
                for word in transcript.words
                for token in word.tokens
            ],
        }
    return answer


def _nemo(
    key: str, text: str, placed: Word | Sentence | TimedToken, frame_seconds: float
) -> Document:
    return {
        key: text,
        "start_offset": round(placed.start_seconds / frame_seconds),
        "end_offset": round(placed.end_seconds / frame_seconds),
        "start": placed.start_seconds,
        "end": placed.end_seconds,
    }


def account(transcript: Transcript) -> Document:
    """How the words were come by, for `debug`."""
    return {
        "audio_seconds": round(transcript.seconds, 3),
        **asdict(transcript.account),
        "uncovered": _spans(transcript),
    }


def _spans(transcript: Transcript) -> list[Document]:
    return [
        {"start": round(span.start_seconds, 3), "end": round(span.end_seconds, 3)}
        for span in transcript.uncovered
    ]


def verbose_document(transcript: Transcript) -> Document:
    """OpenAI's `verbose_json`, with a confidence beside every word."""
    return {
        "task": "transcribe",
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
        "segments": [
            {
                "id": index,
                "start": sentence.start_seconds,
                "end": sentence.end_seconds,
                "text": sentence.text,
                "avg_logprob": round(mean_logprob(sentence.words), 4),
            }
            for index, sentence in enumerate(transcript.sentences)
        ],
        "words": [
            {
                "word": word.text,
                "start": word.start_seconds,
                "end": word.end_seconds,
                "confidence": round(word.confidence, 4),
            }
            for word in transcript.words
        ],
        "uncovered": _spans(transcript),
    }


def text(transcript: Transcript) -> str:
    """The words and nothing else, on one line."""
    return transcript.text + "\n"


def srt(transcript: Transcript) -> str:
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(cue.start_seconds, ',')} --> {_clock(cue.end_seconds, ',')}\n"
        + "\n".join(cue.lines)
        for number, cue in enumerate(cues.cut(transcript.words), start=1)
    ]
    return "".join(block + "\n\n" for block in blocks)


def vtt(transcript: Transcript) -> str:
    """WebVTT subtitles."""
    blocks = [
        f"{_clock(cue.start_seconds, '.')} --> {_clock(cue.end_seconds, '.')}\n"
        + "\n".join(_escaped(line) for line in cue.lines)
        for cue in cues.cut(transcript.words)
    ]
    return "WEBVTT\n\n" + "".join(block + "\n\n" for block in blocks)


def tsv(transcript: Transcript) -> str:
    """One sentence a line: start and end in milliseconds, and the text."""
    lines = [
        f"{round(sentence.start_seconds * 1000)}\t{round(sentence.end_seconds * 1000)}"
        f"\t{sentence.text}\n"
        for sentence in transcript.sentences
    ]
    return "start\tend\ttext\n" + "".join(lines)


_WRITERS: dict[str, Callable[[Transcript], str]] = {
    "text": text,
    "srt": srt,
    "vtt": vtt,
    "tsv": tsv,
}


def _clock(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{decimal_mark}{milliseconds:03d}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
