"""One recording's segments at the engine, and what is done about words that are missing."""

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
from parakeet_worker.recognition.chunks import Segment, Span
from parakeet_worker.recognition.gaps import Gap, credible_words, fill, find_gaps, reported_spans
from parakeet_worker.recognition.room import AudioMemory, Room
from parakeet_worker.recognition.transcript import Account, Transcript, Word
from parakeet_worker.stopwatch import Stopwatch

# What is heard again begins and ends a little outside the gap. Where a model says nothing at all,
# another beginning often helps.
_AROUND_SECONDS = 0.2
_SHIFTS_SECONDS = (0.0, 0.24)
_SHIFT_OF_ALL_SECONDS = 0.06

# Fewer words do not tell a language.
_FEWEST_WORDS = 4
_SURE_PROBABILITY = 0.9
_LEAST_WORDS_KEPT = 0.7
_NEIGHBOUR_SAMPLES = 30 * SAMPLE_RATE

# What is heard again may come to half of what was heard once, a fifth of that in second attempts.
# Since a recording may be a segment or two, so many seconds are allowed in any case.
_AGAIN_SHARES = (0.4, 0.1)
_AGAIN_LEAST_SECONDS = (62.0, 10.0)

Answer = asyncio.Future[Hypothesis]

_Order = tuple[asyncio.Future[None] | None, asyncio.Future[None]]
"""What is awaited before one decides on second attempts, and what says that one has decided."""


class _Allowance:
    """How much may be heard again of one recording, at one of the attempts.

    It is taken in order of the recording, so that how fast the engine is changes no answer.
    """

    def __init__(self, share: float, least_seconds: float) -> None:
        self._share = share
        self._least_seconds = least_seconds
        self._taken = 0.0

    def take(self, seconds: float, once_seconds: float) -> bool:
        """Whether so much more fits, where `once_seconds` were heard up to the same place."""
        allowed = max(self._least_seconds, self._share * once_seconds)
        fits = self._taken + seconds <= allowed
        self._taken += seconds * fits
        return fits


class _Asked:
    """A segment at the engine, and its words once they are there."""

    def __init__(self, segment: Segment, answers: list[Answer]) -> None:
        self.segment = segment
        self.answers = answers
        """Of the segment, and of its bridge if it has one."""
        self.heard: Transcript | None = None
        self.alone: Transcript | None = None
        """Its words before they were merged with those of other chunks."""
        self.gaps: Sequence[Gap] | None = None
        """What is missing in those."""

    @property
    def done(self) -> bool:
        return all(answer.done() for answer in self.answers)


@dataclass(frozen=True, slots=True, eq=False)
class _Heard:
    """A segment with its words; what is heard again of it may still be out."""

    segment: Segment
    words: "asyncio.Future[Transcript]"


