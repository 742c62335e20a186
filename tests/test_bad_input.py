"""Any invalid job receives an error with a code, and the worker serves the next one."""

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from loopback import (
    Behaviour,
    S3Server,
    WebServer,
    answers,
    drops,
    redirects,
    sends,
    stalls,
    trickles,
)
from parakeet_worker.answers import answer as answer_to
from parakeet_worker.audio import decoding
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Capacity, Hypothesis, Samples, SynchronousEngine
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.entrypoints.queue.main import handler_of
from parakeet_worker.errors import ParakeetError
from parakeet_worker.options import Format
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Request
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_detectors, open_pipeline
from recordings import cut, encode, noise, silence, tone, wav

pytestmark = pytest.mark.usefixtures("without_waits")

Payload = dict[str, Any]
Children = Callable[[], list[psutil.Process]]


def base64(content: bytes) -> str:
    return b64encode(content).decode()


def good(hertz: int) -> Payload:
    """A job that is transcribed as its pitch."""
    return {"audio_base64": base64(wav(tone(hertz, 0.8)))}


@dataclass(frozen=True)
class Surroundings:
    """Where a bad job's audio lies."""

    web: WebServer
    s3: S3Server
    folder: Path

    def at(self, behaviour: Behaviour) -> Payload:
        return {"audio_url": self.web.at("/talk.wav", behaviour) + "?hush"}

    def encoded(self, name: str, *options: str, share: float = 1.0) -> Payload:
        whole = encode(self.folder / name, *options, samples=tone(440, 5))
        return {"audio_base64": base64(cut(whole, self.folder / f"cut-{name}", share).read_bytes())}


@pytest.fixture
def around(web: WebServer, s3: S3Server, tmp_path: Path) -> Surroundings:
    return Surroundings(web, s3, tmp_path)


@pytest.fixture
def settings(s3: S3Server, tmp_path: Path) -> Settings:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Settings(
        engine="tones",
        scratch=scratch,
        allow_private_addresses=True,
        max_audio_bytes=500_000,
        max_audio_seconds=10,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_endpoint=s3.endpoint,
        s3_bucket=s3.bucket,
    )


@dataclass(frozen=True)
class Case:
    """An invalid job, its expected code, and expected facts."""

    code: str
    payload: Callable[[Surroundings], Payload]
    facts: Payload = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    """What this case needs of the operator."""


GUARDED = {"allow_private_addresses": False}
UNCONFIGURED = {"s3_access_key": None, "s3_secret_key": None}
VIDEO = ("-f", "lavfi", "-i", "color=black:s=64x64:r=5:d=1", "-map", "1:v", "-c:v", "mpeg4")

