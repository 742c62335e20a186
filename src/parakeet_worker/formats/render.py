"""One function per output format."""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TypeAlias

from parakeet_worker import language
from parakeet_worker.audio.decoding import Origin
from parakeet_worker.formats import cues
from parakeet_worker.formats.cues import Cue
from parakeet_worker.notices import Notice, limited
from parakeet_worker.options import CueLimits, Format
from parakeet_worker.recognition.transcript import (
    Sentence,
    TimedToken,
    Transcript,
    Word,
    mean_logprob,
    spoken_by,
)

Document: TypeAlias = dict[str, object]

_NO_WORDS = Cue(0.0, 0.001, ("\N{ZERO WIDTH SPACE}",))


def document(
    transcript: Transcript,
    format: Format,  # noqa: A002  # the wire's name
    *,
    timestamp: bool = False,
    limits: CueLimits = CueLimits(),  # noqa: B008  # frozen
) -> Document:
    """The answer as a JSON object, which always contains `text`.

    A format that is not JSON is one string, in a field with the name of the format.
    """
    if format == "json":
        answer = json_document(transcript, timestamp=timestamp)
    elif format == "verbose_json":
        answer = verbose_document(transcript)
    elif format == "text":
        answer = {"text": transcript.text}
    else:
        answer = {"text": transcript.text, format: _content(transcript, format, limits)}
    if notices := warnings(transcript):
        answer["warnings"] = [notice.document() for notice in notices]
    return answer


def warnings(transcript: Transcript) -> tuple[Notice, ...]:
    """Warnings about missing or damaged audio, and about speech without words."""
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


def render(
    transcript: Transcript,
    format: Format,  # noqa: A002  # the wire's name
    *,
    timestamp: bool = False,
    limits: CueLimits = CueLimits(),  # noqa: B008  # frozen
) -> str:
    """The answer as the content of a file."""
    if format in _SUBTITLES or format in _WRITERS:
        return _content(transcript, format, limits)
    answer = document(transcript, format, timestamp=timestamp)
    return json.dumps(answer, ensure_ascii=False, indent=2) + "\n"


def _content(transcript: Transcript, format_: Format, limits: CueLimits) -> str:
    if format_ in _SUBTITLES:
        return _SUBTITLES[format_](transcript, limits)
    return _WRITERS[format_](transcript)


def json_document(transcript: Transcript, *, timestamp: bool) -> Document:
    """`text`; with `timestamp`, also NeMo's three lists of times."""
    answer: Document = {"text": transcript.text}
    if timestamp:
        frame = transcript.frame_seconds
        answer["timestamps"] = {
            "word": [
                {**_nemo("word", word.text, word, frame), **_channel(word), **_speaker(word)}
                for word in transcript.words
            ],
            "segment": [
                {
                    **_nemo("segment", sentence.text, sentence, frame),
                    **_channel(sentence),
                    **_name(sentence),
                }
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


def _channel(part: Word | Sentence) -> Document:
    return {} if part.channel is None else {"channel": part.channel}


def _speaker(word: Word) -> Document:
    if word.speaker is None:
        return {}
    overlap: Document = {"overlap": True} if word.speaker.overlap else {}
    return {
        "speaker": word.speaker.name,
        "speaker_confidence": word.speaker.confidence,
        **overlap,
    }


def _name(sentence: Sentence) -> Document:
    return {} if sentence.speaker is None else {"speaker": sentence.speaker}


def debug_facts(transcript: Transcript) -> Document:
    """Statistics and properties of the decoded audio, for `debug`."""
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
    """The identified language, by the name that OpenAI uses, and its probability."""
    spoken = language.find(" ".join(word.text for word in words))
    if spoken is None:
        return {"language": None, "language_probability": None}
    return {
        "language": spoken.name,
        "language_probability": round(spoken.probability, 4),
    }


def _spans(transcript: Transcript) -> list[Document]:
    return [
        {"start": round(span.start_seconds, 3), "end": round(span.end_seconds, 3)}
        for span in transcript.uncovered
    ]


def verbose_document(transcript: Transcript) -> Document:
    """OpenAI's `verbose_json`, with a confidence for every word."""
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
    """Sentences of a stream: segments of `verbose_json`, each with its words."""
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
        "seek": round(100 * sentence.start_seconds),
        "tokens": [
            number for word in sentence.words for token in word.tokens for number in token.ids
        ],
        "temperature": 0.0,
        "avg_logprob": round(mean_logprob(sentence.words), 4),
        "compression_ratio": _compression(sentence.text),
        **_no_speech(sentence.words),
        **_spoken(sentence.words),
        **_channel(sentence),
        **_name(sentence),
    }


def _compression(text: str) -> float:
    """Whisper's measure of repetition: bytes of the text per byte after zlib compression."""
    content = text.encode()
    return round(len(content) / len(zlib.compress(content)), 4)


def _no_speech(words: Sequence[Word]) -> Document:
    """The detector's mean probability of no speech over the words; nothing without a detector."""
    weighted = [
        (word.end_seconds - word.start_seconds, word.speech_probability)
        for word in words
        if word.speech_probability is not None
    ]
    seconds = sum(each for each, _ in weighted)
    if not seconds:
        return {}
    speech = sum(each * probability for each, probability in weighted) / seconds
    return {"no_speech_prob": round(min(max(1.0 - speech, 0.0), 1.0), 4)}


def _word(word: Word) -> Document:
    return {
        "word": word.text,
        "start": word.start_seconds,
        "end": word.end_seconds,
        "confidence": round(word.confidence, 4),
        **_channel(word),
        **_speaker(word),
    }


def text(transcript: Transcript) -> str:
    """The text, with a final newline."""
    return transcript.text + "\n"


def srt(transcript: Transcript, limits: CueLimits = CueLimits()) -> str:  # noqa: B008  # frozen
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(cue.start_seconds, ',')} --> {_clock(cue.end_seconds, ',')}\n"
        + _label(label, "[{}] ")
        + "\n".join(cue.lines)
        for number, (label, cue) in enumerate(_cues(transcript, limits), start=1)
    ]
    return "".join(block + "\n\n" for block in blocks)


