import html
import json
import math
import re
import subprocess
import zlib
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest

from parakeet_worker import language
from parakeet_worker.audio.decoding import SAMPLE_RATE, find_ffmpeg
from parakeet_worker.engine.base import Hypothesis, Token
from parakeet_worker.formats import render
from parakeet_worker.notices import Notice
from parakeet_worker.options import Format
from parakeet_worker.recognition.chunks import Chunk, SpeechFrames
from parakeet_worker.recognition.transcript import TimedToken, Transcript, Word, join, stitch

FRAME_SECONDS = 0.08
FORMATS = [name for name in get_args(Format) if name != "rttm"]  # which has no words


def transcript_of(
    *placed: tuple[str, int, int, float], seconds: float = 30.0, start_seconds: float = 0.0
) -> Transcript:
    """Pieces with their frame, duration and probability."""
    tokens = tuple(
        Token(piece, frame, duration, math.log(probability))
        for piece, frame, duration, probability in placed
    )
    samples = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
    part = stitch(Chunk(start_seconds, samples), Hypothesis(tokens, FRAME_SECONDS))
    return replace(part, seconds=seconds)


CUT = Notice("audio_cut", "the file is cut off", 1.0, 2.5)
NOISY = Notice("noisy", "x")
SHORT = transcript_of(
    ("▁Hel", 2, 2, 0.9),
    ("lo", 4, 3, 0.8),
    (".", 9, 1, 0.7),
    ("▁You", 20, 4, 0.5),
    ("?", 26, 1, 0.4),
    seconds=4.0,
)

# 600 words in sentences of 9, in three segments, up to the 22nd minute of the recording.
LONG = join(
    [
        transcript_of(
            *(
                piece
                for word in range(200)
                for piece in [
                    (f"▁word{word}" if word % 9 else f"▁Über{word}", 30 * word, 8, 0.9),
                    *([(".", 30 * word + 9, 1, 0.6)] if word % 9 == 8 else []),
                ]
            ),
            seconds=480.0,
            start_seconds=480.0 * part,
        )
        for part in range(3)
    ]
)
AWKWARD = transcript_of(
    ("▁<b>", 0, 4, 0.9), ("▁R&B", 10, 4, 0.9), ("▁-->", 20, 4, 0.9), seconds=3.0
)
EMPTY = transcript_of(seconds=3.0)
TRANSCRIPTS = {"short": SHORT, "long": LONG, "awkward": AWKWARD, "empty": EMPTY}

every_transcript = pytest.mark.parametrize(
    "transcript", TRANSCRIPTS.values(), ids=TRANSCRIPTS.keys()
)

Cue = tuple[float, float, list[str]]


