"""What every engine promises: chunks of audio in, one outcome each out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.errors import EngineError
from parakeet_worker.language import Script

SAMPLE_RATE = 16_000
"""Samples per second of all audio that an engine takes."""

Samples: TypeAlias = npt.NDArray[np.float32]
"""Mono samples at 16 kHz, full scale at 1.0."""

Waveform: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int16]
"""Mono samples at 16 kHz as an engine takes them: float32 with full scale at 1.0, or int16 with
full scale at 32768. One batch may hold both."""

_INT16_FULL_SCALE = 32768.0


def as_float(samples: Waveform) -> Samples:
    """The same samples in float32; float32 is returned as it is, without a copy."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(_INT16_FULL_SCALE)
    return samples.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of text with its place in the chunk."""

    piece: str
    """A SentencePiece piece; `▁` in front opens a word."""
    frame: int
    """Encoder frame at which the token was emitted."""
    duration: int
    """Frames until the next decision."""
    logprob: float
    """Natural logarithm of the token's probability among all tokens and the blank."""


class LazyTokens(Sequence[Token]):
    """Tokens that are built when they are first read, in the thread that reads them.

    `build` is called once, or once per thread where threads race, and is then released together
    with the arrays that it holds. Equal to any sequence of the same tokens.
    """

    __slots__ = ("_build", "_count", "_tokens")

    def __init__(self, count: int, build: Callable[[], tuple[Token, ...]]) -> None:
        """`count` is how many tokens `build` returns."""
        self._count = count
        self._build: Callable[[], tuple[Token, ...]] | None = build
        self._tokens: tuple[Token, ...] | None = None

    def _built(self) -> tuple[Token, ...]:
        build = self._build
        if build is not None:
            self._tokens = build()
            self._build = None  # last, so that another thread finds the one or the other
        assert self._tokens is not None
        return self._tokens

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Token]:
        return iter(self._built())

    @overload
    def __getitem__(self, index: int) -> Token: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Token, ...]: ...
    def __getitem__(self, index: int | slice) -> Token | tuple[Token, ...]:
        return self._built()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._built() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._built())

    def __repr__(self) -> str:
        return repr(self._built())


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """What was recognised in one chunk."""

    tokens: Sequence[Token]
    frame_seconds: float

    def __eq__(self, other: object) -> bool:
        """Whether the tokens and the frame are the same, whatever kind of sequence holds them."""
        if not isinstance(other, Hypothesis):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[float, tuple[Token, ...]]:
        return self.frame_seconds, tuple(self.tokens)


Outcome: TypeAlias = Hypothesis | EngineError
"""What becomes of one chunk; an error is the answer of its chunk alone."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one batch may hold."""

    seconds: float
    """Seconds of audio: the longest times the count where the engine pads, the sum where it
    packs."""
    chunks: int
    """At most so many chunks."""
    packed: bool
    """Whether the engine computes no padding."""
    alone_seconds: float = inf
    """A chunk that is longer is a batch of its own."""


class Pending(Protocol):
    """A batch that an engine works on."""

    def result(self) -> list[Outcome]:
        """One outcome per chunk, in order; blocks until they are there.

        Called once, from any thread. Raises `OutOfMemory` where the batch does not fit, and
        anything else where the engine is lost.
        """


class Engine(Protocol):
    """Transcribes batches."""

    @property
    def reports(self) -> Sequence[KernelReport]:
        """What comparisons of its kernels found; complete after `warm_up`, empty without any."""

    @property
    def depth(self) -> int:
        """Batches that may be in flight at once; with 1 a batch is computed inside `submit`."""

    def submit(self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()) -> Pending:
        """Begin a batch; called from one thread only. May return before the work is done.

        `scripts`, if given, has for each chunk the script that its letters have to be in, or none.
        Raises what `Pending.result` raises.
        """

    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """`submit(...).result()`, for tools and tests."""

    def warm_up(self, chunk_seconds: float) -> None:
        """Do once what the first chunks would wait for, for chunks of up to `chunk_seconds`."""

    def capacity(self, chunk_seconds: float) -> Capacity:
        """What one batch may hold; measured after `warm_up`, with nothing in flight."""

    def release(self) -> None:
        """Return cached memory to the device after a batch did not fit, before a smaller one.

        Called from the thread that submits, with nothing in flight and nothing of the failed
        batch referenced any more.
        """

    def close(self) -> None:
        """Return memory and devices; neither raises nor blocks where the device has failed."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A batch that was computed before it was handed over."""

    outcomes: list[Outcome]

    def result(self) -> list[Outcome]:
        return self.outcomes


class SynchronousEngine(ABC):
    """An engine that computes a batch inside `submit`; what fails is raised there."""

    depth = 1
    reports: Sequence[KernelReport] = ()

    @abstractmethod
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One outcome per chunk, in order."""

    def submit(self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()) -> Pending:
        """`transcribe` at once."""
        return Finished(self.transcribe(batch, scripts))

    def release(self) -> None:  # noqa: B027  # most have nothing to release
        """Nothing is cached."""