class Hearing:
    """Segments in, stretches of the transcript out, in order.

    Words are made in threads; the loop only hands over.
    """

    def __init__(
        self,
        batcher: Batcher,
        watch: Stopwatch,
        spoken: str | None = None,
        *,
        room: Room | None = None,
    ) -> None:
        """`spoken` is the language that the caller says it is."""
        self._batcher = batcher
        self._watch = watch
        self._spoken = spoken
        self._script = None if spoken is None else language.script(spoken)
        self._room = room or Room(AudioMemory(sys.maxsize), samples=sys.maxsize)
        self._once_seconds = 0.0
        self._allowances = [*map(_Allowance, _AGAIN_SHARES, _AGAIN_LEAST_SECONDS)]
        self._decided: asyncio.Future[None] | None = None
        """What the latest segment with gaps tries a second time is settled."""
        self._line: deque[_Asked] = deque()
        self._done: deque[_Heard] = deque()
        """Those before the line, whose words are there but for what is heard again."""
        self._admitted = False
        self._before: dict[int | None, Segment] = {}
        """The segment before the one that is heard next, by channel."""

    def submit(self, segment: Segment) -> None:
        """Queue a segment, and the bridge to the one before.

        Raises `EngineLost`, and `Overloaded` for a recording's first: once it is begun, it goes on.
        """
        pieces = [segment.samples]
        if segment.bridge is not None:
            pieces.append(segment.bridge.samples)
        self._line.append(_Asked(segment, self._submitted(pieces, admitted=self._admitted)))
        self._room.take(segment)
        self._admitted = True

    def __len__(self) -> int:
        return len(self._done) + len(self._line)

    @property
    def ready(self) -> bool:
        """Whether to take the next stretch now: it is done, or too much is out."""
        if self._done:
            return self._done[0].words.done() or self._room.full
        if not self._line or not self._complete:
            return False
        return self._answered or self._room.full

    @property
    def _complete(self) -> bool:
        """Whether all that the first in line is joined with has been submitted."""
        return not self._line[0].segment.seam_after or self._following() is not None

    @property
    def _answered(self) -> bool:
        """Whether the first in line and what it is joined with have their answers."""
        first, following = self._line[0], self._following()
        if not first.segment.seam_after or following is None:
            return first.done
        return first.done and following.done

    async def advance(self) -> None:
        """Make words of all that is answered; what is missing in them is submitted at once.

        Raises what the engine raises.
        """
        while self._line and self._complete and self._answered:
            await self._advance_one()

    async def next_stretch(self) -> Transcript:
        """The words of the first segment, joined at its seams, with those that were missing.

        Raises what the engine raises.
        """
        await self.advance()
        if not self._done:
            await self._advance_one()
        first = self._done[0]
        heard = await first.words
        self._done.popleft()
        self._room.give(first.segment)
        return heard

    async def _advance_one(self) -> None:
        """The first in line: its words, and what is missing in them submitted."""
        asked = self._line[0]
        segment = asked.segment
        heard = await self._heard(asked)
        self._before[segment.channel] = segment
        following = self._following()
        if segment.seam_after and following is not None:
            heard = await self._joined_over_seam(heard, following)
        gaps = asked.gaps
        if gaps is None or heard is not asked.alone:
            gaps = await threads.computed(find_gaps, segment, heard.words)
        self._line.popleft()
        whole = not heard.words
        again = [_Gap.of(segment, part.span, whole=whole) for gap in gaps for part in gap.parts()]
        again = [gap for gap in again if self._may_try(gap, 0, self._once_seconds)]
        words: asyncio.Future[Transcript] = asyncio.get_running_loop().create_future()
        if again:
            before, self._decided = self._decided, asyncio.get_running_loop().create_future()
            covered = self._covered(segment, heard, again, (before, self._decided))
            words = asyncio.create_task(covered)
        else:
            words.set_result(replace(heard, uncovered=reported_spans(gaps)))
        self._done.append(_Heard(segment, words))

    def _following(self) -> _Asked | None:
        """What comes after the first in line, on its channel."""
        channel = self._line[0].segment.channel
        later = islice(self._line, 1, None)
        return next((one for one in later if one.segment.channel == channel), None)

    def close(self) -> None:
        """Take back what is still out, so that it never reaches the GPU."""
        for asked in self._line:
            for answer in asked.answers:
                _drop(answer)
        for heard in self._done:
            _drop(heard.words)
        self._room.close()

    def _submitted(self, pieces: Sequence[Samples], *, admitted: bool = False) -> list[Answer]:
        answers = self._batcher.submit(pieces, script=self._script, caller=self, admitted=admitted)
        return [asyncio.wrap_future(answer) for answer in answers]

    async def _heard(self, asked: _Asked) -> Transcript:
        if asked.heard is None:
            hypothesis = await self._watch.timed("hear", asked.answers[0])
            self._once_seconds += asked.segment.seconds
            found = await threads.computed(self._words, asked.segment, hypothesis)
            heard, drifted, asked.gaps = found
            asked.alone = heard
            if drifted:
                heard = await self._joined(asked.segment, heard)
            asked.heard = heard
        return asked.heard

    def _words(
        self, segment: Segment, hypothesis: Hypothesis
    ) -> tuple[Transcript, bool, Sequence[Gap]]:
        """The words of a segment, whether they are of another language than asked for, and gaps."""
        account = Account(
            segments=1, seams=int(segment.seam_after), raised_decibels=segment.raised_decibels
        )
        heard = replace(transcript.stitch(segment, hypothesis), account=account)
        return heard, self._drifted(heard), find_gaps(segment, heard.words)

    async def _joined_over_seam(self, before: Transcript, following: _Asked) -> Transcript:
        """Join both sides of a seam by the words of the window over it."""
        after, bridge = await self._heard(following), following.segment.bridge
        if bridge is None:
            return before
        over = await self._optional(following.answers[1])
        if over is None:
            return before
        words, next_words = await threads.computed(
            _spliced, before, bridge, over, after, following.segment.start_seconds
        )
        following.heard = replace(after, words=next_words)
        return replace(before, words=words)

    async def _optional(self, answer: Answer) -> Hypothesis | None:
        """An answer that may be done without: None where memory is short or numbers overflow."""
        try:
            return await self._watch.timed("hear", answer)
        except (OutOfMemory, NotFinite):
            return None

    async def _covered(
        self, segment: Segment, heard: Transcript, gaps: Sequence["_Gap"], order: _Order
    ) -> Transcript:
        """Hear again where someone speaks and no word is; say what stays without.

        All gaps are submitted at once, and once more those in which nothing was heard.
        """
        once_seconds = self._once_seconds
        before, decided = order
        try:
            words, left = await self._tried(heard.words, gaps, 0)
            if before is not None:
                await before
            left = [gap for gap in left if self._may_try(gap, 1, once_seconds)]
        finally:
            if not decided.done():
                decided.set_result(None)
        words, _ = await self._tried(words, left, 1)
        left_over = await threads.computed(find_gaps, segment, words)
        return replace(
            heard,
            words=words,
            uncovered=reported_spans(left_over),
            account=heard.account + Account(decoded_again=len(gaps)),
        )

    def _may_try(self, gap: "_Gap", attempt: int, once_seconds: float) -> bool:
        if attempt >= len(gap.parts):
            return False
        return self._allowances[attempt].take(gap.parts[attempt].seconds, once_seconds)

    async def _tried(
        self, words: tuple[Word, ...], gaps: Sequence["_Gap"], attempt: int
    ) -> tuple[tuple[Word, ...], list["_Gap"]]:
        """The words with those found in the gaps, and the gaps in which there were none."""
        hypotheses = await self._heard_besides([gap.parts[attempt] for gap in gaps])
        return await threads.computed(_filled, words, gaps, attempt, hypotheses)

    async def _heard_besides(self, extras: Sequence[Segment]) -> list[Hypothesis | None]:
        """What is heard besides may be left out: None where the engine has no time or room for it.

        What was heard before is there, and is not lost over it.
        """
        if not extras:
            return []
        try:
            answers = self._submitted([extra.samples for extra in extras])
        except Overloaded:
            return [None] * len(extras)
        try:
            found = await self._watch.timed(
                "hear", asyncio.gather(*answers, return_exceptions=True)
            )
        finally:
            for answer in answers:
                _drop(answer)
        for failure in found:
            if isinstance(failure, BaseException) and not isinstance(
                failure, OutOfMemory | NotFinite
            ):
                raise failure
        return [None if isinstance(each, BaseException) else each for each in found]

    def _drifted(self, heard: Transcript) -> bool:
        """Whether these are surely words of another language than was asked for."""
        if self._spoken is None or len(heard.words) < _FEWEST_WORDS:
            return False
        found = language.find(heard.text)
        return (
            found is not None
            and found.language != self._spoken
            and found.probability >= _SURE_PROBABILITY
        )

    async def _joined(self, segment: Segment, heard: Transcript) -> Transcript:
        """Heard again together with a neighbour, which may tell the model the language.

        What was heard alone stays if that does not help.
        """
        before, following = self._before.get(segment.channel), self._following()
        lead = tail = segment.samples[:0]
        if before is not None:
            lead = before.samples[-_NEIGHBOUR_SAMPLES:]
        elif following is not None:
            tail = following.segment.samples[:_NEIGHBOUR_SAMPLES]
        else:
            return heard
        begin = segment.start_seconds - len(lead) / SAMPLE_RATE
        both = Segment(
            begin, np.concatenate((lead, segment.samples, tail)), channel=segment.channel
        )
        if not self._allowances[0].take(both.seconds, self._once_seconds):
            return heard
        (hypothesis,) = await self._heard_besides([both])
        if hypothesis is None:
            return heard
        return await threads.computed(self._better, segment, heard, both, hypothesis)

    def _better(
        self, segment: Segment, heard: Transcript, both: Segment, hypothesis: Hypothesis
    ) -> Transcript:
        """What was heard in company, if that is of the language that was asked for.

        It has to have about as many words, or to cover as much of the speech: fewer words never
        count as drifted.
        """
        again = replace(
            heard,
            words=tuple(
                word
                for word in transcript.stitch(both, hypothesis).words
                if segment.start_seconds <= word.start_seconds < segment.end_seconds
            ),
            account=heard.account + Account(decoded_again=1),
        )
        as_many = len(again.words) >= _LEAST_WORDS_KEPT * len(heard.words)
        as_much = _spoken_seconds(again) >= _spoken_seconds(heard)
        return again if again.words and (as_many or as_much) and not self._drifted(again) else heard


