"""Hypotheses to words, sentences and times."""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from parakeet_worker.audio.decoding import Origin
from parakeet_worker.engine.base import Hypothesis, Token
from parakeet_worker.notices import Notice
from parakeet_worker.recognition.chunks import Chunk, Span
from parakeet_worker.recognition.similarities import SpeakerSimilarities

_WORD_START = "▁"
_SPACED = re.compile("▁?[^▁]+|▁")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SENTENCE_ENDS = (".", "?", "!")
MAX_SENTENCE_WORDS = 1000
"""Limit of a sentence in text without punctuation; a stream sends each sentence in one message."""
MIN_WORD_SECONDS = 0.01
"""Minimum length of a word: several words may be emitted at one frame."""
# Times are rounded, which removes the floating-point error of multiplying by 0.08.
_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class TimedToken:
    """A token's part of a word, on the recording's clock."""

    text: str
    """The token's letters."""
    start_seconds: float
    """Seconds from the start of the recording."""
    end_seconds: float
    """Seconds from the start of the recording."""
    logprob: float
    """Natural logarithm of the token's probability."""
    ids: tuple[int, ...] = ()
    """Vocabulary indices; several for a letter that consists of byte tokens."""


@dataclass(frozen=True, slots=True)
class SpeakerLabel:
    """The speaker of a word."""

    name: str
    confidence: float
    """Probability of the speaker against the others and an unknown one, 0 to 1."""
    overlap: bool = False
    """Whether another speaker is active for most of the word."""