CASES: dict[str, Case] = {
    "no source": Case("invalid_request", lambda _: {}, {"field": "audio_url"}),
    "two sources": Case(
        "invalid_request",
        lambda _: {**good(440), "audio_url": "https://example.com/a.wav"},
        {"field": "audio_url"},
    ),
    "unknown field": Case(
        "invalid_request",
        lambda _: {**good(440), "timestamps": True},
        {"field": "timestamps", "nearest": "timestamp"},
    ),
    "boolean as string": Case(
        "invalid_request", lambda _: {**good(440), "timestamp": "false"}, {"field": "timestamp"}
    ),
    "number as audio": Case(
        "invalid_request", lambda _: {"audio_base64": 5}, {"field": "audio_base64"}
    ),
    "unknown format": Case(
        "invalid_request", lambda _: {**good(440), "format": "docx"}, {"field": "format"}
    ),
    "backward clip": Case(
        "invalid_request",
        lambda _: {**good(440), "clip": {"start": 2, "end": 1}},
        {"field": "clip.end"},
    ),
    "times in plain text": Case(
        "invalid_request",
        lambda _: {**good(440), "format": "text", "timestamp": True},
        {"field": "timestamp"},
    ),
    "bad base64": Case(
        "invalid_request", lambda _: {"audio_base64": "not base64!"}, {"field": "audio_base64"}
    ),
    "empty base64": Case("audio_empty", lambda _: {"audio_base64": ""}),
    "empty file": Case("audio_empty", lambda around: around.at(sends(b""))),
    "no samples": Case("audio_empty", lambda _: {"audio_base64": base64(wav(silence(0)))}),
    "no audio stream": Case("audio_missing", lambda around: around.encoded("film.mp4", *VIDEO)),
    "truncated": Case(
        "audio_truncated",
        lambda around: {**around.encoded("talk.flac", share=0.5), "on_damage": "refuse"},
        {"declared": 5.0},
    ),
    "text named mp3": Case(
        "audio_undecodable",
        lambda _: {"audio_base64": base64(b"Dear all,\n" * 200), "audio_format": "mp3"},
    ),
    "playlist": Case(
        "audio_undecodable",
        lambda _: {"audio_base64": base64(b"#EXTM3U\n#EXTINF:3,\n/etc/hostname\n")},
    ),
    "0.05 s": Case(
        "audio_too_short",
        lambda _: {"audio_base64": base64(wav(tone(440, 0.05)))},
        {"seconds": 0.05, "minimum": 0.1},
    ),
    "too long": Case(
        "audio_too_long",
        lambda _: {"audio_base64": base64(wav(tone(440, 10.1)))},
        {"limit": 10.0},
    ),
    "clip outside": Case(
        "clip_outside",
        lambda _: {**good(440), "clip": {"start": 5}},
        {"field": "clip.start", "seconds": 0.8},
    ),
    "too large inline": Case(
        "audio_too_large",
        lambda _: {"audio_base64": base64(bytes(500_001))},
        {"limit": 500_000, "bytes": 500_001},
    ),
    "too large": Case(
        "audio_too_large",
        lambda around: around.at(sends(bytes(500_001))),
        {"limit": 500_000, "bytes": 500_001},
    ),
    "no URL": Case("invalid_request", lambda _: {"audio_url": "talk.wav"}, {"field": "audio_url"}),
    "file URL": Case(
        "invalid_request", lambda _: {"audio_url": "file:///etc/hostname"}, {"field": "audio_url"}
    ),
    "unknown host": Case(
        "source_unreachable", lambda _: {"audio_url": f"http://{'a' * 64}.example/a.wav"}
    ),
    "404": Case("source_not_found", lambda around: around.at(answers(404))),
    "403": Case("source_refused", lambda around: around.at(answers(403)), {"status": 403}),
    "503": Case("source_unreachable", lambda around: around.at(answers(503))),
    "dropped": Case("source_unreachable", lambda around: around.at(drops(b"x", declared=9))),
    "stalled": Case(
        "source_unreachable",
        lambda around: around.at(stalls(b"RIFF")),
        {},
        {"stall_timeout_seconds": 0.3},
    ),
    "slow": Case(
        "source_timeout",
        lambda around: around.at(trickles(bytes(5000), 0.05)),
        {"limit": 0.5},
        {"download_timeout_seconds": 0.5},
    ),
    "forbidden address": Case(
        "source_forbidden", lambda around: around.at(sends(b"secret")), {}, GUARDED
    ),
    "redirect to a file": Case(
        "source_forbidden", lambda around: around.at(redirects("file:///etc/hostname"))
    ),
    "no S3 settings": Case(
        "s3_not_configured",
        lambda _: {"audio_s3": {"key": "talk.wav"}},
        {"missing": ["S3_ACCESS_KEY", "S3_SECRET_KEY"]},
        UNCONFIGURED,
    ),
    "missing S3 key": Case(
        "source_not_found",
        lambda around: {"audio_url": f"s3://{around.s3.bucket}/no/such.wav"},
        {"source": "s3://recordings/no/such.wav"},
    ),
}


def check_refusal(answer: object, case: Case, prefix: str = "") -> None:
    """One shape for every refusal: a string with the code in front, the code, and facts."""
    assert isinstance(answer, dict)
    assert isinstance(answer["error"], str)
    assert answer["error"].startswith(f"{case.code}: ")
    assert answer["code"] == case.code
    shown = {**answer, "field": str(answer.get("field")).removeprefix(prefix)}
    assert {name: shown[name] for name in case.facts} == case.facts
    assert "text" not in answer
    assert "hush" not in str(answer)
    assert "Traceback" not in str(answer)


def check_nothing_left(settings: Settings, children: Children) -> None:
    assert list(settings.scratch.iterdir()) == []
    assert children() == []


async def check_ready(pipeline: Pipeline, children: Children) -> None:
    """Nothing is left of the jobs before, and the next one is answered."""
    check_nothing_left(pipeline.settings, children)
    assert await answer_to(pipeline, good(660)) == {"text": "660."}


