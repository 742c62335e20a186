"""Hypotheses of pieces to one transcript: words on the recording's clock."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from parakeet_worker.engine.base import Hypothesis, Token
from parakeet_worker.segments import Segment

_WORD_START = "▁"
_SENTENCE_ENDS = (".", "?", "!")
# Frames and seconds are rounded to this, which hides the noise of multiplying by 0.08.
_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class TimedToken:
    """A token's text as it stands in the word, on the recording's clock."""

    text: str
    start_seconds: float
    end_seconds: float
    logprob: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word with the punctuation that follows it."""

    text: str
    tokens: tuple[TimedToken, ...]

    @property
    def start_seconds(self) -> float:
        return self.tokens[0].start_seconds

    @property
    def end_seconds(self) -> float:
        return self.tokens[-1].end_seconds

    @property
    def confidence(self) -> float:
        """Geometric mean of the model's probabilities of the word's tokens, 0 to 1."""
        return math.exp(mean_logprob((self,)))


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words up to a full stop, a question or an exclamation mark."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def start_seconds(self) -> float:
        return self.words[0].start_seconds

    @property
    def end_seconds(self) -> float:
        return self.words[-1].end_seconds


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that was heard in a recording, or in one stretch of it."""

    words: tuple[Word, ...]
    seconds: float
    """How much audio was listened to."""
    frame_seconds: float
    warnings: tuple[str, ...] = ()
    """What the caller should know about words that may be missing."""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        sentences, begun = [], []
        for word in self.words:
            begun.append(word)
            if word.text.endswith(_SENTENCE_ENDS):
                sentences.append(Sentence(tuple(begun)))
                begun = []
        if begun:
            sentences.append(Sentence(tuple(begun)))
        return tuple(sentences)


def mean_logprob(words: Iterable[Word]) -> float:
    """Mean log-probability of the tokens of `words`."""
    logprobs = [token.logprob for word in words for token in word.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


def stitch(segment: Segment, hypothesis: Hypothesis) -> Transcript:
    """The words of one segment, moved to the recording's clock and kept inside the segment."""
    timed = _timed(segment, hypothesis)
    return Transcript(
        words=tuple(_words(hypothesis.tokens, timed)),
        seconds=segment.seconds,
        frame_seconds=hypothesis.frame_seconds,
    )


def join(stretches: Sequence[Transcript], warnings: tuple[str, ...] = ()) -> Transcript:
    """Stretches of one recording, in order, as one transcript."""
    return Transcript(
        words=tuple(word for stretch in stretches for word in stretch.words),
        seconds=sum(stretch.seconds for stretch in stretches),
        frame_seconds=stretches[0].frame_seconds,
        warnings=warnings,
    )


def _timed(segment: Segment, hypothesis: Hypothesis) -> list[TimedToken]:
    """Tokens with seconds; a lone punctuation mark takes no time, as in NeMo's word times.

    A model may place a full stop long after the word, at the end of the pause that told it.
    """
    timed: list[TimedToken] = []
    for token in hypothesis.tokens:
        start = segment.start_seconds + token.frame * hypothesis.frame_seconds
        end = start + token.duration * hypothesis.frame_seconds
        text = token.piece.replace(_WORD_START, "")
        if timed and _is_mark(text):
            start = end = timed[-1].end_seconds
        start, end = (round(min(time, segment.end_seconds), _DECIMALS) for time in (start, end))
        timed.append(TimedToken(text, start, end, token.logprob))
    return timed


def _words(tokens: Sequence[Token], timed: Sequence[TimedToken]) -> Iterable[Word]:
    """Split before every piece that opens a word, unless the piece is a punctuation mark."""
    opens = [
        index
        for index, (token, placed) in enumerate(zip(tokens, timed, strict=True))
        if index == 0 or (token.piece.startswith(_WORD_START) and not _is_mark(placed.text))
    ]
    for first, after in pairwise([*opens, len(tokens)]):
        parts = tuple(timed[first:after])
        text = "".join(part.text for part in parts)
        if text:
            yield Word(text, parts)


def _is_mark(text: str) -> bool:
    return len(text) == 1 and unicodedata.category(text).startswith("P")
