"""The engine interface: a batch of audio chunks in, one outcome per chunk out."""

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
"""Sample rate of all engine input, in Hz."""

Samples: TypeAlias = npt.NDArray[np.float32]
"""Mono samples at 16 kHz, full scale 1.0."""

Waveform: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int16]
"""Engine input: mono samples at 16 kHz, float32 with full scale 1.0 or int16 with full scale 32768.
One batch may contain both."""

_INT16_FULL_SCALE = 32768.0


def as_float(samples: Waveform) -> Samples:
    """Convert to float32; float32 input is returned without a copy."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(_INT16_FULL_SCALE)
    return samples.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Token:
    """An emitted token and its position in the chunk."""

    piece: str
    """SentencePiece piece; a leading `▁` starts a word."""
    frame: int
    """Index of the encoder frame that emitted the token."""
    duration: int
    """Predicted duration in encoder frames (TDT)."""
    logprob: float
    """Natural logarithm of the token's probability over the vocabulary including blank."""
    id: int | None = None
    """Index in the model's vocabulary; None for an engine without one."""


class LazyTokens(Sequence[Token]):
    """Token sequence that is built on first access, in the accessing thread.

    `build` is called once, or once per thread if threads race, and is then released together with
    the arrays it references. Equal to any sequence of the same tokens.
    """

    __slots__ = ("_build", "_count", "_tokens")

    def __init__(self, count: int, build: Callable[[], tuple[Token, ...]]) -> None:
        """`count` is the number of tokens that `build` returns."""
        self._count = count
        self._build: Callable[[], tuple[Token, ...]] | None = build
        self._tokens: tuple[Token, ...] | None = None

    def _built(self) -> tuple[Token, ...]:
        build = self._build
        if build is not None:
            self._tokens = build()
            self._build = None  # last: a concurrent reader must see `_tokens` or `_build`
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
    """The recognised tokens of one chunk."""

    tokens: Sequence[Token]
    frame_seconds: float

    def __eq__(self, other: object) -> bool:
        """Compare tokens and frame length, regardless of the sequence type."""
        if not isinstance(other, Hypothesis):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[float, tuple[Token, ...]]:
        return self.frame_seconds, tuple(self.tokens)


Outcome: TypeAlias = Hypothesis | EngineError
"""Result of one chunk; an error concerns that chunk only."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of one batch."""

    seconds: float
    """Seconds of audio: the longest chunk times the count if the engine pads, the sum if it
    packs."""
    chunks: int
    """Maximum number of chunks."""
    packed: bool
    """Whether the engine packs chunks without padding."""
    alone_seconds: float = inf
    """Chunks longer than this are batches of their own."""


class Pending(Protocol):
    """A batch that was submitted to an engine."""

    def result(self) -> list[Outcome]:
        """Block until the batch is done; returns one outcome per chunk, in order.

        Called once, from any thread. Raises `OutOfMemory` if the batch does not fit. Any other
        exception means that the engine is lost.
        """


class Engine(Protocol):
    """Transcribes batches of chunks."""

    @property
    def reports(self) -> Sequence[KernelReport]:
        """Kernel comparison results; complete after `warm_up`, empty without kernels."""

    @property
    def depth(self) -> int:
        """Maximum number of batches in flight; 1 if `submit` computes synchronously."""

    def submit(self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()) -> Pending:
        """Start a batch; called from a single thread. May return before the batch is done.

        `scripts`, if not empty, has one entry per chunk: the writing system that its tokens are
        restricted to, or None. Raises the same exceptions as `Pending.result`.
        """

    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """`submit(...).result()`, for tools and tests."""

    def warm_up(self, chunk_seconds: float) -> None:
        """Run one-time initialisation for chunks of up to `chunk_seconds`."""

    def capacity(self, chunk_seconds: float) -> Capacity:
        """Measure the limits of one batch; called after `warm_up`, with nothing in flight."""

    def release(self) -> None:
        """Return cached memory to the device, between a batch that did not fit and its retry.

        Called from the submitting thread, with nothing in flight and no references to the failed
        batch.
        """

    def close(self) -> None:
        """Release memory and devices. Neither raises nor blocks after a device failure."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A `Pending` whose outcomes are already computed."""

    outcomes: list[Outcome]

    def result(self) -> list[Outcome]:
        return self.outcomes


class SynchronousEngine(ABC):
    """Base class for engines that compute a batch inside `submit`."""

    depth = 1
    reports: Sequence[KernelReport] = ()

    @abstractmethod
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One outcome per chunk, in order."""

    def submit(self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()) -> Pending:
        """Run `transcribe` synchronously."""
        return Finished(self.transcribe(batch, scripts))

    def release(self) -> None:  # noqa: B027  # most engines cache nothing
        """No-op: nothing is cached."""