@dataclass(frozen=True, slots=True)
class SpeakerTurn:
    """A span in which a speaker is active."""

    start_seconds: float
    end_seconds: float
    speaker: str
    """`Speaker 1` and so on, or the name of a known speaker."""
    confidence: float
    """Mean posterior probability of the speaker, 0 to 1."""
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """A word, including the punctuation that follows it."""

    text: str
    """Its letters and punctuation."""
    tokens: tuple[TimedToken, ...]
    """At least one."""
    channel: int | None = None
    """Number of the channel or track, from 1, if they are transcribed separately."""
    speech_probability: float | None = field(default=None, compare=False)
    """Mean probability of speech over the word, from the detector; None without one."""
    speaker: "SpeakerLabel | None" = None
    """If the recording was diarized."""

    @property
    def start_seconds(self) -> float:
        """Seconds from the start of the recording."""
        return self.tokens[0].start_seconds

    @property
    def end_seconds(self) -> float:
        """Seconds from the start of the recording."""
        return self.tokens[-1].end_seconds

    @property
    def confidence(self) -> float:
        """Geometric mean of the token probabilities, 0 to 1."""
        return math.exp(mean_logprob((self,)))


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words up to a full stop, question mark, exclamation mark or another speaker's word.

    At most `MAX_SENTENCE_WORDS`.
    """

    words: tuple[Word, ...]
    """At least one."""

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(word.text for word in self.words)

    @property
    def channel(self) -> int | None:
        """That of its words."""
        return self.words[0].channel

    @property
    def speaker(self) -> str | None:
        """Name of the speaker of its words."""
        return _speaker(self.words[0])

    @property
    def start_seconds(self) -> float:
        """Start of its first word."""
        return self.words[0].start_seconds

    @property
    def end_seconds(self) -> float:
        """End of its last word."""
        return self.words[-1].end_seconds


@dataclass(frozen=True, slots=True)
class DecodingStats:
    """Statistics of how the words were decoded."""

    chunks: int = 0
    cuts_in_speech: int = 0
    decoded_again: int = 0
    """Gaps that were decoded a second time."""
    raised_decibels: float = 0.0
    """Gain of the quietest chunk."""

    def __add__(self, other: "DecodingStats") -> "DecodingStats":
        return DecodingStats(
            self.chunks + other.chunks,
            self.cuts_in_speech + other.cuts_in_speech,
            self.decoded_again + other.decoded_again,
            max(self.raised_decibels, other.raised_decibels),
        )


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of a recording, or a partial: those of one chunk."""

    words: tuple[Word, ...]
    """Ordered by start time."""
    seconds: float = 0.0
    """Length of the recording or its clip; of all partials, the last one contains it."""
    frame_seconds: float = 0.08
    """Unit of the offsets of `json` with `timestamp`."""
    warnings: tuple[Notice, ...] = ()
    """Parts of the recording that are missing or damaged."""
    uncovered: tuple[Span, ...] = ()
    """Detected speech without words after two attempts."""
    stats: DecodingStats = DecodingStats()
    """Numbers of chunks, cuts in speech and gaps decoded again."""
    origin: Origin | None = None
    """How the samples were decoded; of all partials, the last one contains it."""
    turns: tuple[SpeakerTurn, ...] = ()
    """Turns of speakers in a diarized recording; of all partials, the last one contains them."""

    @property
    def text(self) -> str:
        """All words; with channels or speakers, one line per turn with their names."""
        if not self.channels and not self.speakers:
            return " ".join(word.text for word in self.words)
        turns = groupby(self.sentences, key=spoken_by)
        return "\n".join(
            f"{label}: " + " ".join(sentence.text for sentence in turn) for label, turn in turns
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels with words, if they are transcribed separately."""
        return tuple(sorted({word.channel for word in self.words if word.channel is not None}))

    @property
    def speakers(self) -> tuple[str, ...]:
        """Speakers with words, in the order in which they start, if the recording was diarized."""
        names = [word.speaker.name for word in self.words if word.speaker is not None]
        return tuple(dict.fromkeys(names))

    def of_channel(self, channel: int | None) -> tuple[Word, ...]:
        """The words of one channel; None selects those of a mix."""
        return tuple(word for word in self.words if word.channel == channel)

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """The words by sentence and speaker, ordered by start time."""
        sentences = [
            sentence
            for channel in self.channels or (None,)
            for sentence in _sentences(self.of_channel(channel))
        ]
        return tuple(sorted(sentences, key=lambda sentence: sentence.start_seconds))


@dataclass(frozen=True, slots=True)
class LastPartial(Transcript):
    """No words, but the facts of the recording."""

    similarities: tuple[SpeakerSimilarities, ...] = field(default=(), compare=False)
    """One per channel of a diarized recording."""


def _sentences(words: Iterable[Word]) -> Iterator[Sentence]:
    sentence: list[Word] = []
    for word in words:
        if sentence and _speaker(word) != _speaker(sentence[-1]):
            yield Sentence(tuple(sentence))
            sentence = []
        sentence.append(word)
        if _completes(word, sentence):
            yield Sentence(tuple(sentence))
            sentence = []
    if sentence:
        yield Sentence(tuple(sentence))


def _speaker(word: Word) -> str | None:
    return None if word.speaker is None else word.speaker.name


def spoken_by(sentence: "Sentence | Word") -> str:
    """Channel and speaker, as a label; empty without both."""
    speaker = _speaker(sentence) if isinstance(sentence, Word) else sentence.speaker
    channel = None if sentence.channel is None else f"Channel {sentence.channel}"
    return ", ".join(part for part in (channel, speaker) if part is not None)


def _completes(word: Word, sentence: Sequence[Word]) -> bool:
    return word.text.endswith(_SENTENCE_ENDS) or len(sentence) == MAX_SENTENCE_WORDS


class SentencesSoFar:
    """Collects partials, in order, and returns sentences as soon as they are complete.

    The sentences are those of the whole transcript, per channel.
    """

    def __init__(self) -> None:
        self._incomplete: dict[int | None, list[Word]] = {}

    def add(self, partial: Transcript) -> tuple[Sentence, ...]:
        """The sentences that this partial completes."""
        complete: list[Sentence] = []
        for word in partial.words:
            words = self._incomplete.setdefault(word.channel, [])
            words.append(word)
            if _completes(word, words):
                complete.append(Sentence(tuple(words)))
                words.clear()
        return tuple(complete)

    def rest(self) -> tuple[Sentence, ...]:
        """The incomplete sentences at the end of the recording."""
        rest = [Sentence(tuple(words)) for words in self._incomplete.values() if words]
        self._incomplete.clear()
        return tuple(sorted(rest, key=lambda sentence: sentence.start_seconds))


def bare(word: Word) -> str:
    """Letters and digits in lower case: the rest differs if a word is decoded twice."""
    return "".join(letter for letter in word.text.casefold() if letter.isalnum())


def mean_logprob(words: Iterable[Word]) -> float:
    """Mean log-probability of the tokens; 0 without words."""
    logprobs = [token.logprob for word in words for token in word.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


def stitch(chunk: Chunk, hypothesis: Hypothesis) -> Transcript:
    """The words of one chunk on the recording's clock, limited to the chunk."""
    return Transcript(words=_words(chunk, hypothesis), frame_seconds=hypothesis.frame_seconds)


def join(partials: Sequence[Transcript]) -> Transcript:
    """Concatenate the partials of one recording, in order."""
    words = [word for partial in partials for word in partial.words]
    if any(word.channel is not None for word in words):
        words.sort(key=lambda word: word.start_seconds)
    return Transcript(
        words=tuple(words),
        seconds=sum(partial.seconds for partial in partials),
        frame_seconds=partials[0].frame_seconds,
        warnings=tuple(warning for partial in partials for warning in partial.warnings),
        uncovered=tuple(span for partial in partials for span in partial.uncovered),
        stats=sum((partial.stats for partial in partials), DecodingStats()),
        origin=partials[-1].origin,
        turns=tuple(turn for partial in partials for turn in partial.turns),
    )


def _words(chunk: Chunk, hypothesis: Hypothesis) -> tuple[Word, ...]:
    """A word starts at a piece with `▁` and only there, as in SentencePiece's detokenization.

    A closing mark within a word has no duration, as in NeMo's word times: the model may emit a
    full stop long after the word, at the end of a pause. Marks at the start of a chunk belong to
    a word before it, and are dropped.
    """
    words: list[list[TimedToken]] = []
    spaces: list[TimedToken] = []
    starts = True
    for timed in _parts(chunk, hypothesis):
        text = timed.text.removeprefix(_WORD_START)
        starts = starts or text != timed.text
        part = timed if text == timed.text else _renamed(timed, text, timed.ids)
        if not text:
            spaces.append(part)
        elif starts:
            words.append([*spaces, part])
            spaces, starts = [], False
        elif _is_closing(text):
            end = words[-1][-1].end_seconds
            words[-1].append(replace(part, start_seconds=end, end_seconds=end))
        else:
            words[-1].append(part)
    complete = [
        Word("".join(part.text for part in parts), tuple(parts), chunk.channel)
        for parts in itertools.dropwhile(_closes, words)
    ]
    return _with_speech(_lasting(complete, chunk.end_seconds, hypothesis.frame_seconds), chunk)


def _with_speech(words: Iterable[Word], chunk: Chunk) -> tuple[Word, ...]:
    words = tuple(words)
    if chunk.frames is None or not words:
        return words
    means = chunk.frames.means([Span(word.start_seconds, word.end_seconds) for word in words])
    return tuple(
        Word(word.text, word.tokens, word.channel, mean, word.speaker)
        for word, mean in zip(words, means, strict=True)
    )


def _lasting(words: Sequence[Word], latest: float, frame_seconds: float) -> Iterator[Word]:
    """Extend words of no duration to one frame, or to the next word, but at least 0.01 s."""
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
    """The word from `start` to `end`; its last token that is not a mark has all the time."""
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
    """The word with its times limited to `seconds` and later."""
    tokens = (
        replace(
            token,
            start_seconds=max(token.start_seconds, seconds),
            end_seconds=max(token.end_seconds, seconds),
        )
        for token in word.tokens
    )
    return replace(word, tokens=tuple(tokens))


def _parts(chunk: Chunk, hypothesis: Hypothesis) -> Iterator[TimedToken]:
    """Tokens split at spaces; adjacent byte pieces are decoded to their text."""
    start, latest, frame = chunk.start_seconds, chunk.end_seconds, hypothesis.frame_seconds
    for is_byte, tokens in groupby(hypothesis.tokens, key=lambda token: is_byte_piece(token.piece)):
        parts = [_timed(token, start, latest, frame) for token in tokens]
        if is_byte:
            parts = [_decoded(parts)]
        for timed in parts:
            if timed.text and _WORD_START not in timed.text[1:]:
                yield timed
                continue
            for index, text in enumerate(_SPACED.findall(timed.text)):
                yield _renamed(timed, text, () if index else timed.ids)


def _renamed(timed: TimedToken, text: str, ids: tuple[int, ...]) -> TimedToken:
    """The token with another text; `replace` takes four times as long, for every token."""
    return TimedToken(text, timed.start_seconds, timed.end_seconds, timed.logprob, ids)


def is_byte_piece(piece: str) -> bool:
    """Whether a piece is one byte, as `<0xE2>`."""
    return piece.startswith("<") and _BYTE.fullmatch(piece) is not None


def _decoded(tokens: Sequence[TimedToken]) -> TimedToken:
    """Decode byte pieces as UTF-8; an invalid byte becomes U+FFFD, as in SentencePiece."""
    rest = bytes(int(token.text[3:5], 16) for token in tokens)
    text = ""
    while rest:
        try:
            text, rest = text + rest.decode(), b""
        except UnicodeDecodeError as failure:
            text += rest[: failure.start].decode() + "\N{REPLACEMENT CHARACTER}"
            rest = rest[failure.start + 1 :]
    return replace(
        tokens[0],
        text=text.replace(" ", _WORD_START),
        end_seconds=tokens[-1].end_seconds,
        logprob=sum(token.logprob for token in tokens) / len(tokens),
        ids=tuple(number for token in tokens for number in token.ids),
    )


def _timed(
    token: Token, origin_seconds: float, latest_seconds: float, frame_seconds: float
) -> TimedToken:
    start = origin_seconds + token.frame * frame_seconds
    end = min(start + token.duration * frame_seconds, latest_seconds)
    start = min(start, latest_seconds)
    ids = () if token.id is None else (token.id,)
    return TimedToken(
        token.piece, round(start, _DECIMALS), round(end, _DECIMALS), token.logprob, ids
    )


def _closes(parts: Sequence[TimedToken]) -> bool:
    """Whether a word consists of closing marks only."""
    return all(_is_closing(letter) for part in parts for letter in part.text)


def _is_closing(text: str) -> bool:
    """Whether `text` is one closing punctuation mark of any of the languages.

    A dash, an opening bracket or quote and `&`, `@`, `#`, `§` are not.
    """
    if len(text) != 1 or text in "¿¡&@#§*/\\%":
        return False
    return unicodedata.category(text) in ("Po", "Pe", "Pf") or text in "“\"'"
