"""A transcript to what the caller gets: one function per output format."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TypeAlias

from parakeet_worker import language
from parakeet_worker.audio.decoding import Origin
from parakeet_worker.formats import cues
from parakeet_worker.formats.cues import Cue
from parakeet_worker.notices import Notice, limited
from parakeet_worker.options import Format
from parakeet_worker.recognition.transcript import (
    Sentence,
    TimedToken,
    Transcript,
    Word,
    mean_logprob,
)

Document: TypeAlias = dict[str, object]

_NO_WORDS = Cue(0.0, 0.001, ("\N{ZERO WIDTH SPACE}",))


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
    if found := warnings(transcript):
        answer["warnings"] = [warning.document() for warning in found]
    return answer


def warnings(transcript: Transcript) -> tuple[Notice, ...]:
    """What the caller should know about words that may be missing."""
    return limited((*transcript.warnings, *_without_words(transcript)))


def _without_words(transcript: Transcript) -> list[Notice]:
    return [
        Notice(
            "speech_without_words",
            f"no words were found in {span.seconds:.1f} s of speech, at {span.start_seconds:.1f} s",
            span.start_seconds,
            span.end_seconds,
        )
        for span in transcript.uncovered
    ]


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
            "word": [
                {**_nemo("word", word.text, word, frame), **_channel(word)}
                for word in transcript.words
            ],
            "segment": [
                {**_nemo("segment", sentence.text, sentence, frame), **_channel(sentence)}
                for sentence in transcript.sentences
            ],
            "char": [
                {**_nemo("char", token.text, token, frame), **_channel(word)}
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


def _channel(said: Word | Sentence) -> Document:
    return {} if said.channel is None else {"channel": said.channel}


def debug_facts(transcript: Transcript) -> Document:
    """How the words were come by, for `debug`."""
    return {
        "audio_seconds": round(transcript.seconds, 3),
        **asdict(transcript.stats),
        "uncovered": _spans(transcript),
        "decoded": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(transcript.origin or Origin()).items()
        },
    }


def _spoken(words: Iterable[Word]) -> Document:
    """The language of the words, as a name like OpenAI's, and how sure that is."""
    found = language.find(" ".join(word.text for word in words))
    if found is None:
        return {"language": None, "language_probability": None}
    return {
        "language": found.name,
        "language_probability": round(found.probability, 4),
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
        **_spoken(transcript.words),
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
        "segments": [
            _segment(index, sentence) for index, sentence in enumerate(transcript.sentences)
        ],
        "words": [_word(word) for word in transcript.words],
        "uncovered": _spans(transcript),
    }


def segments(sentences: Sequence[Sentence], first_id: int) -> list[Document]:
    """Sentences as they are streamed: `verbose_json`'s segments, each with its words."""
    return [
        {**_segment(index, sentence), "words": [_word(word) for word in sentence.words]}
        for index, sentence in enumerate(sentences, start=first_id)
    ]


def _segment(index: int, sentence: Sentence) -> Document:
    return {
        "id": index,
        "start": sentence.start_seconds,
        "end": sentence.end_seconds,
        "text": sentence.text,
        "avg_logprob": round(mean_logprob(sentence.words), 4),
        **_spoken(sentence.words),
        **_channel(sentence),
    }


def _word(word: Word) -> Document:
    return {
        "word": word.text,
        "start": word.start_seconds,
        "end": word.end_seconds,
        "confidence": round(word.confidence, 4),
        **_channel(word),
    }


def text(transcript: Transcript) -> str:
    """The words and nothing else, on one line."""
    return transcript.text + "\n"


def srt(transcript: Transcript) -> str:
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(cue.start_seconds, ',')} --> {_clock(cue.end_seconds, ',')}\n"
        + _label(channel, "[Channel {}] ")
        + "\n".join(cue.lines)
        for number, (channel, cue) in enumerate(_cues(transcript), start=1)
    ]
    return "".join(block + "\n\n" for block in blocks)


def vtt(transcript: Transcript) -> str:
    """WebVTT subtitles."""
    blocks = [
        f"{_clock(cue.start_seconds, '.')} --> {_clock(cue.end_seconds, '.')}\n"
        + _label(channel, "<v Channel {}>")
        + "\n".join(_escaped(line) for line in cue.lines)
        for channel, cue in _cues(transcript)
    ]
    return "WEBVTT\n\n" + "".join(block + "\n\n" for block in blocks)


def _cues(transcript: Transcript) -> list[tuple[int | None, Cue]]:
    """With their channels, in the order in which they are shown."""
    found = [
        (channel, cue)
        for channel in transcript.channels or (None,)
        for cue in cues.cut(transcript.of_channel(channel))
    ]
    # A file without any cue is none that players know as subtitles.
    return sorted(found, key=lambda shown: shown[1].start_seconds) or [(None, _NO_WORDS)]


def _label(channel: int | None, form: str) -> str:
    return "" if channel is None else form.format(channel)


_TSV_CHANNEL = "{}\t"


def tsv(transcript: Transcript) -> str:
    """One sentence a line: start and end in milliseconds, the channel if there are, the text."""
    apart = "channel\t" if transcript.channels else ""
    lines = [
        f"{round(sentence.start_seconds * 1000)}\t{round(sentence.end_seconds * 1000)}"
        f"\t{_label(sentence.channel, _TSV_CHANNEL)}{_on_one_line(sentence.text)}\n"
        for sentence in transcript.sentences
    ]
    return f"start\tend\t{apart}text\n" + "".join(lines)


def _on_one_line(text: str) -> str:
    """What would end a field or a line, as backslash sequences."""
    return text.translate(_TSV_ESCAPES)


_TSV_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


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
