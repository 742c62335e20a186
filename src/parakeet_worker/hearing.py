"""One recording's segments at the engine, and what is done about words that are missing."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from parakeet_worker import coverage, language, seams, transcript
from parakeet_worker.audio import SAMPLE_RATE
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.errors import NotFinite, OutOfMemory, Overloaded
from parakeet_worker.segments import Segment, Span
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.transcript import Account, Transcript, Word

# Segments that one recording keeps at the engine: enough to fill a batch, few enough for memory.
_SEGMENTS_AHEAD = 16
# What is heard again begins and ends a little outside the gap. Where a model says nothing at all,
# another beginning often helps.
_AROUND_SECONDS = 0.2
_SHIFTS_SECONDS = (0.0, 0.24)

# Fewer words do not tell a language.
_FEWEST_WORDS = 4
_SURE_PROBABILITY = 0.9
_NEIGHBOUR_SAMPLES = 30 * SAMPLE_RATE

Answer = asyncio.Future[Hypothesis]


class _Asked:
    """A segment at the engine, and its words once they are there."""

    def __init__(self, segment: Segment, answers: list[Answer]) -> None:
        self.segment = segment
        self.answers = answers
        """Of the segment, and of its bridge if it has one."""
        self.heard: Transcript | None = None

    @property
    def done(self) -> bool:
        return all(answer.done() for answer in self.answers)


class Hearing:
    """Segments in, stretches of the transcript out, in order."""

    def __init__(self, batcher: Batcher, watch: Stopwatch, spoken: str | None = None) -> None:
        """`spoken` is the language that the caller says it is."""
        self._batcher = batcher
        self._watch = watch
        self._spoken = spoken
        self._script = None if spoken is None else language.script(spoken)
        self._line: deque[_Asked] = deque()
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
        self._admitted = True

    def __len__(self) -> int:
        return len(self._line)

    @property
    def ready(self) -> bool:
        """Whether to take the next stretch now: it is done, or too many are out."""
        if not self._line:
            return False
        needed: list[_Asked | None] = [self._line[0]]
        if self._line[0].segment.seam_after:
            needed.append(self._following())
        if None in needed:
            return False
        return len(self._line) >= _SEGMENTS_AHEAD or all(one.done for one in needed if one)

    async def next_stretch(self) -> Transcript:
        """The words of the first segment in line, mended at its seams and where they are missing.

        Raises what the engine raises.
        """
        asked = self._line[0]
        segment = asked.segment
        heard = await self._heard(asked)
        self._before[segment.channel] = segment
        following = self._following()
        if segment.seam_after and following is not None:
            heard = await self._mended(heard, following)
        heard = await self._covered(segment, heard)
        self._line.popleft()
        return heard

    def _following(self) -> _Asked | None:
        """What comes after the first in line, on its channel."""
        channel = self._line[0].segment.channel
        later = islice(self._line, 1, None)
        return next((one for one in later if one.segment.channel == channel), None)

    def close(self) -> None:
        """Take back what is still out, so that it never reaches the GPU."""
        for asked in self._line:
            for answer in asked.answers:
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # it failed together with the one that was raised

    def _submitted(self, pieces: Sequence[Samples], *, admitted: bool = False) -> list[Answer]:
        answers = self._batcher.submit(pieces, script=self._script, caller=self, admitted=admitted)
        return [asyncio.wrap_future(answer) for answer in answers]

    async def _heard(self, asked: _Asked) -> Transcript:
        if asked.heard is None:
            hypothesis = await self._watch.timed("hear", asked.answers[0])
            account = Account(
                segments=1,
                seams=int(asked.segment.seam_after),
                raised_decibels=asked.segment.raised_decibels,
            )
            heard = replace(transcript.stitch(asked.segment, hypothesis), account=account)
            if self._drifted(heard):
                heard = await self._joined(asked.segment, heard)
            asked.heard = heard
        return asked.heard

    async def _mended(self, before: Transcript, following: _Asked) -> Transcript:
        """Join both sides of a seam by the words of the window over it."""
        after, bridge = await self._heard(following), following.segment.bridge
        if bridge is None:
            return before
        over = transcript.stitch(bridge, await self._watch.timed("hear", following.answers[1]))
        words, next_words = seams.splice(
            before.words,
            over.words,
            after.words,
            seam_seconds=following.segment.start_seconds,
            window=Span(bridge.start_seconds, bridge.end_seconds),
        )
        following.heard = replace(after, words=next_words)
        return replace(before, words=words)

    async def _covered(self, segment: Segment, heard: Transcript) -> Transcript:
        """Hear again where someone speaks and no word is; say what stays without."""
        words: tuple[Word, ...] = heard.words
        gaps = coverage.uncovered(segment.speech, words)
        if not gaps:
            return heard
        for gap in gaps:
            words = coverage.filled(words, gap, await self._again(segment, gap))
        return replace(
            heard,
            words=words,
            uncovered=tuple(coverage.uncovered(segment.speech, words)),
            account=heard.account + Account(decoded_again=len(gaps)),
        )

    async def _again(self, segment: Segment, gap: Span) -> Sequence[Word]:
        """The words of a gap by itself; none if there are none, or the engine has no time."""
        for shift_seconds in _SHIFTS_SECONDS:
            begin = gap.start_seconds - _AROUND_SECONDS + shift_seconds
            part = segment.part(Span(begin, gap.end_seconds + _AROUND_SECONDS))
            hypothesis = await self._heard_besides(part)
            if hypothesis is None:
                return ()
            found = coverage.inside(gap, transcript.stitch(part, hypothesis).words)
            if found:
                return found
        return ()

    async def _heard_besides(self, extra: Segment) -> Hypothesis | None:
        """What is heard besides may be left out: None where the engine has no time or room for it.

        What was heard before is there, and is not lost over it.
        """
        try:
            (answer,) = self._submitted([extra.samples])
            return await self._watch.timed("hear", answer)
        except (Overloaded, OutOfMemory, NotFinite):
            return None

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
        hypothesis = await self._heard_besides(both)
        if hypothesis is None:
            return heard
        again = replace(
            heard,
            words=tuple(
                word
                for word in transcript.stitch(both, hypothesis).words
                if segment.start_seconds <= word.start_seconds < segment.end_seconds
            ),
            account=heard.account + Account(decoded_again=1),
        )
        return heard if self._drifted(again) or not again.words else again
