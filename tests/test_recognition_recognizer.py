"""Chunks at a real batcher, with an engine that reads the words from the samples."""

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Capacity, Hypothesis, Samples, SynchronousEngine, Token
from parakeet_worker.errors import EngineLost, NotFinite, OutOfMemory, Overloaded
from parakeet_worker.recognition.audio_budget import AudioBudget, AudioShare
from parakeet_worker.recognition.chunks import Chunk, Span, split
from parakeet_worker.recognition.recognizer import Recognizer
from parakeet_worker.recognition.transcript import Transcript, join
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.vad.base import FRAME_SAMPLES, Detector, Probabilities

FRAME = 1280
WORD_SAMPLES = 5 * FRAME
PATIENCE_SECONDS = 20.0

ENGLISH = (
    *("the", "weather", "was", "very", "nice", "this", "morning"),
    *("and", "all", "children", "played", "in", "the", "garden"),
)
GERMAN = (
    *("das", "Wetter", "war", "heute", "sehr", "schön", "und"),
    *("alle", "Kinder", "spielten", "lange", "im", "großen", "Garten"),
)

FRENCH = (
    *("le", "temps", "était", "très", "beau", "ce", "matin"),
    *("et", "les", "enfants", "jouaient", "dans", "le", "jardin"),
)