def _spoken_seconds(heard: Transcript) -> float:
    return sum(word.end_seconds - word.start_seconds for word in heard.words)


@dataclass(frozen=True, slots=True, eq=False)
class _Gap:
    """Speech without words, and what is heard again for it, one attempt after the other."""

    span: Span
    parts: tuple[Segment, ...]

    @classmethod
    def of(cls, segment: Segment, gap: Span, *, whole: bool) -> "_Gap":
        """One attempt in a segment that is `whole`ly without words, else two.

        The same samples would be decoded alike: the one attempt begins later than the segment.
        """
        begin, ends = gap.start_seconds - _AROUND_SECONDS, gap.end_seconds + _AROUND_SECONDS
        begins = [begin + shift for shift in _SHIFTS_SECONDS]
        if whole:
            begins = [max(begin, segment.start_seconds) + _SHIFT_OF_ALL_SECONDS]
        return cls(gap, tuple(segment.part(Span(begin, ends)) for begin in begins))


def _filled(
    words: tuple[Word, ...],
    gaps: Sequence[_Gap],
    attempt: int,
    hypotheses: Sequence[Hypothesis | None],
) -> tuple[tuple[Word, ...], list[_Gap]]:
    """The words with those that were found, and the gaps that may be tried once more."""
    left = []
    for gap, hypothesis in zip(gaps, hypotheses, strict=True):
        if hypothesis is None:
            continue
        part = gap.parts[attempt]
        heard = transcript.stitch(part, hypothesis).words
        found = credible_words(words, gap.span, heard)
        words = fill(words, gap.span, found)
        if not found:
            left.append(gap)
    return words, left


def _spliced(
    before: Transcript, bridge: Segment, over: Hypothesis, after: Transcript, seam_seconds: float
) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    return overlaps.splice(
        before.words,
        transcript.stitch(bridge, over).words,
        after.words,
        seam_seconds=seam_seconds,
        window=Span(bridge.start_seconds, bridge.end_seconds),
    )


def _drop(answer: "asyncio.Future[Any]") -> None:
    """Take it back; one that has failed together with another was raised there."""
    if not answer.cancel() and not answer.cancelled():
        answer.exception()
