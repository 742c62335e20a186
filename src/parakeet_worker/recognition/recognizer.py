"""One recording's chunks at the engine: submits, merges, and decodes gaps again."""

import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from parakeet_worker import language, threads
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.errors import NotFinite, OutOfMemory, Overloaded
from parakeet_worker.recognition import overlaps, transcript
from parakeet_worker.recognition.audio_budget import AudioBudget, AudioShare
from parakeet_worker.recognition.chunks import Chunk, Span
from parakeet_worker.recognition.gaps import Gap, credible_words, fill, find_gaps, reported_spans
from parakeet_worker.recognition.transcript import DecodingStats, Transcript, Word
from parakeet_worker.stopwatch import Stopwatch

# A gap is decoded again with a margin on both sides. Where the model emits no token, shifting the
# start often helps.
_MARGIN_SECONDS = 0.2
_SHIFTS_SECONDS = (0.0, 0.24)
_WHOLE_CHUNK_SHIFT_SECONDS = 0.06

# Language identification needs this many words.
_MIN_LANGUAGE_WORDS = 4
_MIN_LANGUAGE_PROBABILITY = 0.9
_MIN_KEPT_WORDS_SHARE = 0.7
_CONTEXT_SAMPLES = 30 * SAMPLE_RATE

# Limits of decoding again, for first and second attempts: a share of the audio decoded so far, but
# at least the given seconds, because a recording may consist of one or two chunks.
_REDECODE_SHARES = (0.4, 0.1)
_REDECODE_MIN_SECONDS = (62.0, 10.0)

PendingHypothesis = asyncio.Future[Hypothesis]

_Order = tuple[asyncio.Future[None] | None, asyncio.Future[None]]
"""Future to await before second attempts are chosen, and future to resolve afterwards."""


class _RedecodeBudget:
    """Seconds of one recording that may be decoded again, at one of the attempts.

    Taken in the recording's order, so that the answer does not depend on the engine's speed.
    """

    def __init__(self, share: float, min_seconds: float) -> None:
        self._share = share
        self._min_seconds = min_seconds
        self._taken_seconds = 0.0

    def take(self, seconds: float, decoded_seconds: float) -> bool:
        """Take `seconds` if the budget allows it, given `decoded_seconds` up to this position."""
        limit_seconds = max(self._min_seconds, self._share * decoded_seconds)
        fits = self._taken_seconds + seconds <= limit_seconds
        self._taken_seconds += seconds * fits
        return fits