def recording(seconds: float, *message: tuple[float, int]) -> Samples:
    """Silence with words of 0.4 s in it, each a number that is in its peak, at these seconds."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
    for at, number in message:
        begin = round(at * SAMPLE_RATE)
        samples[begin : begin + WORD_SAMPLES] = (100 + number) / 1000
    samples[::2] *= -1
    return samples


def every_second(seconds: int, first: int = 1) -> list[tuple[float, int]]:
    return [(second + 0.32, first + second) for second in range(seconds)]


def read(samples: Samples) -> list[Token]:
    """The numbers in the samples; half of a word is read as another one."""
    peaks = np.abs(samples)
    edges = [*np.flatnonzero(np.diff(peaks, prepend=np.nan)).tolist(), len(samples)]
    tokens: list[Token] = []
    for first, after in pairwise(edges):
        number = round(float(peaks[first]) * 1000) - 100
        half = "" if after - first == WORD_SAMPLES else "?"
        if samples[first]:
            frames = -(-(after - first) // FRAME)
            tokens.append(Token(f"▁{number}{half}", first // FRAME, frames, -0.1))
    return tokens


Decodes = Callable[[Samples, list[Token]], list[Token]]


def everything(_: Samples, tokens: list[Token]) -> list[Token]:
    return tokens


def shorter_than(seconds: float) -> Decodes:
    """Nothing at all in a piece that is longer."""
    return lambda samples, tokens: tokens if len(samples) < seconds * SAMPLE_RATE else []


class Reader(SynchronousEngine):
    """Decodes the words of a chunk that `decodes` selects; blocks until `released` is set.

    Counts the chunks.
    """

    def __init__(self, decodes: Decodes = everything) -> None:
        self.decodes = decodes
        self.pieces: list[Samples] = []
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()

    def transcribe(
        self, batch: Sequence[Samples], _scripts: Sequence[object] = ()
    ) -> list[Hypothesis]:
        self.entered.set()
        assert self.released.wait(PATIENCE_SECONDS)
        self.pieces.extend(batch)
        return [Hypothesis(tuple(self.decodes(piece, read(piece))), 0.08) for piece in batch]

    def close(self) -> None:
        """Nothing to give back."""

    def hold(self) -> None:
        """Block in the next batch."""
        self.entered.clear()
        self.released.clear()

    async def occupied(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_SECONDS)


class Talk(Detector):
    """Takes everything for speech."""

    trusts_silence: ClassVar[bool] = True

    def _detect(self, blocks: Samples) -> Probabilities:
        return np.full(len(blocks) // FRAME_SAMPLES, 0.9, dtype=np.float32)


@contextmanager
def batching(engine: Reader, *, queue_seconds: float = 1000.0) -> Iterator[Batcher]:
    """One piece after the other, so that it is known which comes when."""
    with Batcher(
        engine, capacity=Capacity(0.1, 512, packed=False), queue_seconds=queue_seconds
    ) as batcher:
        try:
            yield batcher
        finally:
            engine.released.set()


def chunk(samples: Samples, start_seconds: float = 0.0) -> Chunk:
    """A chunk with speech from start to end."""
    end_seconds = start_seconds + len(samples) / SAMPLE_RATE
    return Chunk(start_seconds, samples, speech=(Span(start_seconds, end_seconds),))


async def transcribed(
    engine: Reader, chunks: Iterable[Chunk], spoken: str | None = None
) -> Transcript:
    """The transcript of all chunks, submitted together."""
    with (
        batching(engine) as batcher,
        closing(Recognizer(batcher, Stopwatch(), spoken)) as recognizer,
    ):
        for each in chunks:
            recognizer.submit(each)
        return await everything_of(recognizer)


def is_reported(result: Transcript, words: Sequence[tuple[float, int]]) -> bool:
    """Whether these are the words, each once and whole, at their times to a frame."""
    starts = [at for at, _ in words]
    return result.text.split() == [f"{number}" for _, number in words] and [
        word.start_seconds for word in result.words
    ] == pytest.approx(starts, abs=0.081)


# in order


async def test_partials_arrive_in_order_on_the_clock_of_the_recording():
    words = every_second(30)
    whole = recording(30, *words)
    parts = [
        chunk(whole[begin * SAMPLE_RATE : (begin + 3) * SAMPLE_RATE], begin)
        for begin in range(0, 30, 3)
    ]
    engine = Reader()
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        for part in parts:
            recognizer.submit(part)
        partials = [await recognizer.next_partial() for _ in parts]
        assert len(recognizer) == 0
    for part, partial in zip(parts, partials, strict=True):
        assert len(partial.words) == 3
        assert part.start_seconds < partial.words[0].start_seconds
        assert partial.words[-1].end_seconds <= part.end_seconds
    assert is_reported(join(partials), words)
    assert join(partials).stats.chunks == 10


async def test_a_partial_is_ready_when_its_chunk_is_decoded():
    engine = Reader()
    engine.hold()
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        assert not recognizer.ready
        recognizer.submit(chunk(recording(2, (0.4, 1))))
        await engine.occupied()
        assert not recognizer.ready
        engine.released.set()
        await until(lambda: recognizer.ready)
        assert (await recognizer.next_partial()).text == "1"
        assert not recognizer.ready


async def test_what_a_partial_waits_for_can_be_awaited():
    engine = Reader()
    engine.hold()
    first = replace(chunk(recording(2, (0.4, 1))), cut_in_speech=True)
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        assert recognizer.awaited == []
        recognizer.submit(first)
        assert recognizer.awaited == [], "the chunk after the cut is required"
        recognizer.submit(chunk(recording(2, (0.4, 2)), 2.0))
        awaited = recognizer.awaited
        assert len(awaited) == 2
        engine.released.set()
        done, _ = await asyncio.wait(awaited, timeout=PATIENCE_SECONDS)
        assert done == {*awaited}
        assert recognizer.ready
        await recognizer.advance()
        await asyncio.wait(recognizer.awaited, timeout=PATIENCE_SECONDS)
        assert recognizer.ready, "gaps are decoded again"
        assert (await recognizer.next_partial()).text == "1"


@pytest.mark.parametrize(("spoken", "required"), [("de", True), (None, False)])
async def test_the_first_chunk_waits_for_the_next_one_if_its_language_may_be_wrong(
    spoken, required
):
    """Whether it is decoded with its neighbour must not depend on the engine's speed."""
    whole = recording(len(GERMAN), *every_second(len(GERMAN)))
    half = 7 * SAMPLE_RATE
    engine = Reader(translated(9, GERMAN))
    with (
        batching(engine) as batcher,
        closing(Recognizer(batcher, Stopwatch(), spoken)) as recognizer,
    ):
        recognizer.submit(chunk(whole[:half]))
        await until(lambda: len(engine.pieces) == 1)
        await recognizer.advance()
        assert recognizer.ready is not required
        recognizer.submit(chunk(whole[half:], 7.0))
        result = await everything_of(recognizer)
    assert result.text.split() == [*(GERMAN if required else ENGLISH)]