def clock(text: str, mark: str) -> float:
    part = re.fullmatch(rf"(\d\d):([0-5]\d):([0-5]\d){re.escape(mark)}(\d\d\d)", text)
    assert part, text
    hours, minutes, seconds, milliseconds = map(int, part.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def read_block(block: str, mark: str) -> Cue:
    times, *lines = block.split("\n")
    start, arrow, end = times.split(" ")
    assert arrow == "-->"
    assert lines
    assert all(line == line.strip() and line for line in lines)
    return clock(start, mark), clock(end, mark), lines


def checked(cues: list[Cue]) -> list[Cue]:
    for start, end, _ in cues:
        assert start < end
    for (_, end, _), (start, _, _) in pairwise(cues):
        assert end <= start
    return cues


def read_srt(content: str) -> list[Cue]:
    if not content:
        return []
    assert content.endswith("\n\n")
    cues = []
    for number, block in enumerate(content.removesuffix("\n\n").split("\n\n"), start=1):
        head, rest = block.split("\n", 1)
        assert head == str(number)
        cues.append(read_block(rest, ","))
    return checked(cues)


def read_vtt(content: str) -> list[Cue]:
    header, *blocks = content.split("\n\n")
    assert header == "WEBVTT"
    assert blocks.pop() == ""
    cues = [read_block(block, ".") for block in blocks]
    for _, _, lines in cues:
        assert not re.search(r"[<>]|&(?!(amp|lt|gt);)", "".join(lines))
    return checked(
        [(start, end, [html.unescape(line) for line in lines]) for start, end, lines in cues]
    )


def read_tsv(content: str) -> list[Cue]:
    header, *rows = content.removesuffix("\n").split("\n")
    assert header == "start\tend\ttext"
    cells = [row.split("\t") for row in rows]
    return checked([(int(start) / 1000, int(end) / 1000, [text]) for start, end, text in cells])


def words(cues: list[Cue]) -> str:
    return " ".join(line for _, _, lines in cues for line in lines)


def read_text(content: str) -> str:
    assert content.endswith("\n")
    assert content.count("\n") == 1
    return content.removesuffix("\n")


def read_json(content: str) -> str:
    assert content.endswith("}\n")
    return str(json.loads(content)["text"])


READERS: dict[str, Any] = {
    "json": read_json,
    "verbose_json": read_json,
    "text": read_text,
    "srt": lambda content: words(read_srt(content)),
    "vtt": lambda content: words(read_vtt(content)),
    "tsv": lambda content: words(read_tsv(content)),
}


# every format


@pytest.mark.parametrize("format_", FORMATS)
@every_transcript
def test_every_format_is_valid_and_contains_every_word_once(transcript, format_):
    read = READERS[format_](render.render(transcript, format_))
    assert read.strip("\u200b") == transcript.text


@pytest.mark.parametrize("format_", FORMATS)
@every_transcript
def test_every_format_is_a_json_object_with_the_text(transcript, format_):
    document = render.document(transcript, format_)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["text"] == transcript.text
    assert "warnings" not in document


@pytest.mark.parametrize("format_", ["srt", "vtt", "tsv"])
@every_transcript
def test_a_text_format_is_a_field_with_the_content_of_a_file(transcript, format_):
    document = render.document(transcript, format_)
    assert document == {"text": transcript.text, format_: render.render(transcript, format_)}


@pytest.mark.parametrize("format_", FORMATS)
def test_warnings_are_in_every_answer(format_):
    warned = Transcript(SHORT.words, SHORT.seconds, FRAME_SECONDS, (CUT, NOISY))
    document = render.document(warned, format_)
    assert document.pop("warnings") == [
        {"code": "audio_cut", "message": "the file is cut off", "start": 1.0, "end": 2.5},
        {"code": "noisy", "message": "x"},
    ]
    assert document == render.document(SHORT, format_)


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_json_files_contain_warnings_and_unescaped_letters(format_):
    warned = Transcript(LONG.words, LONG.seconds, FRAME_SECONDS, (NOISY,))
    content = render.render(warned, format_)
    assert json.loads(content)["warnings"] == [{"code": "noisy", "message": "x"}]
    assert "Über0" in content


def test_text_is_the_words_and_a_line_end():
    assert render.render(SHORT, "text") == "Hello. You?\n"
    assert render.document(SHORT, "text") == {"text": "Hello. You?"}


# json


def test_json_without_times_is_the_text_alone():
    assert render.document(SHORT, "json") == {"text": "Hello. You?"}
    assert json.loads(render.render(SHORT, "json")) == {"text": "Hello. You?"}


def test_json_with_times_has_nemos_keys():
    assert render.document(SHORT, "json", timestamp=True) == {
        "text": "Hello. You?",
        "timestamps": {
            "word": [
                {"word": "Hello.", "start_offset": 2, "end_offset": 7, "start": 0.16, "end": 0.56},
                {"word": "You?", "start_offset": 20, "end_offset": 24, "start": 1.6, "end": 1.92},
            ],
            "segment": [
                {
                    "segment": "Hello.",
                    "start_offset": 2,
                    "end_offset": 7,
                    "start": 0.16,
                    "end": 0.56,
                },
                {
                    "segment": "You?",
                    "start_offset": 20,
                    "end_offset": 24,
                    "start": 1.6,
                    "end": 1.92,
                },
            ],
            "char": [
                {"char": "Hel", "start_offset": 2, "end_offset": 4, "start": 0.16, "end": 0.32},
                {"char": "lo", "start_offset": 4, "end_offset": 7, "start": 0.32, "end": 0.56},
                {"char": ".", "start_offset": 7, "end_offset": 7, "start": 0.56, "end": 0.56},
                {"char": "You", "start_offset": 20, "end_offset": 24, "start": 1.6, "end": 1.92},
                {"char": "?", "start_offset": 24, "end_offset": 24, "start": 1.92, "end": 1.92},
            ],
        },
    }


def test_times_in_a_file_are_those_of_the_answer():
    content = render.render(SHORT, "json", timestamp=True)
    assert json.loads(content) == render.document(SHORT, "json", timestamp=True)


@every_transcript
def test_offsets_are_whole_frames_and_seconds_are_floats_that_agree(transcript):
    timestamps: Any = render.document(transcript, "json", timestamp=True)["timestamps"]
    assert list(timestamps) == ["word", "segment", "char"]
    for kind, entries in timestamps.items():
        assert bool(entries) == bool(transcript.words)
        for entry in entries:
            assert list(entry) == [kind, "start_offset", "end_offset", "start", "end"]
            assert type(entry["start_offset"]) is type(entry["end_offset"]) is int
            assert type(entry["start"]) is type(entry["end"]) is float
            assert entry["start"] == pytest.approx(entry["start_offset"] * FRAME_SECONDS, abs=1e-3)
            assert entry["end"] == pytest.approx(entry["end_offset"] * FRAME_SECONDS, abs=1e-3)


# verbose_json


def language_of(text: str) -> dict[str, object]:
    part = language.find(text)
    assert part is not None
    return {"language": part.name, "language_probability": round(part.probability, 4)}


def test_verbose_json_is_openais_with_a_confidence():
    document: Any = render.document(SHORT, "verbose_json")
    assert document["language"] == language_of(SHORT.text)["language"]
    sentence = math.log(0.9 * 0.8 * 0.7) / 3
    assert document == {
        "task": "transcribe",
        "language": document["language"],
        "language_probability": document["language_probability"],
        "duration": 4.0,
        "text": "Hello. You?",
        "segments": [
            {
                "id": 0,
                "start": 0.16,
                "end": 0.56,
                "text": "Hello.",
                "seek": 16,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": round(sentence, 4),
                "compression_ratio": round(6 / len(zlib.compress(b"Hello.")), 4),
                **language_of("Hello."),
            },
            {
                "id": 1,
                "start": 1.6,
                "end": 1.92,
                "text": "You?",
                "seek": 160,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": round(math.log(0.5 * 0.4) / 2, 4),
                "compression_ratio": round(4 / len(zlib.compress(b"You?")), 4),
                **language_of("You?"),
            },
        ],
        "words": [
            {
                "word": "Hello.",
                "start": 0.16,
                "end": 0.56,
                "confidence": round(math.exp(sentence), 4),
            },
            {"word": "You?", "start": 1.6, "end": 1.92, "confidence": round(math.sqrt(0.2), 4)},
        ],
        "uncovered": [],
    }


@every_transcript
def test_verbose_json_has_the_types_of_openais(transcript):
    document: Any = render.document(transcript, "verbose_json")
    types = {"task": str, "duration": float, "text": str, "segments": list, "words": list}
    extensions = {"language", "language_probability", "uncovered"}
    assert {key: type(value) for key, value in document.items() if key not in extensions} == types
    assert set(document) == {*types, *extensions}
    assert len(document["words"]) == len(transcript.words)
    assert [segment["id"] for segment in document["segments"]] == list(
        range(len(transcript.sentences))
    )
    for segment in document["segments"]:
        assert {name: type(value) for name, value in segment.items()} == {
            "id": int, "start": float, "end": float, "text": str, "seek": int, "tokens": list,
            "temperature": float, "avg_logprob": float, "compression_ratio": float,
            **{name: type(segment[name]) for name in ("language", "language_probability")},
        }  # fmt: skip
        assert segment["avg_logprob"] <= 0
    for word in document["words"]:
        assert [type(value) for value in word.values()] == [str, float, float, float]
        assert 0 <= word["confidence"] <= 1


# subtitles


def test_srt_is_exactly_this_text():
    assert render.render(SHORT, "srt") == (
        "1\n00:00:00,160 --> 00:00:01,160\nHello.\n\n2\n00:00:01,600 --> 00:00:02,600\nYou?\n\n"
    )


def test_vtt_is_exactly_this_text():
    assert render.render(SHORT, "vtt") == (
        "WEBVTT\n\n00:00:00.160 --> 00:00:01.160\nHello.\n\n00:00:01.600 --> 00:00:02.600\nYou?\n\n"
    )


def test_srt_and_vtt_have_the_same_cues():
    srt = read_srt(render.render(LONG, "srt"))
    assert len(srt) > 60
    assert srt == read_vtt(render.render(LONG, "vtt"))
    assert srt[-1][1] > 22 * 60
    for _, _, lines in srt:
        assert len(lines) <= 2
        assert max(map(len, lines)) <= 42


def test_vtt_escapes_what_would_be_markup_and_srt_does_not():
    assert "&lt;b&gt; R&amp;B --&gt;" in render.render(AWKWARD, "vtt")
    assert "<b> R&B -->" in render.render(AWKWARD, "srt")


def test_without_words_there_is_one_cue_that_shows_nothing():
    """A file without any cue is no subtitle file for ffmpeg and pycaption."""
    assert render.render(EMPTY, "srt") == "1\n00:00:00,000 --> 00:00:00,001\n\u200b\n\n"
    assert render.render(EMPTY, "vtt") == ("WEBVTT\n\n00:00:00.000 --> 00:00:00.001\n\u200b\n\n")
    assert render.render(EMPTY, "tsv") == "start\tend\ttext\n"
    assert render.render(EMPTY, "text") == "\n"


@pytest.mark.parametrize("format_", ["srt", "vtt"])
@every_transcript
def test_ffmpeg_reads_every_subtitle_file(transcript, format_, tmp_path):
    path = tmp_path / f"written.{format_}"
    path.write_text(render.render(transcript, format_), encoding="utf-8")
    command = [find_ffmpeg(), "-v", "error", "-i", path, "-map", "0:s", "-f", "srt", "-"]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_tabs_and_newlines_in_words_are_escaped_in_tsv():
    tokens = (TimedToken("a\tb\nc\\d", 1.0, 2.0, -0.1),)
    transcript_of = Transcript((Word("a\tb\nc\\d", tokens),), seconds=3.0)
    assert render.render(transcript_of, "tsv") == "start\tend\ttext\n1000\t2000\ta\\tb\\nc\\\\d\n"


@pytest.mark.parametrize("start_seconds", [0.0, 1.28, 61.3, 7.777])
def test_offsets_are_the_frames_nearest_to_the_times(start_seconds):
    tokens = [TimedToken("a", start_seconds + 0.08 * n, start_seconds + 0.08 * n, -0.1)
              for n in range(30)]  # fmt: skip
    transcript_of = Transcript(tuple(Word("a", (token,)) for token in tokens), seconds=90.0)
    answer = render.document(transcript_of, "json", timestamp=True)
    for placed in answer["timestamps"]["word"]:
        for edge in ("start", "end"):
            assert abs(placed[edge] - placed[f"{edge}_offset"] * 0.08) <= 0.04 + 1e-9


@pytest.mark.parametrize(
    ("start_seconds", "shown"),
    [
        (0.0, "00:00:00,000"),
        (1.001, "00:00:01,001"),
        (59.9996, "00:01:00,000"),
        (3599.999, "00:59:59,999"),
        (3600.0, "01:00:00,000"),
        (86_399.0, "23:59:59,000"),
    ],
)
def test_clock_times_carry_over_into_minutes_and_hours(start_seconds, shown):
    later = transcript_of(("▁a", 0, 2, 0.5), seconds=1.0, start_seconds=start_seconds)
    assert render.render(later, "srt").startswith(f"1\n{shown} --> ")


# tsv


def test_tsv_has_a_sentence_a_line_in_milliseconds():
    assert render.render(SHORT, "tsv") == "start\tend\ttext\n160\t560\tHello.\n1600\t1920\tYou?\n"


def test_tsv_has_all_sentences():
    rows = read_tsv(render.render(LONG, "tsv"))
    assert [row[2] for row in rows] == [[sentence.text] for sentence in LONG.sentences]


def test_a_segment_has_what_whisper_has_of_it():
    tokens = (Token("▁Hel", 2, 2, -0.1, 7), Token("lo", 4, 3, -0.3, 9), Token(".", 9, 0, -0.2, 2))
    frames = SpeechFrames(0.0, 0, np.full(100, 0.75, dtype=np.float32))
    chunk = Chunk(60.0, np.zeros(32_000, dtype=np.float32), frames=replace(frames, first=1875))
    document: Any = render.verbose_document(stitch(chunk, Hypothesis(tokens, FRAME_SECONDS)))
    (segment,) = document["segments"]
    facts = ("seek", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
    content = b"Hello."
    assert {name: segment[name] for name in facts} == {
        "seek": 6016,
        "tokens": [7, 9, 2],
        "temperature": 0.0,
        "avg_logprob": -0.2,
        "compression_ratio": round(len(content) / len(zlib.compress(content)), 4),
        "no_speech_prob": 0.25,
    }


def test_without_a_detector_a_segment_has_no_probability_of_no_speech():
    document: Any = render.verbose_document(SHORT)
    assert document["segments"]
    assert all("no_speech_prob" not in segment for segment in document["segments"])