@pytest.mark.parametrize("name", CASES)
async def test_a_bad_job_gets_its_code_and_the_next_one_its_text(
    name: str, around: Surroundings, settings: Settings, children: Children
) -> None:
    case = CASES[name]
    payload = case.payload(around)
    with open_pipeline(settings.model_copy(update=case.chosen)) as pipeline:
        handle = handler_of(pipeline)
        check_refusal(await handle({"id": "alone", "input": payload}), case)
        await check_ready(pipeline, children)

        listed = {"inputs": [good(440), payload, good(880)]}
        answers = await handle({"id": "listed", "input": listed})
        assert isinstance(answers, list)
        first, bad, last = answers
        check_refusal(bad, case, "inputs[1].")
        assert (first, last) == ({"text": "440."}, {"text": "880."})
        check_nothing_left(settings, children)


@pytest.mark.parametrize(
    "job",
    [{}, {"input": None}, {"input": "talk.wav"}, {"input": []}, {"input": {"inputs": []}}],
    ids=["nothing", "null", "text", "list", "empty list"],
)
async def test_a_job_without_an_object_gets_the_same_shape(
    job: Payload, settings: Settings, children: Children
) -> None:
    with open_pipeline(settings) as pipeline:
        check_refusal(
            await handler_of(pipeline)({"id": "job", **job}), Case("invalid_request", good)
        )
        await check_ready(pipeline, children)


@pytest.mark.parametrize("format_", get_args(Format))
async def test_silence_is_an_empty_text_and_no_error(format_: Format, settings: Settings) -> None:
    payload = {"audio_base64": base64(wav(silence(1))), "format": format_}
    with open_pipeline(settings) as pipeline:
        answer = await handler_of(pipeline)({"input": payload})
    assert isinstance(answer, dict)
    assert answer["text"] == ""
    assert "error" not in answer


async def test_the_noise_of_a_quiet_room_is_an_empty_text(settings: Settings) -> None:
    with open_pipeline(settings) as pipeline:
        answer = await answer_to(pipeline, {"audio_base64": base64(wav(noise(1)))})
    assert answer == {"text": ""}


async def test_a_cut_ogg_file_is_answered_with_a_warning(
    around: Surroundings, settings: Settings
) -> None:
    with open_pipeline(settings) as pipeline:
        answer = await answer_to(pipeline, around.encoded("talk.opus", share=0.8))
    assert isinstance(answer, dict)
    assert answer["text"] == "440."
    assert "cut off" in str(answer["warnings"])


# After any outcome of a job, its folder is deleted and its processes have ended.


async def cancelled(work: "asyncio.Task[Any]") -> None:
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 60)


async def test_a_job_cancelled_while_it_is_fetched_leaves_nothing(
    around: Surroundings, settings: Settings, children: Children
) -> None:
    with open_pipeline(settings) as pipeline:
        job = asyncio.create_task(answer_to(pipeline, around.at(stalls(b"RIFF"))))
        await asyncio.wait_for(around.web.reached.wait(), 10)
        assert len(list(settings.scratch.iterdir())) == 1
        await cancelled(job)
        assert await asyncio.wait_for(around.web.left.wait(), 10)
        await check_ready(pipeline, children)


class Held(SynchronousEngine):
    """An engine that keeps its batch until it is released."""

    def __init__(self) -> None:
        self.decoding = threading.Event()
        self.released = threading.Event()

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.decoding.set()
        self.released.wait(30)
        return ToneEngine().transcribe(batch)

    def close(self) -> None:
        self.released.set()


@pytest.fixture
async def held(settings: Settings) -> AsyncIterator[tuple[Pipeline, Held]]:
    engine = Held()
    try:
        with Batcher(
            engine, capacity=Capacity(60, 512, packed=False), queue_seconds=600
        ) as batcher:
            yield (
                Pipeline(settings, batcher, decoding.find_ffmpeg(), open_detectors(settings)),
                engine,
            )
            engine.released.set()
    finally:
        engine.close()


async def test_a_job_cancelled_during_decoding_leaves_nothing(
    held: tuple[Pipeline, Held], children: Children
) -> None:
    pipeline, engine = held
    job = asyncio.create_task(answer_to(pipeline, good(440)))
    await asyncio.to_thread(engine.decoding.wait, 10)
    assert len(list(pipeline.settings.scratch.iterdir())) == 1
    await cancelled(job)
    assert list(pipeline.settings.scratch.iterdir()) == []
    engine.released.set()
    await check_ready(pipeline, children)