@pytest.mark.parametrize("whose", ["its own", "all recordings'"])
async def test_at_the_limit_of_audio_the_next_partial_is_awaited(whose):
    engine = Reader()
    engine.hold()
    memory = AudioBudget(100 * 64_000 if whose == "its own" else 16 * 64_000)
    share = AudioShare(
        memory, samples=16 * SAMPLE_RATE if whose == "its own" else 100 * SAMPLE_RATE
    )
    with (
        batching(engine) as batcher,
        closing(Recognizer(batcher, Stopwatch(), share=share)) as recognizer,
    ):
        for number in range(1, 16):
            recognizer.submit(chunk(recording(1, (0.4, number)), number))
            assert not recognizer.ready
        recognizer.submit(chunk(recording(1, (0.4, 16)), 16))
        assert recognizer.ready
        assert memory.held_bytes == 16 * 64_000
        engine.released.set()
        assert (await recognizer.next_partial()).text == "1"
        assert memory.held_bytes == 15 * 64_000
        assert AudioShare(memory, samples=1).full is False, "one chunk is always accepted"
    assert memory.held_bytes == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  # set by the engine's thread
            await asyncio.sleep(0.002)


# over cuts_in_speech


def chatter(generator: np.random.Generator, seconds: float) -> list[tuple[float, int]]:
    """Words that follow each other closely, on no grid, and none twice."""
    first = float(generator.uniform(0, 0.3))
    return spaced(first, (float(generator.choice(PAUSES)) for _ in itertools.count()), seconds)


def spaced(first: float, pauses: Iterable[float], seconds: float) -> list[tuple[float, int]]:
    """Words of 0.4 s with these pauses, as far as they fit into `seconds`."""
    starts = itertools.accumulate(pauses, lambda at, pause: at + 0.4 + pause, initial=first)
    fitting = itertools.takewhile(lambda at: at + 0.4 < seconds, starts)
    return [(at, number) for number, at in enumerate(fitting, start=1)]


PAUSES = (0.01, 0.1, 0.4)


@settings(max_examples=12)
@given(
    first=st.floats(0, 0.3),
    pauses=st.lists(st.sampled_from(PAUSES), min_size=20, max_size=20),
    max_seconds=st.sampled_from([5.0, 10.0, 30.0]),
)
async def test_across_cuts_every_word_occurs_once_and_whole(first, pauses, max_seconds):
    words = spaced(first, itertools.cycle(pauses), 70)
    pieces = split([recording(70, *words)], Talk, max_seconds=max_seconds)
    result = await transcribed(Reader(), [*pieces])
    assert is_reported(result, words)
    assert result.stats.cuts_in_speech == result.stats.chunks - 1 > 1
    for word, following in pairwise(result.words):
        assert word.start_seconds <= following.start_seconds


async def test_across_cuts_of_two_channels_every_word_occurs_once_and_whole():
    generator = np.random.default_rng(0)
    sides = [chatter(generator, 40), chatter(generator, 40)]
    both = np.stack([recording(40, *side) for side in sides], axis=1)
    pieces = split(np.array_split(both, 7), Talk, max_seconds=5)
    result = await transcribed(Reader(), [*pieces])
    assert result.stats.cuts_in_speech > 10
    for channel, side in enumerate(sides, start=1):
        texts = [word.text for word in result.of_channel(channel)]
        assert texts == [f"{number}" for _, number in side]
    assert len(result.words) == sum(map(len, sides))


async def test_a_partial_that_ends_in_speech_is_ready_with_its_overlap():
    words = chatter(np.random.default_rng(0), 12)
    pieces = [*split([recording(12, *words)], Talk, max_seconds=10)]
    assert [piece.cut_in_speech for piece in pieces] == [True, False]
    engine = Reader()
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        recognizer.submit(pieces[0])
        await until(lambda: len(engine.pieces) == 1)
        await asyncio.sleep(0.02)
        assert not recognizer.ready
        recognizer.submit(pieces[1])
        await until(lambda: recognizer.ready)
        assert len(engine.pieces) == 3
        result = await everything_of(recognizer)
    assert is_reported(result, words)


# speech without words


def decoded_again_and_reported(result: Transcript) -> tuple[int, int]:
    return result.stats.decoded_again, len(result.uncovered)


async def test_a_chunk_without_words_is_decoded_again():
    words = every_second(20)
    tries = Reader(lambda _, tokens: tokens if len(tries.pieces) > 1 else [])
    result = await transcribed(tries, [chunk(recording(20, *words))])
    assert is_reported(result, words)
    assert decoded_again_and_reported(result) == (1, 0)
    assert len(tries.pieces) == 2


