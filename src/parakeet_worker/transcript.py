"""Hypotheses of pieces to one transcript: words on the recording's clock."""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from parakeet_worker.audio import Origin
from parakeet_worker.engine.base import Hypothesis, Token
from parakeet_worker.notices import Notice
from parakeet_worker.segments import Segment, Span

_WORD_START = "▁"
_SENTENCE_ENDS = (".", "?", "!")
MAX_SENTENCE_WORDS = 1000
"""A text without full stops is cut there: a sentence is sent in one message when it is streamed."""
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
    channel: int | None = None
    """Of a recording whose channels were heard apart."""

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
    """Words up to a full stop, a question or an exclamation mark, or as many as there may be."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def channel(self) -> int | None:
        return self.words[0].channel

    @property
    def start_seconds(self) -> float:
        return self.words[0].start_seconds

    @property
    def end_seconds(self) -> float:
        return self.words[-1].end_seconds


@dataclass(frozen=True, slots=True)
class Account:
    """How the words were come by."""

    segments: int = 0
    seams: int = 0
    """Cuts in the middle of speech, which were bridged."""
    decoded_again: int = 0
    """Stretches of speech that had no words at first."""
    raised_decibels: float = 0.0
    """How much the quietest segment was raised."""

    def __add__(self, other: "Account") -> "Account":
        return Account(
            self.segments + other.segments,
            self.seams + other.seams,
            self.decoded_again + other.decoded_again,
            max(self.raised_decibels, other.raised_decibels),
        )


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that was heard in a recording, or in one stretch of it."""

    words: tuple[Word, ...]
    seconds: float = 0.0
    """How long the recording is, or the clip of it; of all stretches the last one has it."""
    frame_seconds: float = 0.08
    warnings: tuple[Notice, ...] = ()
    """What the caller should know about words that may be missing."""
    uncovered: tuple[Span, ...] = ()
    """Where someone speaks and no words were found, in two attempts."""
    account: Account = Account()
    origin: Origin | None = None
    """How the samples were made; of all stretches the last one has it."""

    @property
    def text(self) -> str:
        """All words; where channels were heard apart, a line for each turn with its channel."""
        if not self.channels:
            return " ".join(word.text for word in self.words)
        turns = groupby(self.sentences, key=lambda sentence: sentence.channel)
        return "\n".join(
            f"Channel {channel}: " + " ".join(sentence.text for sentence in turn)
            for channel, turn in turns
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Those that have words, where they were heard apart."""
        return tuple(sorted({word.channel for word in self.words if word.channel is not None}))

    def of_channel(self, channel: int | None) -> tuple[Word, ...]:
        """The words of one channel, or of all mixed."""
        return tuple(word for word in self.words if word.channel == channel)

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """In the order in which they begin."""
        sentences = [
            sentence
            for channel in self.channels or (None,)
            for sentence in _sentences(self.of_channel(channel))
        ]
        return tuple(sorted(sentences, key=lambda sentence: sentence.start_seconds))


def _sentences(words: Iterable[Word]) -> Iterator[Sentence]:
    begun: list[Word] = []
    for word in words:
        begun.append(word)
        if _completes(word, begun):
            yield Sentence(tuple(begun))
            begun = []
    if begun:
        yield Sentence(tuple(begun))


def _completes(word: Word, begun: Sequence[Word]) -> bool:
    return word.text.endswith(_SENTENCE_ENDS) or len(begun) == MAX_SENTENCE_WORDS


class SentencesSoFar:
    """Stretch by stretch, in order, the sentences of a recording as they are complete.

    They are those of the whole transcript; where channels are heard apart, each channel's.
    """

    def __init__(self) -> None:
        self._begun: dict[int | None, list[Word]] = {}

    def add(self, stretch: Transcript) -> tuple[Sentence, ...]:
        """What the stretch completes."""
        complete: list[Sentence] = []
        for word in stretch.words:
            begun = self._begun.setdefault(word.channel, [])
            begun.append(word)
            if _completes(word, begun):
                complete.append(Sentence(tuple(begun)))
                begun.clear()
        return tuple(complete)

    def rest(self) -> tuple[Sentence, ...]:
        """What nobody completed."""
        left = [Sentence(tuple(words)) for words in self._begun.values() if words]
        self._begun.clear()
        return tuple(sorted(left, key=lambda sentence: sentence.start_seconds))


def bare(word: Word) -> str:
    """Its letters and digits: what else differs where the same word is decoded twice."""
    return "".join(letter for letter in word.text.casefold() if letter.isalnum())


def mean_logprob(words: Iterable[Word]) -> float:
    """Mean log-probability of the tokens of `words`."""
    logprobs = [token.logprob for word in words for token in word.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


def stitch(segment: Segment, hypothesis: Hypothesis) -> Transcript:
    """The words of one segment, moved to the recording's clock and kept inside the segment."""
    return Transcript(words=_words(segment, hypothesis), frame_seconds=hypothesis.frame_seconds)


def join(stretches: Sequence[Transcript]) -> Transcript:
    """Stretches of one recording, in order, as one transcript."""
    words = [word for stretch in stretches for word in stretch.words]
    if any(word.channel is not None for word in words):
        words.sort(key=lambda word: word.start_seconds)
    return Transcript(
        words=tuple(words),
        seconds=sum(stretch.seconds for stretch in stretches),
        frame_seconds=stretches[0].frame_seconds,
        warnings=tuple(warning for stretch in stretches for warning in stretch.warnings),
        uncovered=tuple(span for stretch in stretches for span in stretch.uncovered),
        account=sum((stretch.account for stretch in stretches), Account()),
        origin=stretches[-1].origin,
    )


def _words(segment: Segment, hypothesis: Hypothesis) -> tuple[Word, ...]:
    """Words begin where a piece says so, but a closing mark belongs to the word before it.

    The mark takes no time, as in NeMo's word times: a model may place a full stop long after the
    word, at the end of the pause that told it.
    """
    words: list[list[TimedToken]] = []
    spaces: list[TimedToken] = []
    begins = True
    for token in hypothesis.tokens:
        timed = _timed(token, segment, hypothesis.frame_seconds)
        begins = begins or token.piece.startswith(_WORD_START)
        if token.piece and not timed.text:
            spaces.append(timed)
        elif words and _is_closing(timed.text):
            end = words[-1][-1].end_seconds
            words[-1].append(replace(timed, start_seconds=end, end_seconds=end))
            spaces, begins = [], False
        elif timed.text and begins:
            words.append([*spaces, timed])
            spaces, begins = [], False
        elif timed.text:
            words[-1].append(timed)
    return tuple(
        Word("".join(part.text for part in parts), tuple(parts), segment.channel) for parts in words
    )


def _timed(token: Token, segment: Segment, frame_seconds: float) -> TimedToken:
    start = segment.start_seconds + token.frame * frame_seconds
    end = start + token.duration * frame_seconds
    start, end = (round(min(time, segment.end_seconds), _DECIMALS) for time in (start, end))
    return TimedToken(token.piece.replace(_WORD_START, ""), start, end, token.logprob)


def _is_closing(text: str) -> bool:
    """Whether it is one punctuation mark, and not one that opens what follows, as in `¿Qué?`."""
    if len(text) != 1 or text in "¿¡":
        return False
    category = unicodedata.category(text)
    return category.startswith("P") and category not in ("Ps", "Pi")