def vtt(transcript: Transcript, limits: CueLimits = CueLimits()) -> str:  # noqa: B008  # frozen
    """WebVTT subtitles."""
    blocks = [
        f"{_clock(cue.start_seconds, '.')} --> {_clock(cue.end_seconds, '.')}\n"
        + _label(_escaped(label), "<v {}>")
        + "\n".join(_escaped(line) for line in cue.lines)
        for label, cue in _cues(transcript, limits)
    ]
    return "WEBVTT\n\n" + "".join(block + "\n\n" for block in blocks)


def _cues(transcript: Transcript, limits: CueLimits) -> list[tuple[str, Cue]]:
    """Labels and cues, in order of time."""
    shown = [
        (label, cue)
        for channel in transcript.channels or (None,)
        for label, words in groupby(transcript.of_channel(channel), key=spoken_by)
        for cue in cues.cut(list(words), limits)
    ]
    # Players do not recognize a file without cues as subtitles.
    return sorted(shown, key=lambda each: each[1].start_seconds) or [("", _NO_WORDS)]


def _label(label: str, form: str) -> str:
    return form.format(label) if label else ""


def tsv(transcript: Transcript) -> str:
    """One sentence per line: start and end in milliseconds, channel, speaker, and the text.

    Channel and speaker are columns only if the transcript has them.
    """
    channel = "channel\t" if transcript.channels else ""
    channel += "speaker\t" if transcript.speakers else ""
    lines = [
        f"{round(sentence.start_seconds * 1000)}\t{round(sentence.end_seconds * 1000)}"
        f"\t{_columns(transcript, sentence)}{_on_one_line(sentence.text)}\n"
        for sentence in transcript.sentences
    ]
    return f"start\tend\t{channel}text\n" + "".join(lines)


def _columns(transcript: Transcript, sentence: Sentence) -> str:
    channel = f"{sentence.channel}\t" if transcript.channels else ""
    return channel + (f"{_on_one_line(sentence.speaker or '')}\t" if transcript.speakers else "")


def rttm(transcript: Transcript) -> str:
    """Speaker turns in NIST's Rich Transcription Time Marked format; spaces become underscores."""
    return "".join(
        f"SPEAKER recording {turn.channel or 1} {turn.start_seconds:.3f} "
        f"{turn.end_seconds - turn.start_seconds:.3f} <NA> <NA> "
        f"{'_'.join(turn.speaker.split())} {turn.confidence:.4f} <NA>\n"
        for turn in transcript.turns
    )


def _on_one_line(text: str) -> str:
    """Tabs, newlines and backslashes as escape sequences."""
    return text.translate(_TSV_ESCAPES)


_TSV_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


_SUBTITLES: dict[str, Callable[[Transcript, CueLimits], str]] = {"srt": srt, "vtt": vtt}
_WRITERS: dict[str, Callable[[Transcript], str]] = {
    "text": text,
    "tsv": tsv,
    "rttm": rttm,
}


def _clock(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{decimal_mark}{milliseconds:03d}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