async def test_a_gap_is_decoded_again_alone_and_filled():
    words = every_second(20)

    def drowsy(samples: Samples, tokens: list[Token]) -> list[Token]:
        return tokens if len(samples) < 15 * SAMPLE_RATE else [*tokens[:4], *tokens[-3:]]

    engine = Reader(drowsy)
    result = await transcribed(engine, [chunk(recording(20, *words))])
    assert is_reported(result, words)
    assert decoded_again_and_reported(result) == (1, 0)
    assert [len(piece) / SAMPLE_RATE for piece in engine.pieces] == [
        20,
        # from the end of the fourth word to the beginning of the 18th, and 0.2 s around it
        pytest.approx(17.32 - 3.72 + 0.4, abs=0.2),
    ]


async def test_every_gap_of_a_chunk_is_decoded_again():
    words = every_second(30)
    gaps = {*range(5), *range(12, 16), *range(25, 30)}

    def drowsy(samples: Samples, tokens: list[Token]) -> list[Token]:
        long = len(samples) > 20 * SAMPLE_RATE
        return [token for index, token in enumerate(tokens) if not long or index not in gaps]

    result = await transcribed(Reader(drowsy), [chunk(recording(30, *words), 600.0)])
    assert is_reported(result, [(600 + at, number) for at, number in words])
    assert decoded_again_and_reported(result) == (3, 0)


@pytest.mark.parametrize("neighbours", [False, True])
async def test_a_gap_without_words_is_decoded_a_third_time_from_another_start(
    neighbours,
):
    words = every_second(9)

    def drowsy(_: Samples, tokens: list[Token]) -> list[Token]:
        if len(engine.pieces) == 1:
            return [*tokens[:3], *tokens[-3:]]
        # the half of the neighbour is not one of the gap's words
        return tokens if len(engine.pieces) > 2 else tokens[: int(neighbours)]

    engine = Reader(drowsy)
    result = await transcribed(engine, [chunk(recording(9, *words))])
    assert is_reported(result, words)
    assert decoded_again_and_reported(result) == (1, 0)
    first, second = (len(piece) / SAMPLE_RATE for piece in engine.pieces[1:])
    assert first - second == pytest.approx(0.24, abs=0.081)


async def test_speech_that_remains_without_words_is_reported():
    words = every_second(20)
    engine = Reader(shorter_than(0))
    result = await transcribed(engine, [chunk(recording(20, *words), 100.0)])
    assert result.words == ()
    assert result.uncovered == (Span(100.0, 120.0),)
    assert result.stats.decoded_again == 1
    assert len(engine.pieces) == 2, "it is decoded a second time, and no third time"


async def test_all_gaps_of_a_recording_are_submitted_together():
    """While the engine is at something else, the gaps of both segments and of each are queued."""
    words = every_second(30)

    def drowsy(samples: Samples, tokens: list[Token]) -> list[Token]:
        return tokens if len(samples) < 20 * SAMPLE_RATE else [*tokens[5:12], *tokens[16:25]]

    engine = Reader(drowsy)
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        recognizer.submit(chunk(recording(30, *words)))
        recognizer.submit(chunk(recording(30, *words), 30.0))
        await until(lambda: len(engine.pieces) == 2)
        engine.hold()
        batcher.submit([recording(1)])
        await engine.occupied()
        gaps_seconds = 2 * (5.5 + 4.7 + 5.7)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while batcher.load.waiting_seconds < gaps_seconds - 3:
                await recognizer.advance()
                await asyncio.sleep(0.002)
        assert not recognizer.ready
        engine.released.set()
        result = await everything_of(recognizer)
    assert result.stats.decoded_again == 6
    assert len(result.words) == 60


@pytest.mark.parametrize("seconds", [30, 300])
async def test_at_most_half_of_a_recording_or_a_minute_is_decoded_again(seconds):
    """An engine without words, with speech from start to end."""
    parts = [chunk(recording(30, *every_second(30)), at) for at in range(0, seconds, 30)]
    engine = Reader(shorter_than(0))
    result = await transcribed(engine, parts)
    again = sum(len(piece) for piece in engine.pieces) / SAMPLE_RATE - seconds
    assert 29 <= again <= max(62 + 10, 0.5 * seconds)
    assert sum(span.seconds for span in result.uncovered) == pytest.approx(seconds)


