"""End-to-end cases of the queue handler on recorded speech with the demo checkpoint."""

import json
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from loopback import S3Server
from parakeet_worker.audio.decoding import find_ffmpeg
from parakeet_worker.entrypoints.queue.main import Handler, handler_of
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
from speech import SAMPLES, Sample, all_samples, sample

Answer = dict[str, Any]

# The demo checkpoint has a WER of 3.4 % on the long sample.
MAX_LONG_WORD_ERROR_RATE = 0.07


@pytest.fixture
async def handle(tmp_path: Path, s3: S3Server) -> AsyncIterator[Handler]:
    settings = Settings(
        model="demo",
        scratch=tmp_path,
        allow_private_addresses=True,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_endpoint=s3.endpoint,
        s3_bucket=s3.bucket,
    )
    with open_pipeline(settings) as pipeline:
        yield handler_of(pipeline)
    assert list(tmp_path.iterdir()) == [], "nothing is left in the scratch folder"


async def answered(handle: Handler, **job_input: object) -> Answer:
    answer = await handle({"id": "job", "input": job_input})
    assert isinstance(answer, dict)
    return answer


def converted(tmp_path: Path, file: str, ending: str) -> str:
    """A sample in another container, as base64."""
    target = tmp_path / f"converted.{ending}"
    command = [str(find_ffmpeg()), "-loglevel", "error", "-i", str(SAMPLES / file), str(target)]
    subprocess.run(command, check=True)
    content = b64encode(target.read_bytes()).decode()
    target.unlink()
    return content


async def test_base64_wav_input(handle: Handler, tmp_path: Path) -> None:
    content = converted(tmp_path, sample("en").file, "wav")
    assert await answered(handle, audio_base64=content) == {"text": sample("en").text}


async def test_base64_mp3_input(handle: Handler, tmp_path: Path) -> None:
    content = converted(tmp_path, sample("en").file, "mp3")
    assert await answered(handle, audio_base64=content) == {"text": sample("en").text}


async def test_s3_url_input(handle: Handler, s3: S3Server) -> None:
    content = (SAMPLES / sample("de").file).read_bytes()
    s3.put("talks/de.ogg", content)
    expected = {"text": sample("de").text}
    assert await answered(handle, audio_url=s3.presigned("talks/de.ogg")) == expected
    assert await answered(handle, audio_url=f"s3://{s3.bucket}/talks/de.ogg") == expected
    assert await answered(handle, audio_s3={"key": "talks/de.ogg"}) == expected


async def test_timestamp_flag_false(handle: Handler) -> None:
    answer = await answered(handle, audio_base64=sample("en").base64, timestamp=False)
    assert answer == {"text": sample("en").text}


async def test_timestamp_flag_true(handle: Handler) -> None:
    spoken = sample("en")
    answer = await answered(handle, audio_base64=spoken.base64, timestamp=True)
    assert set(answer) == {"text", "timestamps"}
    assert set(answer["timestamps"]) == {"word", "segment", "char"}
    for kind, entries in answer["timestamps"].items():
        assert entries
        for entry in entries:
            assert set(entry) == {kind, "start", "end", "start_offset", "end_offset"}
            assert type(entry[kind]) is str
            assert type(entry["start_offset"]) is type(entry["end_offset"]) is int
            assert entry["start"] == pytest.approx(entry["start_offset"] * 0.08)
            assert entry["end"] == pytest.approx(entry["end_offset"] * 0.08)
            assert 0 <= entry["start"] <= entry["end"] <= spoken.seconds
    words = answer["timestamps"]["word"]
    assert " ".join(word["word"] for word in words) == answer["text"]
    for word, expected in zip(words, spoken.words, strict=True):
        assert word["start"] == pytest.approx(expected["start"], abs=0.2)
        assert word["end"] == pytest.approx(expected["end"], abs=0.3)


async def test_multi_language(handle: Handler) -> None:
    short = [entry for entry in spoken_samples() if entry.seconds < 30]
    assert len({entry.language for entry in short}) == 25
    inputs = [{"audio_base64": entry.base64} for entry in short]
    answers = await handle({"id": "job", "input": {"inputs": inputs}})
    assert isinstance(answers, list)
    texts = {
        entry.language: answer.get("text") for entry, answer in zip(short, answers, strict=True)
    }
    assert texts == {entry.language: entry.text for entry in short}


async def test_long_audio(handle: Handler) -> None:
    (long,) = (entry for entry in spoken_samples() if entry.seconds > 300)
    answer = await answered(handle, audio_base64=long.base64, timestamp=True)
    words = answer["timestamps"]["word"]
    assert word_errors(long.text.split(), answer["text"].split()) <= MAX_LONG_WORD_ERROR_RATE * len(
        long.words
    )
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    assert starts[-1] > 300


async def test_invalid_input(handle: Handler) -> None:
    for job_input in ({}, {"audio_base64": "?"}, {"audio_url": "ftp://host/a.wav"}):
        answer = await answered(handle, **job_input)
        assert answer["error"].startswith("invalid_request: ")
        json.dumps(answer)
    after = await answered(handle, audio_base64=sample("fr").base64)
    assert after == {"text": sample("fr").text}


def spoken_samples() -> list[Sample]:
    return [entry for entry in all_samples() if entry.language]


def word_errors(expected: list[str], texts: list[str]) -> int:
    """Word-level edit distance."""
    row = list(range(len(texts) + 1))
    for at, word in enumerate(expected, start=1):
        before, row[0] = row[0], at
        for other, guess in enumerate(texts, start=1):
            cost = before + (word != guess)
            before, row[other] = row[other], min(cost, row[other] + 1, row[other - 1] + 1)
    return row[-1]
