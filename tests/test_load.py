"""Thousands of concurrent jobs of every kind: each has one result, with its own words.

Cancelling callers, failing engines, stalling servers and invalid input are mixed with a fixed seed.
"""

import asyncio
import logging
import random
import signal
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import stamina

import recordings
from faulty_worker import TOO_HIGH, FaultyEngine, faulty_pipeline
from job_api import JobApi, running_worker
from loopback import (
    Behaviour,
    WebServer,
    answers,
    drops,
    in_turn,
    redirects,
    sends,
    stalls,
    trickles,
)
from parakeet_worker.entrypoints.queue.main import handler_of
from parakeet_worker.settings import Settings, variable

JOBS = 2_000
JOBS_OF_THE_LOOP = 600
IN_FLIGHT = 64
PATIENCE_SECONDS = 240.0

PITCHES = range(300, 2300, 10)
LIMITS = {
    "concurrency": IN_FLIGHT,
    "allow_private_addresses": True,
    # Long enough for a machine that does much else at the time.
    "stall_timeout_seconds": 10.0,
    # The machine's own may be linked with hundreds of libraries and take ten times as long to
    # start.
    "ffmpeg": Path(imageio_ffmpeg.get_ffmpeg_exe()),
}

Expected: TypeAlias = str | list[str]
"""The words of an answer, or the code of its error; of a list, those of each."""


@dataclass(frozen=True, slots=True)
class Case:
    """A job's input and its expected result."""

    kind: str
    payload: object
    answer: Expected


def text_of(answer: Any) -> Expected:
    """The text, or texts, of the handler's answer."""
    if isinstance(answer, list):
        return [str(text_of(one)) for one in answer]
    if "error" in answer:
        assert "text" not in answer
        return str(answer["error"].partition(": ")[0])
    return str(answer["text"])


def posted(body: Any) -> Expected:
    """The text of an answer in the SDK's format."""
    output = body.get("output", {})
    return text_of({**output, "error": body["error"]} if "error" in body else output)


def encoded(content: bytes) -> str:
    return b64encode(content).decode()


def melody(pitches: list[int], seconds: float = 0.5) -> bytes:
    """A WAV file of tones with rests between them."""
    rest = recordings.silence(0.3)
    parts = [part for hertz in pitches for part in (recordings.tone(hertz, seconds), rest)]
    return recordings.wav(np.concatenate(parts))