async def test_the_speed_of_the_engine_does_not_change_the_chunks_decoded_again():
    """Half of the words of each chunk are missing, and decoded in second attempts only."""

    def parts() -> list[Chunk]:
        return [chunk(recording(30, *every_second(30)), at) for at in range(0, 600, 30)]

    def drowsy(samples: Samples, tokens: list[Token]) -> list[Token]:
        if len(samples) >= 20 * SAMPLE_RATE:
            return tokens[:20]
        return tokens if round(len(samples) / SAMPLE_RATE, 2) % 0.4 < 0.2 else []

    together = await transcribed(Reader(drowsy), parts())
    engine = Reader(drowsy)
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        partials = []
        for each in parts():
            recognizer.submit(each)
            partials.append(await recognizer.next_partial())
    one_by_one = join(partials)
    assert together.words == one_by_one.words
    assert together.uncovered == one_by_one.uncovered
    assert together.stats == one_by_one.stats


async def test_many_short_spans_of_speech_without_words_are_decoded_again_and_reported():
    words = [(0.32 + 2 * at, at + 1) for at in range(10)]
    speech = tuple(Span(at, at + 0.4) for at, _ in words)
    part = Chunk(0.0, recording(20, *words), speech=speech)
    result = await transcribed(Reader(shorter_than(19)), [part])
    assert is_reported(result, words)
    assert result.stats.decoded_again == 2
    assert result.uncovered == ()
    result = await transcribed(
        Reader(lambda _, tokens: tokens[:1] if len(tokens) == 10 else []), [part]
    )
    assert result.text == "1"
    assert result.uncovered == speech[1:]


@pytest.mark.parametrize("seconds", [0.128, 0.3])
async def test_one_short_span_of_speech_without_a_word_is_decoded_again_and_reported(seconds):
    """Of a word in wind or far below another voice, the detector detects a part only."""
    words = [(0.32, 1), (3.2, 2), (6.4, 3)]
    middle = Span(3.28, 3.28 + seconds)
    part = Chunk(0.0, recording(8, *words), speech=(Span(0.3, 0.75), middle, Span(6.35, 6.85)))
    omitting = Reader(lambda samples, tokens: tokens[::2] if len(samples) > 80_000 else tokens)
    result = await transcribed(omitting, [part])
    assert is_reported(result, words)
    assert decoded_again_and_reported(result) == (1, 0)
    result = await transcribed(Reader(lambda _, tokens: tokens[::2] if tokens[2:] else []), [part])
    assert result.text == "1 3"
    assert result.uncovered == (middle,)


async def test_a_chunk_without_words_is_decoded_again_with_other_samples():
    words = every_second(4)
    whole = recording(4, *words)

    def deaf(samples: Samples, tokens: list[Token]) -> list[Token]:
        """No words for the same samples, like a model that is deterministic."""
        return [] if np.array_equal(samples, whole) else tokens

    result = await transcribed(Reader(deaf), [chunk(whole)])
    assert is_reported(result, words)


async def test_words_that_the_model_is_not_sure_of_are_not_inserted():
    def unsure(_: Samples, tokens: list[Token]) -> list[Token]:
        if len(engine.pieces) == 1:
            return tokens[:2]
        return [replace(token, logprob=-2.0) for token in tokens]

    engine = Reader(unsure)
    result = await transcribed(engine, [chunk(recording(6, *every_second(6)))])
    assert result.text == "1 2"
    assert result.uncovered != ()


async def test_the_rest_of_a_gap_is_reported():
    words = every_second(12)

    def drowsy(_: Samples, tokens: list[Token]) -> list[Token]:
        return tokens[:2] if len(engine.pieces) == 1 else tokens[:3]

    engine = Reader(drowsy)
    result = await transcribed(engine, [chunk(recording(12, *words))])
    assert result.text == "1 2 3 4"
    (left,) = result.uncovered
    assert (left.start_seconds, left.end_seconds) == pytest.approx((3.72, 12), abs=0.081)


@pytest.mark.parametrize(("pause_seconds", "again"), [(0.56, 0), (0.8, 1)])
async def test_a_speaker_may_hesitate_briefly(pause_seconds, again):
    whole = recording(0.8 + pause_seconds, (0.0, 1), (0.4 + pause_seconds, 2))
    result = await transcribed(Reader(), [chunk(whole)])
    assert result.text == "1 2"
    assert decoded_again_and_reported(result) == (again, again)