class _Pending:
    """A chunk at the engine, and its transcript as soon as it is available."""

    def __init__(self, chunk: Chunk, hypotheses: list[PendingHypothesis]) -> None:
        self.chunk = chunk
        self.hypotheses = hypotheses
        """Of the chunk, then of its overlap if it has one."""
        self.transcript: Transcript | None = None
        self.unmerged: Transcript | None = None
        """The transcript before it was merged with other chunks'."""
        self.gaps: Sequence[Gap] | None = None
        """Gaps of `unmerged`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    """A chunk whose transcript is complete as soon as its gaps are decoded again."""

    chunk: Chunk
    transcript: "asyncio.Future[Transcript]"


class Recognizer:
    """Takes chunks and returns partial transcripts in order.

    Words are built in threads; the event loop only passes data on.
    """

    def __init__(
        self,
        batcher: Batcher,
        watch: Stopwatch,
        language_code: str | None = None,
        *,
        share: AudioShare | None = None,
    ) -> None:
        """`language_code`: the language that the request names."""
        self._batcher = batcher
        self._watch = watch
        self._language = language_code
        self._script = None if language_code is None else language.script(language_code)
        self._share = share or AudioShare(AudioBudget(sys.maxsize), samples=sys.maxsize)
        self._decoded_seconds = 0.0
        self._redecode_budgets = [*map(_RedecodeBudget, _REDECODE_SHARES, _REDECODE_MIN_SECONDS)]
        self._chosen: asyncio.Future[None] | None = None
        """Resolved when the latest chunk with gaps has chosen its second attempts."""
        self._pending: deque[_Pending] = deque()
        self._results: deque[_Result] = deque()
        """The chunks before the pending ones."""
        self._admitted = False
        self._previous: dict[int | None, Chunk] = {}
        """The chunk before the first pending one, by channel."""
        self._covered_until: dict[int | None, float] = {}
        """End of the last word before the first pending chunk, by channel."""

    def submit(self, chunk: Chunk) -> None:
        """Queue a chunk and its overlap.

        Raises `EngineLost`, and `Overloaded` for the first chunk of a recording only: a recording
        in progress is never rejected halfway.
        """
        parts = [chunk.samples]
        if chunk.overlap is not None:
            parts.append(chunk.overlap.samples)
        self._pending.append(_Pending(chunk, self._submitted(parts, admitted=self._admitted)))
        self._share.acquire(chunk)
        self._admitted = True

    def __len__(self) -> int:
        return len(self._results) + len(self._pending)

    @property
    def ready(self) -> bool:
        """Whether to take the next partial now: it is done, or the audio limit is reached."""
        if self._results:
            return self._results[0].transcript.done() or self._share.full
        if not self._pending or not self._complete:
            return False
        return self._decoded or self._share.full

    @property
    def _complete(self) -> bool:
        """Whether the chunk has been submitted that the first pending one may require.

        It is merged with that chunk, or decoded with it if its language is wrong.
        """
        chunk = self._pending[0].chunk
        may_require_context = self._language is not None and chunk.channel not in self._previous
        requires_following = chunk.cut_in_speech or may_require_context
        return not requires_following or self._following() is not None

    @property
    def awaited(self) -> Sequence[asyncio.Future[Any]]:
        """What the next partial waits for; empty if it requires another chunk."""
        if self._results:
            return [self._results[0].transcript]
        return self._hypotheses if self._pending and self._complete else []

    @property
    def _decoded(self) -> bool:
        return all(hypothesis.done() for hypothesis in self._hypotheses)

    @property
    def _hypotheses(self) -> Sequence[PendingHypothesis]:
        """Of the first pending chunk and the one it is merged with."""
        first, following = self._pending[0], self._following()
        if not first.chunk.cut_in_speech or following is None:
            return first.hypotheses
        return [*first.hypotheses, *following.hypotheses]

    async def advance(self) -> None:
        """Build the words of all decoded chunks, and submit their gaps.

        Raises what the engine raises.
        """
        while self._pending and self._complete and self._decoded:
            await self._advance_one()

    async def next_partial(self) -> Transcript:
        """The transcript of the first chunk, merged with its neighbours, gaps filled.

        Raises what the engine raises.
        """
        await self.advance()
        if not self._results:
            await self._advance_one()
        first = self._results[0]
        partial = await first.transcript
        self._results.popleft()
        self._share.release(first.chunk)
        return partial

    async def _advance_one(self) -> None:
        """Build the first pending chunk's words and submit their gaps."""
        pending = self._pending[0]
        chunk = pending.chunk
        partial = await self._transcribed(pending)
        self._previous[chunk.channel] = chunk
        following = self._following()
        if chunk.cut_in_speech and following is not None:
            partial = await self._merge_overlap(partial, following)
        own = chunk
        if chunk.overlap is not None:
            # The previous chunk's last word may end after the cut.
            own = chunk.after(self._covered_until.get(chunk.channel, chunk.start_seconds))
        gaps = pending.gaps
        if gaps is None or partial is not pending.unmerged or own is not chunk:
            gaps = await threads.computed(find_gaps, own, partial.words)
        if partial.words:
            self._covered_until[chunk.channel] = partial.words[-1].end_seconds
        self._pending.popleft()
        self._results.append(_Result(chunk, self._without_gaps(own, partial, gaps)))

    def _without_gaps(
        self, chunk: Chunk, partial: Transcript, gaps: Sequence[Gap]
    ) -> "asyncio.Future[Transcript]":
        """Submit the gaps that the budget allows."""
        whole = not partial.words
        retries = [
            _Redecode.of(chunk, part.span, whole=whole) for gap in gaps for part in gap.parts()
        ]
        retries = [each for each in retries if self._may_redecode(each, 0, self._decoded_seconds)]
        loop = asyncio.get_running_loop()
        if retries:
            previous, self._chosen = self._chosen, loop.create_future()
            order = (previous, self._chosen)
            return asyncio.create_task(self._fill_gaps(chunk, partial, retries, order))
        result: asyncio.Future[Transcript] = loop.create_future()
        result.set_result(replace(partial, uncovered=reported_spans(gaps)))
        return result

    def _following(self) -> _Pending | None:
        """The chunk after the first pending one, on its channel."""
        channel = self._pending[0].chunk.channel
        later = islice(self._pending, 1, None)
        return next((each for each in later if each.chunk.channel == channel), None)

    def close(self) -> None:
        """Cancel all queued chunks, so that they never reach the engine."""
        for pending in self._pending:
            for hypothesis in pending.hypotheses:
                _cancel(hypothesis)
        for result in self._results:
            _cancel(result.transcript)
        self._share.close()

    def _submitted(
        self, parts: Sequence[Samples], *, admitted: bool = False
    ) -> list[PendingHypothesis]:
        futures = self._batcher.submit(parts, script=self._script, caller=self, admitted=admitted)
        return [asyncio.wrap_future(future) for future in futures]

    async def _transcribed(self, pending: _Pending) -> Transcript:
        if pending.transcript is None:
            hypothesis = await self._watch.timed("recognize", pending.hypotheses[0])
            self._decoded_seconds += pending.chunk.seconds
            result = await threads.computed(self._words, pending.chunk, hypothesis)
            partial, wrong_language, pending.gaps = result
            pending.unmerged = partial
            if wrong_language:
                partial = await self._redecode_with_context(pending.chunk, partial)
            pending.transcript = partial
        return pending.transcript

    def _words(
        self, chunk: Chunk, hypothesis: Hypothesis
    ) -> tuple[Transcript, bool, Sequence[Gap]]:
        """The words of a chunk, whether they are in another language than requested, and gaps."""
        stats = DecodingStats(
            chunks=1,
            cuts_in_speech=int(chunk.cut_in_speech),
            raised_decibels=chunk.raised_decibels,
        )
        partial = replace(transcript.stitch(chunk, hypothesis), stats=stats)
        return partial, self._wrong_language(partial), find_gaps(chunk, partial.words)

    async def _merge_overlap(self, before: Transcript, following: _Pending) -> Transcript:
        """Merge the words on both sides of a cut by those of the overlap."""
        after, overlap = await self._transcribed(following), following.chunk.overlap
        if overlap is None:
            return before
        hypothesis = await self._optional(following.hypotheses[1])
        if hypothesis is None:
            return before
        words, next_words = await threads.computed(
            _merge, before, overlap, hypothesis, after, following.chunk.start_seconds
        )
        following.transcript = replace(after, words=next_words)
        return replace(before, words=words)

    async def _optional(self, hypothesis: PendingHypothesis) -> Hypothesis | None:
        """Await an optional hypothesis; None if out of memory or not finite."""
        try:
            return await self._watch.timed("recognize", hypothesis)
        except (OutOfMemory, NotFinite):
            return None

    async def _fill_gaps(
        self, chunk: Chunk, partial: Transcript, gaps: Sequence["_Redecode"], order: _Order
    ) -> Transcript:
        """Decode speech without words again, and report what stays without.

        All gaps are submitted together; those that yield no word are submitted a second time.
        """
        decoded_seconds = self._decoded_seconds
        previous, chosen = order
        try:
            words, left = await self._redecode(partial.words, gaps, 0)
            if previous is not None:
                await previous
            left = [gap for gap in left if self._may_redecode(gap, 1, decoded_seconds)]
        finally:
            if not chosen.done():
                chosen.set_result(None)
        words, _ = await self._redecode(words, left, 1)
        remaining = await threads.computed(find_gaps, chunk, words)
        return replace(
            partial,
            words=words,
            uncovered=reported_spans(remaining),
            stats=partial.stats + DecodingStats(decoded_again=len(gaps)),
        )

    def _may_redecode(self, gap: "_Redecode", attempt: int, decoded_seconds: float) -> bool:
        if attempt >= len(gap.parts):
            return False
        return self._redecode_budgets[attempt].take(gap.parts[attempt].seconds, decoded_seconds)

    async def _redecode(
        self, words: tuple[Word, ...], gaps: Sequence["_Redecode"], attempt: int
    ) -> tuple[tuple[Word, ...], list["_Redecode"]]:
        """The words with those found in the gaps, and the gaps that yielded none."""
        hypotheses = await self._decode_optional([gap.parts[attempt] for gap in gaps])
        return await threads.computed(_filled, words, gaps, attempt, hypotheses)

    async def _decode_optional(self, chunks: Sequence[Chunk]) -> list[Hypothesis | None]:
        """Decode optional extra chunks; None if the engine is overloaded or out of memory.

        The existing transcript is valid without them.
        """
        if not chunks:
            return []
        try:
            futures = self._submitted([chunk.samples for chunk in chunks])
        except Overloaded:
            return [None] * len(chunks)
        try:
            results = await self._watch.timed(
                "recognize", asyncio.gather(*futures, return_exceptions=True)
            )
        finally:
            for future in futures:
                _cancel(future)
        for failure in results:
            if isinstance(failure, BaseException) and not isinstance(
                failure, OutOfMemory | NotFinite
            ):
                raise failure
        return [None if isinstance(each, BaseException) else each for each in results]

    def _wrong_language(self, partial: Transcript) -> bool:
        """Whether the words are clearly in another language than the request names."""
        if self._language is None or len(partial.words) < _MIN_LANGUAGE_WORDS:
            return False
        identified = language.find(partial.text)
        return (
            identified is not None
            and identified.language != self._language
            and identified.probability >= _MIN_LANGUAGE_PROBABILITY
        )

    async def _redecode_with_context(self, chunk: Chunk, partial: Transcript) -> Transcript:
        """Decode the chunk together with a neighbour, from which the model may infer the language.

        Returns `partial` if the result is not better.
        """
        previous, following = self._previous.get(chunk.channel), self._following()
        lead = tail = chunk.samples[:0]
        if previous is not None:
            lead = previous.samples[-_CONTEXT_SAMPLES:]
        elif following is not None:
            tail = following.chunk.samples[:_CONTEXT_SAMPLES]
        else:
            return partial
        start_seconds = chunk.start_seconds - len(lead) / SAMPLE_RATE
        longer = Chunk(
            start_seconds,
            np.concatenate((lead, chunk.samples, tail)),
            channel=chunk.channel,
            frames=chunk.frames,
        )
        if not self._redecode_budgets[0].take(longer.seconds, self._decoded_seconds):
            return partial
        (hypothesis,) = await self._decode_optional([longer])
        if hypothesis is None:
            return partial
        return await threads.computed(self._better, chunk, partial, longer, hypothesis)

    def _better(
        self, chunk: Chunk, partial: Transcript, longer: Chunk, hypothesis: Hypothesis
    ) -> Transcript:
        """The words decoded with context, if they are in the requested language.

        They must be about as many, or cover as much speech: too few words never count as wrong.
        """
        redecoded = replace(
            partial,
            words=tuple(
                word
                for word in transcript.stitch(longer, hypothesis).words
                if chunk.start_seconds <= word.start_seconds < chunk.end_seconds
            ),
            stats=partial.stats + DecodingStats(decoded_again=1),
        )
        if not redecoded.words or self._wrong_language(redecoded):
            return partial
        as_many = len(redecoded.words) >= _MIN_KEPT_WORDS_SHARE * len(partial.words)
        as_long = _word_seconds(redecoded) >= _word_seconds(partial)
        return redecoded if as_many or as_long else partial