class Callers:
    """Draws jobs by chance: most are good, every fifth or so is not."""

    def __init__(self, seed: int, web: WebServer) -> None:
        self.chance = random.Random(seed)  # noqa: S311  # the same every time
        self._web = web
        self.weights: dict[Callable[[], Case], int] = {
            self._inline: 120,
            self._url: 24,
            self._redirected: 4,
            self._trickling: 4,
            self._second_try: 4,
            self._several: 6,
            self._too_high: 2,
            self._stalling: 1,
            self._dropped: 4,
            self._missing: 4,
            self._text: 6,
            self._cut_off: 4,
            self._nonsense: 8,
        }

    def draw(self) -> Case:
        (kind,) = self.chance.choices(list(self.weights), list(self.weights.values()))
        return kind()

    def _words(self) -> tuple[bytes, str]:
        """A recording and its transcript."""
        pitches = self.chance.choices(PITCHES, k=self.chance.choice((1, 1, 1, 2, 3)))
        return melody(pitches), " ".join(f"{hertz}." for hertz in pitches)

    def _at(self, behaviour: Behaviour) -> str:
        return self._web.at(f"/{self.chance.getrandbits(64):x}", behaviour)

    def _inline(self) -> Case:
        content, text = self._words()
        options = self.chance.choice(({}, {"timestamp": True}, {"format": "verbose_json"}))
        return Case("inline", {"audio_base64": encoded(content), **options}, text)

    def _url(self) -> Case:
        content, text = self._words()
        return Case("url", {"audio_url": self._at(sends(content))}, text)

    def _redirected(self) -> Case:
        content, text = self._words()
        return Case(
            "redirected", {"audio_url": self._at(redirects(self._at(sends(content))))}, text
        )

    def _trickling(self) -> Case:
        content, text = self._words()
        slowly = trickles(content, pause_seconds=0.03, step=1 + len(content) // 8)
        return Case("trickling", {"audio_url": self._at(slowly)}, text)

    def _second_try(self) -> Case:
        content, text = self._words()
        first = self.chance.choice((answers(503), drops(), drops(content[:99], len(content))))
        return Case("second try", {"audio_url": self._at(in_turn(first, sends(content)))}, text)

    def _several(self) -> Case:
        recorded = [self._words() for _ in range(self.chance.randint(1, 3))]
        inputs = [{"audio_base64": encoded(content)} for content, _ in recorded]
        expected = [text for _, text in recorded]
        payload = {"inputs": [*inputs, {"audio_base64": "?"}]}
        return Case("several", payload, [*expected, "invalid_request"])

    def _too_high(self) -> Case:
        return Case("too high", {"audio_base64": encoded(melody([TOO_HIGH]))}, "out_of_memory")

    def _stalling(self) -> Case:
        still = stalls(self.chance.choice((b"", b"RIFF")))
        return Case("stalling", {"audio_url": self._at(still)}, "source_unreachable")

    def _dropped(self) -> Case:
        return Case("dropped", {"audio_url": self._at(drops())}, "source_unreachable")

    def _missing(self) -> Case:
        return Case("missing", {"audio_url": self._at(answers(404))}, "source_not_found")

    def _text(self) -> Case:
        content = b"no sound at all; " * self.chance.randint(1, 500)
        return Case("text", {"audio_base64": encoded(content)}, "audio_undecodable")

    def _cut_off(self) -> Case:
        content = melody(self.chance.choices(PITCHES, k=2), seconds=1.5)
        half = content[: len(content) // 2]
        payload = {"audio_base64": encoded(half), "on_damage": "refuse"}
        return Case("cut off", payload, "audio_truncated")

    def _nonsense(self) -> Case:
        payloads: tuple[object, ...] = (
            *(None, "audio", [], {}, {"inputs": []}, {"audio_base64": "?"}),
            {"audio_url": "ftp://127.0.0.1/a.wav"},
            {"audio_url": "http://127.0.0.1/a.wav", "format": "docx"},
        )
        return Case("nonsense", self.chance.choice(payloads), "invalid_request")


@pytest.fixture
def hasty(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Retry failed downloads once without delay, and suppress thousands of warnings."""
    caplog.set_level(logging.CRITICAL)
    with stamina.set_testing(True, attempts=2, cap=True):
        yield


@pytest.mark.usefixtures("hasty")
async def test_each_of_thousands_of_jobs_has_one_result_with_its_own_words(
    tmp_path: Path, web: WebServer, children: Callable[[], list[psutil.Process]]
) -> None:
    callers = Callers(1, web)
    engine = FaultyEngine(seed=1)
    finished: Counter[str] = Counter()
    wrong: list[tuple[Case, Any]] = []
    turns = asyncio.Semaphore(IN_FLIGHT)

    with faulty_pipeline(Settings(scratch=tmp_path, engine="tones", **LIMITS), engine) as pipeline:
        handle = handler_of(pipeline)

        async def call(job: int) -> None:
            async with turns:
                case = callers.draw()
                answer = asyncio.ensure_future(handle({"id": f"{job}", "input": case.payload}))
                if callers.chance.random() < 0.1:
                    await asyncio.wait([answer], timeout=callers.chance.choice((0, 0.01, 0.1)))
                    answer.cancel()
                await asyncio.wait([answer])
                if answer.cancelled():
                    finished["cancelled"] += 1
                elif text_of(answer.result()) == case.answer:
                    finished[case.kind] += 1
                else:
                    wrong.append((case, answer.result()))

        async with asyncio.TaskGroup() as group:
            for job in range(JOBS):
                group.create_task(call(job))
        assert wrong == []
        assert finished.total() == JOBS
        assert len(finished) == 1 + len(callers.weights)
        assert finished["cancelled"] > JOBS // 50
        assert engine.faults > JOBS // 500
        assert not pipeline.batcher.lost
        assert children() == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("hasty")
async def test_a_lost_engine_is_reported_to_every_job(tmp_path: Path, web: WebServer) -> None:
    callers = Callers(2, web)
    settings = Settings(scratch=tmp_path, engine="tones", **LIMITS)
    with faulty_pipeline(settings, FaultyEngine(seed=2, batches=20)) as pipeline:
        handle = handler_of(pipeline)
        cases = [callers.draw() for _ in range(500)]
        jobs = [handle({"id": f"{job}", "input": one.payload}) for job, one in enumerate(cases)]
        results = await asyncio.gather(*jobs)
    counts = Counter()
    for one, answer in zip(cases, results, strict=True):
        expected = one.answer if isinstance(one.answer, list) else [one.answer]
        result = text_of(answer)
        for right, got in zip(
            expected, result if isinstance(result, list) else [result], strict=True
        ):
            assert got in (right, "engine_lost")
        if result == "engine_lost":
            assert isinstance(answer, dict)
            assert answer["refresh_worker"] is True
        counts[str(result) if result == "engine_lost" else "as expected"] += 1
    assert min(counts["engine_lost"], counts["as expected"]) > 20
    assert list(tmp_path.iterdir()) == []


def environment(home: Path) -> dict[str, str]:
    """The same limits for a worker of its own."""
    scratch = home / "scratch"
    scratch.mkdir()
    limits = {variable(field): str(value) for field, value in LIMITS.items()}
    tests = str(Path(__file__).parent)
    return {
        **limits,
        "PARAKEET_ENGINE": "tones",
        "RUNPOD_LOG_LEVEL": "INFO",
        "PARAKEET_SCRATCH": str(scratch),
        "PYTHONPATH": tests,
    }


async def test_the_job_loop_delivers_every_job_once_while_others_are_stopped(
    tmp_path: Path, web: WebServer
) -> None:
    callers = Callers(3, web)
    cases = {f"job-{number}": callers.draw() for number in range(JOBS_OF_THE_LOOP)}
    # Including those that would wait for half a minute: not all have a result by then.
    stopped = [
        job for job in cases if cases[job].kind == "stalling" or callers.chance.random() < 0.05
    ]
    kept = [job for job in cases if job not in stopped]
    with JobApi() as api, (tmp_path / "log").open("w+") as log:
        for job, one in cases.items():
            api.submit(job, one.payload)
        module = ("faulty_worker", "3")
        with running_worker(api, tmp_path, environment(tmp_path), module=module, log=log) as worker:
            for job in stopped:
                await asyncio.to_thread(api.taken, job, PATIENCE_SECONDS)
                api.stop(job)
            assert await asyncio.to_thread(api.answered, kept, PATIENCE_SECONDS)
            worker.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(worker.wait, PATIENCE_SECONDS)
    for job in kept:
        (body,) = api.deliveries[job].bodies
        assert posted(body) == cases[job].answer, (cases[job], body)
    late = [
        posted(body) == cases[job].answer for job in stopped for body in api.deliveries[job].bodies
    ]
    assert all(late)
    # Jobs that stall for half a minute were stopped long before that.
    stalling = [job for job in stopped if cases[job].kind == "stalling"]
    assert stalling
    assert [body for job in stalling for body in api.deliveries[job].bodies] == []
    assert status == 0
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("listed", [False, True])
async def test_a_worker_whose_engine_dies_answers_what_it_took_and_ends(
    tmp_path: Path, web: WebServer, *, listed: bool
) -> None:
    callers = Callers(4, web)
    cases = {f"job-{number}": callers.draw() for number in range(400)}
    with JobApi() as api, (tmp_path / "log").open("w+") as log:
        for job, one in cases.items():
            api.submit(job, {"inputs": [one.payload]} if listed else one.payload)
        module = ("faulty_worker", "4", "10")
        with running_worker(api, tmp_path, environment(tmp_path), module=module, log=log) as worker:
            status = await asyncio.to_thread(worker.wait, PATIENCE_SECONDS)
    taken = [delivery for delivery in api.deliveries.values() if delivery.taken]
    assert IN_FLIGHT <= len(taken) < len(cases)
    assert api.queued == len(cases) - len(taken)
    lost = 0
    for delivery in taken:
        (body,) = delivery.bodies
        if "engine_lost" in str(posted(body)):
            assert body["stopPod"] is True
            lost += 1
    assert lost > 0
    assert status == 1