async def test_without_detected_speech_nothing_is_decoded_again():
    engine = Reader(shorter_than(0))
    result = await transcribed(engine, [Chunk(0.0, recording(20, *every_second(20)))])
    assert result.words == ()
    assert decoded_again_and_reported(result) == (0, 0)
    assert len(engine.pieces) == 1


async def test_gaps_are_detected_on_both_sides_of_a_cut():
    words = chatter(np.random.default_rng(3), 60)

    def drowsy(samples: Samples, tokens: list[Token]) -> list[Token]:
        return tokens if len(samples) < 10 * SAMPLE_RATE else [*tokens[:8], *tokens[-8:]]

    pieces = split([recording(60, *words)], Talk, max_seconds=20)
    result = await transcribed(Reader(drowsy), [*pieces])
    assert is_reported(result, words)
    assert result.stats.cuts_in_speech >= 2
    assert decoded_again_and_reported(result) == (result.stats.chunks, 0)


async def test_words_of_the_overlap_are_not_missing_at_a_cut():
    """The last words before a cut occur in the overlap only, and are not a gap."""
    cut_seconds = 10 * SAMPLE_RATE
    whole = recording(20, *every_second(20))

    def decodes(samples: Samples, tokens: list[Token]) -> list[Token]:
        return tokens[:8] if np.array_equal(samples, whole[:cut_seconds]) else tokens

    overlap = Chunk(7.0, whole[7 * SAMPLE_RATE : 13 * SAMPLE_RATE])
    parts = [
        Chunk(0.0, whole[:cut_seconds], (Span(0.0, 10.0),), cut_in_speech=True),
        Chunk(10.0, whole[cut_seconds:], (Span(10.0, 20.0),), overlap),
    ]
    result = await transcribed(Reader(decodes), parts)
    assert is_reported(result, every_second(20))
    assert decoded_again_and_reported(result) == (0, 0)


async def test_an_overloaded_engine_fails_no_recording_over_optional_chunks():
    engine = Reader(shorter_than(0))
    with (
        batching(engine, queue_seconds=5.0) as batcher,
        closing(Recognizer(batcher, Stopwatch())) as recognizer,
    ):
        recognizer.submit(chunk(recording(4, *every_second(4))))
        await until(lambda: recognizer.ready)
        engine.hold()
        batcher.submit([recording(1)])  # of another recording, in which the engine blocks
        await engine.occupied()
        batcher.submit([recording(5)])
        with pytest.raises(Overloaded):
            batcher.submit([recording(1)])
        result = await recognizer.next_partial()
    assert result.words == ()
    assert result.uncovered == (Span(0.0, 4.0),)


async def test_an_optional_chunk_that_is_not_finite_loses_no_word():
    class Overflowing(Reader):
        def transcribe(self, batch: Sequence[Samples], scripts: Sequence[object] = ()):
            result = super().transcribe(batch, scripts)
            return result if len(self.pieces) == 1 else [NotFinite(1.0) for _ in batch]

    engine = Overflowing(lambda _, tokens: tokens[:1])
    result = await transcribed(engine, [chunk(recording(6, *every_second(6)))])
    assert result.text == "1"
    assert result.uncovered != ()
    assert len(engine.pieces) == 2


async def test_an_optional_chunk_that_is_out_of_memory_loses_no_word():
    def failing(samples: Samples, tokens: list[Token]) -> list[Token]:
        if len(engine.pieces) > 1:
            raise OutOfMemory(len(samples) / SAMPLE_RATE)
        return tokens[:1]

    engine = Reader(failing)
    result = await transcribed(engine, [chunk(recording(6, *every_second(6)))])
    assert result.text == "1"
    assert result.uncovered != ()
    assert len(engine.pieces) == 2


@pytest.mark.parametrize("failure", [OutOfMemory(10.0), NotFinite(1.0)], ids=lambda one: one.code)
async def test_an_overlap_that_fails_alone_loses_no_word(failure):
    """Words entirely on one side of the cut."""

    class Failing(Reader):
        def transcribe(self, batch: Sequence[Samples], scripts: Sequence[object] = ()):
            result = super().transcribe(batch, scripts)
            return [failure if len(each) == len(over) else one
                    for each, one in zip(batch, result, strict=True)]  # fmt: skip

    words = [(0.4, 1), (1.4, 2), (2.4, 3), (3.2, 4)]
    whole = recording(4, *words)
    over = whole[SAMPLE_RATE : 3 * SAMPLE_RATE + FRAME]
    half = 2 * SAMPLE_RATE
    parts = [
        Chunk(0.0, whole[:half], cut_in_speech=True),
        Chunk(2.0, whole[half:-FRAME], overlap=Chunk(1.0, over)),
    ]
    assert is_reported(await transcribed(Failing(), parts), words)