def _word_seconds(partial: Transcript) -> float:
    return sum(word.end_seconds - word.start_seconds for word in partial.words)


@dataclass(frozen=True, slots=True, eq=False)
class _Redecode:
    """A gap, and the chunk to decode at each attempt."""

    span: Span
    parts: tuple[Chunk, ...]

    @classmethod
    def of(cls, chunk: Chunk, gap: Span, *, whole: bool) -> "_Redecode":
        """Two attempts; one if the `whole` chunk has no words.

        The same samples would give the same tokens, so that attempt starts later than the chunk.
        """
        start, end = gap.start_seconds - _MARGIN_SECONDS, gap.end_seconds + _MARGIN_SECONDS
        starts = [start + shift for shift in _SHIFTS_SECONDS]
        if whole:
            starts = [max(start, chunk.start_seconds) + _WHOLE_CHUNK_SHIFT_SECONDS]
        return cls(gap, tuple(chunk.part(Span(start, end)) for start in starts))


def _filled(
    words: tuple[Word, ...],
    gaps: Sequence[_Redecode],
    attempt: int,
    hypotheses: Sequence[Hypothesis | None],
) -> tuple[tuple[Word, ...], list[_Redecode]]:
    """The words with those of `hypotheses`, and the gaps that may be decoded a second time."""
    left = []
    for gap, hypothesis in zip(gaps, hypotheses, strict=True):
        if hypothesis is None:
            continue
        decoded = transcript.stitch(gap.parts[attempt], hypothesis).words
        credible = credible_words(words, gap.span, decoded)
        words = fill(words, gap.span, credible)
        if not credible:
            left.append(gap)
    return words, left


def _merge(
    before: Transcript,
    overlap: Chunk,
    hypothesis: Hypothesis,
    after: Transcript,
    cut_seconds: float,
) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    return overlaps.merge(
        before.words,
        transcript.stitch(overlap, hypothesis).words,
        after.words,
        cut_seconds=cut_seconds,
        window=Span(overlap.start_seconds, overlap.end_seconds),
    )


def _cancel(future: "asyncio.Future[Any]") -> None:
    """Cancel; mark the exception of a failed future as retrieved."""
    if not future.cancel() and not future.cancelled():
        future.exception()