async def test_a_job_cancelled_while_it_is_decoded_leaves_nothing(
    held: tuple[Pipeline, Held], tmp_path: Path, children: Children
) -> None:
    pipeline, engine = held
    path = encode(tmp_path / "long.flac", samples=tone(440, 120))
    patient = pipeline.settings.model_copy(update={"max_audio_seconds": 3600, "segment_seconds": 2})
    slow = Pipeline(patient, pipeline.batcher, pipeline.ffmpeg, pipeline.detector)
    job = asyncio.create_task(slow.transcribe(Request(FileSource(path))))
    await asyncio.to_thread(engine.decoding.wait, 10)
    await asyncio.sleep(0.3)
    assert children() != []
    await cancelled(job)
    assert children() == []
    engine.released.set()
    await check_ready(pipeline, children)


class Broken(SynchronousEngine):
    """An engine with an unexpected failure."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        raise RuntimeError(len(batch))

    def close(self) -> None:
        """There is nothing to give back."""


async def test_a_job_with_an_unknown_failure_leaves_nothing(
    settings: Settings, children: Children
) -> None:
    with Batcher(Broken(), capacity=Capacity(60, 512, packed=False), queue_seconds=600) as batcher:
        pipeline = Pipeline(settings, batcher, decoding.find_ffmpeg(), open_detectors(settings))
        with pytest.raises(ParakeetError):
            await answer_to(pipeline, good(440))
        answer = await handler_of(pipeline)({"input": good(440)})
    assert isinstance(answer, dict)
    assert answer["code"] == "engine_lost"
    assert answer["refresh_worker"] is True
    check_nothing_left(settings, children)


@pytest.mark.parametrize("field", ["language", "format", "audio_url", "\ud800"])
async def test_a_lone_surrogate_costs_its_own_recording_alone(
    field: str, settings: Settings, children: Children
) -> None:
    bad = {**good(440), field: "\ud800"}
    with open_pipeline(settings) as pipeline:
        answers = await handler_of(pipeline)({"input": {"inputs": [good(440), bad, good(880)]}})
        assert isinstance(answers, list)
        first, refused, last = answers
        check_refusal(refused, Case("invalid_request", good))
        json.dumps(refused, ensure_ascii=False).encode()
        assert (first, last) == ({"text": "440."}, {"text": "880."})
        check_nothing_left(settings, children)


@pytest.mark.parametrize("end", [1e8, 1e305, 1.7976931348623157e308])
async def test_a_clip_to_the_largest_number_goes_to_the_end(end: float, settings: Settings) -> None:
    payload = {**good(440), "clip": {"start": 0.2, "end": end}}
    with open_pipeline(settings) as pipeline:
        assert await answer_to(pipeline, payload) == {"text": "440."}


async def test_a_bug_in_one_recording_costs_no_other_its_answer(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def no_detector(vad: str) -> Any:
        if vad == "off":
            raise KeyError("secret")
        return open_detectors(settings)("auto")

    with open_pipeline(settings) as opened:
        pipeline = Pipeline(settings, opened.batcher, opened.ffmpeg, no_detector)
        listed = {"inputs": [good(440), {**good(660), "vad": "off"}, good(880)]}
        answers = await answer_to(pipeline, listed)
    assert isinstance(answers, list)
    first, failed, last = answers
    assert failed == {"error": "internal_error: see the worker's log", "code": "internal_error"}
    assert (first, last) == ({"text": "440."}, {"text": "880."})
    assert "unexpected error in one recording" in caplog.text


async def test_no_more_recordings_are_decoded_at_a_time_than_there_are_places(
    held: tuple[Pipeline, Held], tmp_path: Path, children: Children
) -> None:
    opened, engine = held
    path = encode(tmp_path / "long.flac", samples=tone(440, 300))
    chosen = {"decoders": 2, "max_audio_seconds": 3600, "segment_seconds": 2}
    settings = opened.settings.model_copy(update=chosen)
    pipeline = Pipeline(settings, opened.batcher, opened.ffmpeg, opened.detector)
    work = [asyncio.create_task(pipeline.transcribe(Request(FileSource(path)))) for _ in range(6)]
    await asyncio.to_thread(engine.decoding.wait, 10)
    await asyncio.sleep(0.5)
    assert len(children()) == 2
    engine.released.set()
    for transcript in await asyncio.gather(*work):
        assert transcript.seconds == 300
