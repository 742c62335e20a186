"""The Python API: paths, bytes and arrays to transcripts, errors, and threads."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import parakeet_worker
from parakeet_worker import Model, ParakeetError, Transcript, open_model
from parakeet_worker.errors import (
    AudioEmpty,
    AudioTooLong,
    AudioTooShort,
    AudioUndecodable,
    ClipOutside,
    InvalidRequest,
    InvalidSetting,
    SourceNotFound,
    WeightsMissing,
)
from programs import logging_ffmpeg
from recordings import encode, silence, tone, wav

TALK = np.concatenate([tone(440, 1.6), silence(0.8), tone(880, 1.6), silence(0.4)])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def model(scratch: Path) -> Iterator[Model]:
    with open_model(engine="tones", scratch=scratch, max_audio_seconds=120.0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_file_is_left(scratch: Path) -> Iterator[None]:
    yield
    assert list(scratch.iterdir()) == []


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(TALK))
    return path


def test_a_path_is_transcribed(model, talk):
    transcript = model.transcribe(talk)
    assert isinstance(transcript, Transcript)
    assert transcript.text == "440. 880."
    assert transcript.seconds == pytest.approx(4.4)


def test_a_string_is_a_path_and_bytes_are_the_content_of_a_file(model, talk):
    transcript = model.transcribe(talk)
    assert model.transcribe(str(talk)) == transcript
    assert model.transcribe(talk.read_bytes()) == transcript


def test_bytes_may_be_of_any_format(model, tmp_path):
    content = encode(tmp_path / "talk.mp3", samples=TALK).read_bytes()
    assert model.transcribe(content).text == "440. 880."


def test_audio_without_a_header_is_transcribed_with_its_format(model, tmp_path):
    path = tmp_path / "talk.ul"
    encode(path, "-ar", "8000", "-f", "mulaw", samples=TALK)
    assert model.transcribe(path, audio_format="ulaw").text == "440. 880."
    assert model.transcribe(path.read_bytes(), audio_format="ulaw:4000").text == "220. 440."


def test_an_array_is_transcribed_exactly(model):
    transcript = model.transcribe(TALK)
    assert transcript.text == "440. 880."
    assert [(word.start_seconds, word.end_seconds) for word in transcript.words] == [
        (0.0, 1.6),
        (2.4, 4.0),
    ]
    assert transcript == model.transcribe(TALK.astype(np.float64))
    assert transcript == model.transcribe(np.repeat(TALK, 2)[::2])


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_an_array_at_another_rate_is_resampled(model, rate):
    samples = np.concatenate([tone(440, 1.6, rate), silence(0.8, rate), tone(880, 1.6, rate)])
    transcript = model.transcribe(samples, sample_rate=rate)
    assert transcript.text == "440. 880."
    assert transcript.seconds == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        ({"start_seconds": 2.0}, "880."),
        ({"end_seconds": 2.0}, "440."),
        ({"start_seconds": 0.8, "end_seconds": 3.2}, "440. 880."),
        ({"start_seconds": 1.76, "end_seconds": 2.24}, ""),
    ],
)
def test_times_of_a_clip_are_those_of_the_recording(model, clip, text):
    transcript = model.transcribe(TALK, **clip)
    assert transcript.text == text
    for word in transcript.words:
        assert word.start_seconds >= clip.get("start_seconds", 0)
        assert word.end_seconds <= clip.get("end_seconds", 4.4)
    if text == "880.":
        assert transcript.words[0].start_seconds == pytest.approx(2.4, abs=0.08)


def test_a_clip_of_a_file_and_of_bytes_is_the_clip_of_the_array(model, talk):
    clip = {"start_seconds": 0.8, "end_seconds": 3.2}
    transcript = model.transcribe(talk, **clip)
    assert transcript.text == "440. 880."
    assert model.transcribe(talk.read_bytes(), **clip).words == transcript.words


def test_concurrent_threads_get_their_own_transcripts(model, tmp_path):
    texts: dict[int, str] = {}

    def caller(number: int) -> None:
        samples = tone(200 + 50 * number, 1.0)
        if number % 3 == 0:
            texts[number] = model.transcribe(samples).text
        elif number % 3 == 1:
            texts[number] = model.transcribe(wav(samples)).text
        else:
            path = tmp_path / f"{number}.wav"
            path.write_bytes(wav(samples))
            texts[number] = model.transcribe(path).text

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == {number: f"{200 + 50 * number}." for number in range(12)}


@pytest.mark.parametrize(
    ("audio", "options", "error"),
    [
        (b"", {}, AudioEmpty),
        (b"not audio", {}, AudioUndecodable),
        (np.zeros(0, dtype=np.float32), {}, AudioEmpty),
        (tone(440, 0.05), {}, AudioTooShort),
        (silence(121), {}, AudioTooLong),
        (TALK, {"start_seconds": 10.0}, ClipOutside),
        (TALK.reshape(2, -1), {}, InvalidRequest),
        ((TALK * 32_767).astype(np.int16), {}, InvalidRequest),
        ([0.0, 0.1], {}, InvalidRequest),
        (TALK, {"sample_rate": 0}, InvalidRequest),
        (TALK, {"audio_format": "f32le:16000"}, InvalidRequest),
        (wav(TALK), {"audio_format": "s16le"}, InvalidRequest),
        (TALK, {"start_seconds": -1.0}, InvalidRequest),
        (TALK, {"start_seconds": float("nan")}, InvalidRequest),
        (TALK, {"start_seconds": 2.0, "end_seconds": 1.0}, InvalidRequest),
    ],
)
def test_unusable_audio_is_rejected_with_a_coded_error(model, audio, options, error):
    with pytest.raises(error) as raised:
        model.transcribe(audio, **options)
    assert isinstance(raised.value, ParakeetError)


def test_the_model_is_usable_after_an_error(model):
    with pytest.raises(AudioUndecodable):
        model.transcribe(b"not audio")
    assert model.transcribe(TALK).text == "440. 880."


def test_a_missing_path_is_source_not_found(model, tmp_path):
    with pytest.raises(SourceNotFound):
        model.transcribe(tmp_path / "none.wav")


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"concurency": 4}])
def test_an_invalid_setting_is_named(settings):
    with pytest.raises(InvalidSetting, match="PARAKEET_CONC"), open_model("demo", **settings):
        pass


def test_a_missing_model_is_an_error(tmp_path):
    with pytest.raises(WeightsMissing), open_model(str(tmp_path / "none.nemo")):
        pass


@pytest.mark.parametrize(("precision", "sample_format"), [("double", "dblp"), ("single", "fltp")])
def test_ffmpeg_resamples_in_the_precision_of_the_settings(
    scratch, tmp_path, precision, sample_format
):
    ffmpeg, log = logging_ffmpeg(tmp_path)
    settings = {"engine": "tones", "scratch": scratch, "resampling_precision": precision}
    with open_model(ffmpeg=ffmpeg, **settings) as opened:
        opened.transcribe(encode(tmp_path / "talk.flac", samples=TALK))
    assert f"-internal_sample_fmt {sample_format} " in log.read_text()


def test_closing_a_model_ends_its_threads(scratch):
    before = set(threading.enumerate())
    with open_model(engine="tones", scratch=scratch):
        inside = {thread.name for thread in set(threading.enumerate()) - before}
    after = {thread.name for thread in set(threading.enumerate()) - before}
    assert {"engine", "pipeline"} <= inside
    assert not {"engine", "pipeline"} & after


def test_an_exception_inside_the_block_closes_the_model(scratch):
    before = set(threading.enumerate())
    with pytest.raises(LookupError), open_model(engine="tones", scratch=scratch):
        raise LookupError
    after = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {"engine", "pipeline"} & after


def test_environment_variables_are_ignored():
    program = (
        "from parakeet_worker import open_model\n"
        "with open_model(engine='tones') as model:\n"
        "    print(model._pipeline.settings.concurrency)\n"
    )
    environment = {**os.environ, "PARAKEET_CONCURRENCY": "99", "PARAKEET_MODLE": "demo"}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True
    )
    assert ran.stdout == b"16\n"


def test_a_transcript_is_rendered_in_any_format(model):
    transcript = model.transcribe(TALK)
    assert transcript.to("srt").startswith("1\n00:00:00,000 --> ")
    assert "440.\n\n2\n" in transcript.to("srt", max_line_characters=10, max_cue_seconds=1)
    with pytest.raises(ParakeetError, match="max_lines"):
        transcript.to("text", max_lines=1)
    assert transcript.to("text") == "440. 880.\n"


def test_the_public_names_are_complete():
    for name in parakeet_worker._HOMES:
        assert getattr(parakeet_worker, name).__name__ == name
    assert sorted(parakeet_worker.__all__) == sorted(["__version__", *parakeet_worker._HOMES])
    with pytest.raises(AttributeError):
        _ = parakeet_worker.transcribe
