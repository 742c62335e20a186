"""Hypotheses of pieces to one transcript: words on the recording's clock."""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from parakeet_worker.audio.decoding import Origin
from parakeet_worker.engine.base import Hypothesis, Token
from parakeet_worker.notices import Notice
from parakeet_worker.recognition.chunks import Segment, Span

_WORD_START = "▁"
_SPACED = re.compile("▁?[^▁]+|▁")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SENTENCE_ENDS = (".", "?", "!")
MAX_SENTENCE_WORDS = 1000
"""A text without full stops is cut there: a sentence is sent in one message when it is streamed."""
MIN_WORD_SECONDS = 0.01
"""Several words may be emitted at one frame."""
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
    """Words begin where a piece says so, and nowhere else, as in SentencePiece's detokenisation.

    A closing mark that continues a word takes no time, as in NeMo's word times: a model may place
    a full stop long after the word, at the end of the pause that told it. Marks at the beginning
    of a segment belong to a word before it, and are left out.
    """
    words: list[list[TimedToken]] = []
    spaces: list[TimedToken] = []
    begins = True
    for timed in _parts(segment, hypothesis):
        text = timed.text.removeprefix(_WORD_START)
        begins = begins or text != timed.text
        part = replace(timed, text=text)
        if not text:
            spaces.append(part)
        elif begins:
            words.append([*spaces, part])
            spaces, begins = [], False
        elif _is_closing(text):
            end = words[-1][-1].end_seconds
            words[-1].append(replace(part, start_seconds=end, end_seconds=end))
        else:
            words[-1].append(part)
    found = [
        Word("".join(part.text for part in parts), tuple(parts), segment.channel)
        for parts in itertools.dropwhile(_closes, words)
    ]
    return tuple(_lasting(found, segment.end_seconds, hypothesis.frame_seconds))


def _lasting(words: Sequence[Word], latest: float, frame_seconds: float) -> Iterator[Word]:
    """No word is without length: it lasts a frame, or up to the next word, but 0.01 s at least."""
    latest = round(latest, _DECIMALS)
    earliest = -math.inf
    for word, following in itertools.zip_longest(words, words[1:]):
        start = max(word.start_seconds, earliest)
        if word.end_seconds - start < MIN_WORD_SECONDS:
            until = latest if following is None else following.start_seconds
            end = max(start + MIN_WORD_SECONDS, min(start + frame_seconds, until))
            end = min(round(end, _DECIMALS), latest)
            start = min(start, max(earliest, round(latest - MIN_WORD_SECONDS, _DECIMALS)))
            earliest = end if end > until else start
            yield _placed(word, start, end)
        else:
            yield word if start == word.start_seconds else not_before(word, start)


def _placed(word: Word, start: float, end: float) -> Word:
    """The word from `start` to `end`, all of it in its last token that is no mark."""
    closing = [_is_closing(token.text) for token in word.tokens]
    last = len(closing) - 1 - closing[::-1].index(False) if False in closing else 0
    tokens = (
        replace(
            token,
            start_seconds=start if index <= last else end,
            end_seconds=start if index < last else end,
        )
        for index, token in enumerate(word.tokens)
    )
    return replace(word, tokens=tuple(tokens))


def not_before(word: Word, seconds: float) -> Word:
    """The word with no time before `seconds`."""
    tokens = (
        replace(
            token,
            start_seconds=max(token.start_seconds, seconds),
            end_seconds=max(token.end_seconds, seconds),
        )
        for token in word.tokens
    )
    return replace(word, tokens=tuple(tokens))


def _parts(segment: Segment, hypothesis: Hypothesis) -> Iterator[TimedToken]:
    """Tokens, none with a space but at its beginning; bytes in a row as the text they spell."""
    for is_byte, tokens in groupby(hypothesis.tokens, key=lambda token: is_byte_piece(token.piece)):
        found = [_timed(token, segment, hypothesis.frame_seconds) for token in tokens]
        if is_byte:
            found = [_spelled(found)]
        for timed in found:
            for text in _SPACED.findall(timed.text):
                yield replace(timed, text=text)


def is_byte_piece(piece: str) -> bool:
    """Whether it is a byte of a letter without a piece, as `<0xE2>`."""
    return _BYTE.fullmatch(piece) is not None


def _spelled(tokens: Sequence[TimedToken]) -> TimedToken:
    """What bytes spell; each that spells nothing is a replacement character, as SentencePiece's."""
    spelled = bytes(int(token.text[3:5], 16) for token in tokens)
    text = ""
    while spelled:
        try:
            text, spelled = text + spelled.decode(), b""
        except UnicodeDecodeError as failure:
            text += spelled[: failure.start].decode() + "\N{REPLACEMENT CHARACTER}"
            spelled = spelled[failure.start + 1 :]
    return replace(
        tokens[0],
        text=text.replace(" ", _WORD_START),
        end_seconds=tokens[-1].end_seconds,
        logprob=sum(token.logprob for token in tokens) / len(tokens),
    )


def _timed(token: Token, segment: Segment, frame_seconds: float) -> TimedToken:
    start = segment.start_seconds + token.frame * frame_seconds
    end = start + token.duration * frame_seconds
    start, end = (round(min(time, segment.end_seconds), _DECIMALS) for time in (start, end))
    return TimedToken(token.piece, start, end, token.logprob)


def _closes(parts: Sequence[TimedToken]) -> bool:
    """Whether a word is nothing but marks that close."""
    return all(_is_closing(letter) for part in parts for letter in part.text)


def _is_closing(text: str) -> bool:
    """Whether it is one mark that closes what was said, in any of the languages.

    A dash, an opening bracket or quote and `&`, `@`, `#`, `§` do not.
    """
    if len(text) != 1 or text in "¿¡&@#§*/\\%":
        return False
    return unicodedata.category(text) in ("Po", "Pe", "Pf") or text in "“\"'"