async def test_a_recording_in_progress_is_not_rejected_by_a_full_queue():
    engine = Reader()
    with (
        batching(engine, queue_seconds=5.0) as batcher,
        closing(Recognizer(batcher, Stopwatch())) as started,
        closing(Recognizer(batcher, Stopwatch())) as late,
    ):
        engine.hold()
        started.submit(chunk(recording(2, (0.4, 1))))
        await engine.occupied()
        batcher.submit([recording(5)])
        with pytest.raises(Overloaded):
            late.submit(chunk(recording(2, (0.4, 9))))
        started.submit(chunk(recording(2, (0.4, 2)), 2.0))
        engine.released.set()
        result = await everything_of(started)
    assert result.text == "1 2"


# the account


async def test_the_statistics_contain_the_gain_of_the_quietest_chunk():
    parts = [
        Chunk(float(at), recording(2, (0.4, 1)), raised_decibels=decibels)
        for at, decibels in ((0, 0.0), (2, 26.0), (4, 12.5))
    ]
    result = await transcribed(Reader(), parts)
    assert result.stats.raised_decibels == 26.0
    assert result.stats.chunks == 3


async def test_the_time_at_the_engine_is_on_the_watch():
    watch = Stopwatch()
    with batching(Reader()) as batcher, closing(Recognizer(batcher, watch)) as recognizer:
        recognizer.submit(chunk(recording(2, (0.4, 1))))
        await recognizer.next_partial()
    assert set(watch.seconds) == {"recognize", "total"}


# another language than requested


def translated(seconds: float, longer: Sequence[str]) -> Decodes:
    """English in a piece that is shorter, these words in a longer one."""

    def decodes(samples: Samples, tokens: list[Token]) -> list[Token]:
        language = longer if len(samples) > seconds * SAMPLE_RATE else ENGLISH
        return [
            replace(token, piece=token.piece.replace(number, language[int(number) - 1]))
            for token in tokens
            for number in [token.piece.strip("▁?")]
            if language
        ]

    return decodes


async def test_a_chunk_in_the_wrong_language_is_decoded_again_with_its_neighbour():
    words = every_second(len(GERMAN))
    whole = recording(len(GERMAN), *words)
    half = 7 * SAMPLE_RATE
    parts = [chunk(whole[:half]), chunk(whole[half:], 7.0)]
    result = await transcribed(Reader(translated(9, GERMAN)), parts, "de")
    assert result.text.split() == [*GERMAN]
    assert result.stats.decoded_again == 2
    assert [word.start_seconds for word in result.words] == pytest.approx(
        [at for at, _ in words], abs=0.081
    )
    as_it_is = await transcribed(Reader(translated(9, GERMAN)), parts)
    assert as_it_is.text.split() == [*ENGLISH]


async def test_a_chunk_in_the_wrong_language_is_merged_at_its_cut():
    words = [(0.1 + 0.45 * index, index + 1) for index in range(13)]
    whole = recording(6.4, *words)
    cut_seconds = round(words[7][0] * SAMPLE_RATE) // FRAME * FRAME + FRAME  # in the eighth word
    parts = [
        Chunk(0.0, whole[:cut_seconds], cut_in_speech=True),
        Chunk(cut_seconds / SAMPLE_RATE, whole[cut_seconds:], overlap=Chunk(0.0, whole)),
    ]
    result = await transcribed(Reader(translated(5, GERMAN)), parts, "de")
    assert result.text.split() == [*GERMAN[:13]]


@pytest.mark.parametrize("longer", [FRENCH, ()], ids=["French", "nothing"])
async def test_what_is_not_the_language_the_second_time_either_stays_as_it_was(longer):
    whole = recording(14, *every_second(13))
    parts = [Chunk(0.0, whole[: 7 * SAMPLE_RATE]), Chunk(7.0, whole[7 * SAMPLE_RATE :])]
    result = await transcribed(Reader(translated(9, longer)), parts, "de")
    assert result.text.split() == [*ENGLISH[:13]]


