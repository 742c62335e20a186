"""One recording's segments at the engine, and what is done about words that are missing."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from parakeet_worker import coverage, seams, transcript
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.errors import Overloaded
from parakeet_worker.language import Script
from parakeet_worker.segments import Segment, Span
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.transcript import Account, Transcript, Word

# Segments that one recording keeps at the engine: enough to fill a batch, few enough for memory.
_SEGMENTS_AHEAD = 16
# What is heard again begins and ends a little outside the gap. Where a model says nothing at all,
# another beginning often helps.
_AROUND_SECONDS = 0.2
_SHIFTS_SECONDS = (0.0, 0.24)

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

    def __init__(self, batcher: Batcher, watch: Stopwatch, script: Script | None = None) -> None:
        self._batcher = batcher
        self._watch = watch
        self._script = script
        self._line: deque[_Asked] = deque()
        self.seconds = 0.0
        """Of all segments so far."""

    def submit(self, segment: Segment) -> None:
        """Queue a segment, and the bridge to the one before; raises `Overloaded`, `EngineLost`."""
        pieces = [segment.samples]
        if segment.bridge is not None:
            pieces.append(segment.bridge.samples)
        self._line.append(_Asked(segment, self._submitted(pieces)))
        self.seconds += segment.seconds

    def __len__(self) -> int:
        return len(self._line)

    @property
    def ready(self) -> bool:
        """Whether to take the next stretch now: it is done, or too many are out."""
        if len(self._line) >= _SEGMENTS_AHEAD:
            return True
        needed = 2 if self._line and self._line[0].segment.seam_after else 1
        if len(self._line) < needed:
            return False
        return all(self._line[place].done for place in range(needed))

    async def next_stretch(self) -> Transcript:
        """The words of the first segment in line, mended at its seams and where they are missing.

        Raises what the engine raises.
        """
        asked = self._line[0]
        heard = await self._heard(asked)
        if asked.segment.seam_after and len(self._line) > 1:
            heard = await self._mended(heard, self._line[1])
        heard = await self._covered(asked.segment, heard)
        self._line.popleft()
        return heard

    def drop(self) -> None:
        """Take back what is still out, so that it never reaches the GPU."""
        for asked in self._line:
            for answer in asked.answers:
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # it failed together with the one that was raised

    def _submitted(self, pieces: Sequence[Samples]) -> list[Answer]:
        answers = self._batcher.submit(pieces, script=self._script, caller=self)
        return [asyncio.wrap_future(answer) for answer in answers]

    async def _heard(self, asked: _Asked) -> Transcript:
        if asked.heard is None:
            hypothesis = await self._watch.timed("hear", asked.answers[0])
            account = Account(
                segments=1,
                seams=int(asked.segment.seam_after),
                raised_decibels=asked.segment.raised_decibels,
            )
            asked.heard = replace(transcript.stitch(asked.segment, hypothesis), account=account)
        return asked.heard

    async def _mended(self, before: Transcript, following: _Asked) -> Transcript:
        """Join both sides of a seam by the words of the window over it."""
        after, bridge = await self._heard(following), following.segment.bridge
        if bridge is None:
            return before
        over = transcript.stitch(bridge, await self._watch.timed("hear", following.answers[1]))
        words, next_words = seams.splice(
            before.words, over.words, after.words, seam_seconds=following.segment.start_seconds
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
            try:
                (answer,) = self._submitted([part.samples])
            except Overloaded:
                return ()
            hypothesis = await self._watch.timed("hear", answer)
            found = transcript.stitch(part, hypothesis).words
            if found:
                return found
        return ()