async def test_one_word_of_the_language_is_no_better_than_many_of_another():
    whole = recording(14, *every_second(13))
    parts = [Chunk(0.0, whole[: 7 * SAMPLE_RATE]), Chunk(7.0, whole[7 * SAMPLE_RATE :])]

    def only_yes(samples: Samples, tokens: list[Token]) -> list[Token]:
        messages = translated(9, GERMAN)(samples, tokens)
        return messages if len(samples) < 9 * SAMPLE_RATE else [replace(messages[-1], piece="▁ja")]

    result = await transcribed(Reader(only_yes), parts, "de")
    assert result.text.split() == [*ENGLISH[:13]]


# cancellations and failures


async def test_chunks_that_are_queued_at_close_never_reach_the_engine():
    engine = Reader()
    engine.hold()
    words = chatter(np.random.default_rng(0), 40)
    pieces = split([recording(40, *words)], Talk, max_seconds=5)
    with batching(engine) as batcher:
        with closing(Recognizer(batcher, Stopwatch())) as recognizer:
            for piece in pieces:
                recognizer.submit(piece)
            await engine.occupied()
        await asyncio.sleep(0)
        engine.released.set()
        (after,) = batcher.submit([recording(1, (0.4, 7))])
        hypothesis = await asyncio.wrap_future(after)
    assert [token.piece for token in hypothesis.tokens] == ["▁7"]
    assert len(engine.pieces) == 2, "the one that it was at, and the one after it"


async def test_an_optional_chunk_that_is_cancelled_never_reaches_the_engine():
    engine = Reader(shorter_than(0))
    with batching(engine) as batcher, closing(Recognizer(batcher, Stopwatch())) as recognizer:
        recognizer.submit(chunk(recording(4, *every_second(4))))
        await until(lambda: recognizer.ready)
        engine.hold()
        batcher.submit([recording(1)])
        await engine.occupied()
        running = asyncio.create_task(recognizer.next_partial())
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        engine.released.set()
        (after,) = batcher.submit([recording(1)])
        await asyncio.wrap_future(after)
    assert [len(piece) / SAMPLE_RATE for piece in engine.pieces] == [4, 1, 1]


async def everything_of(recognizer: Recognizer) -> Transcript:
    return join([await recognizer.next_partial() for _ in range(len(recognizer))])


@pytest.fixture
async def messages_of() -> AsyncIterator[list[dict[str, Any]]]:
    """Reports of asyncio about exceptions that are never retrieved."""
    result: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: result.append(context))
    yield result
    loop.set_exception_handler(None)


@pytest.mark.parametrize("fails_at", [1, 3, 4])
async def test_a_failing_engine_is_raised_once_and_no_failure_is_left_unseen(messages_of, fails_at):
    def failing(_: Samples, tokens: list[Token]) -> list[Token]:
        if len(engine.pieces) >= fails_at:
            raise RuntimeError("device-side assert")
        return tokens

    engine = Reader(failing)
    words = chatter(np.random.default_rng(0), 40)
    pieces = [*split([recording(40, *words)], Talk, max_seconds=10)]
    assert sum(piece.overlap is not None for piece in pieces) > 2
    with batching(engine) as batcher:
        with closing(Recognizer(batcher, Stopwatch())) as recognizer:
            for piece in pieces:
                recognizer.submit(piece)
            with pytest.raises(EngineLost, match="device-side assert"):
                await everything_of(recognizer)
        assert batcher.lost
    del recognizer
    await asyncio.sleep(0.02)
    gc.collect()
    await asyncio.sleep(0)
    assert messages_of == []


async def test_a_failure_that_is_not_awaited_is_retrieved_at_close(messages_of):
    def failing(_: Samples, tokens: list[Token]) -> list[Token]:
        raise OutOfMemory(len(tokens))

    with batching(Reader(failing)) as batcher:
        recognizer = Recognizer(batcher, Stopwatch())
        recognizer.submit(chunk(recording(2, (0.4, 1))))
        recognizer.submit(chunk(recording(2, (0.4, 2)), 2.0))
        while not recognizer.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.02)
        recognizer.close()
    del recognizer
    gc.collect()
    await asyncio.sleep(0)
    assert messages_of == []
