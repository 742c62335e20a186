"""One recording's way from a file to chunks, in the calling thread."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parakeet_worker.audio.all_tracks import Audio, decoding
from parakeet_worker.audio.decoding import Origin, ResamplingPrecision
from parakeet_worker.audio.demuxers import Headerless
from parakeet_worker.audio.tracks import Track
from parakeet_worker.engine.base import Samples
from parakeet_worker.notices import Notice
from parakeet_worker.options import Channels, OnDamage, Vad
from parakeet_worker.recognition.chunks import Chunk, split
from parakeet_worker.request import Clip
from parakeet_worker.vad.base import Detector


@dataclass(frozen=True, slots=True)
class Cutting:
    """How to decode one file and to cut it."""

    path: Path
    ffmpeg: Path
    max_audio_seconds: float
    timeout_seconds: float
    clip: Clip
    channels: Channels
    track: Track
    on_damage: OnDamage
    decoder_memory_bytes: int
    precision: ResamplingPrecision
    headerless: Headerless | None
    vad: Vad
    chunk_seconds: float
    """Maximum duration of a chunk."""
    whole: bool
    """Do not cut it."""

    def audio(self) -> Audio:
        """The decoding, not started yet."""
        return decoding(
            self.path,
            ffmpeg=self.ffmpeg,
            max_seconds=self.max_audio_seconds,
            timeout_seconds=self.timeout_seconds,
            clip=self.clip,
            channels=self.channels,
            track=self.track,
            on_damage=self.on_damage,
            memory_bytes=self.decoder_memory_bytes,
            precision=self.precision,
            headerless=self.headerless,
        )


@dataclass(frozen=True, slots=True)
class Decoded:
    """Facts of a recording, complete after its last chunk."""

    seconds: float
    """Duration of the decoded part of the clip."""
    warnings: tuple[Notice, ...]
    origin: Origin


class Ingest(Protocol):
    """Produces the chunks of one recording."""

    def chunks(self) -> Generator[Chunk, None, None]:
        """Chunks in order, produced in the calling thread; raises what `Decoding.blocks` does."""
        ...

    def stop(self) -> None:
        """End `chunks` soon and without an error; callable from any thread."""
        ...

    @property
    def decoded(self) -> Decoded:
        """Available after the last chunk."""
        ...


class Observer(Protocol):
    """Receives the samples of a recording while it is cut."""

    def feed(self, block: Samples) -> None:
        """The next samples, (N,) or (N, channels)."""
        ...

    def start(self) -> None:
        """There is no first chunk, whose words come before anything else."""
        ...

    def finish(self) -> None:
        """There are no more samples; called after the last chunk."""
        ...

    def close(self) -> None:
        """Called in any case, last; from another thread too, to end `feed` and `finish`."""
        ...


class InThread:
    """Decodes, detects speech and cuts in the calling thread."""

    def __init__(
        self,
        cutting: Cutting,
        detector: Callable[[Vad], Detector],
        observer: Observer | None = None,
    ) -> None:
        """`observer` receives all blocks of samples, and is closed at the end."""
        self._cutting = cutting
        self._detector = detector
        self._observer = observer
        self._audio = cutting.audio()
        self._stopped = False

    def chunks(self) -> Generator[Chunk, None, None]:
        """See `Ingest.chunks`."""
        with ExitStack() as stack:
            stack.enter_context(self._stopping())
            blocks = stack.enter_context(closing(self._audio.blocks()))
            if self._observer is not None:
                stack.enter_context(closing(self._observer))
            cut = stack.enter_context(closing(self._cut(blocks)))
            first = next(cut, None)
            if first is not None:
                yield first
            elif self._observer is not None:
                self._observer.start()
            del first
            yield from cut
            # After the last chunk, whose words do not wait for it.
            if self._observer is not None:
                self._observer.finish()

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """After `stop`, what it cancelled is not an error."""
        try:
            yield
        except CancelledError:
            if not self._stopped:
                raise

    def _cut(self, blocks: Iterator[Samples]) -> Generator[Chunk, None, None]:
        cutting = self._cutting
        return split(
            self._observed(blocks),
            lambda: self._detector(cutting.vad),
            max_seconds=cutting.chunk_seconds,
            start_seconds=cutting.clip.start_seconds,
            whole=cutting.whole,
        )

    def _observed(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        for block in blocks:
            if self._observer is not None:
                self._observer.feed(block)
            yield block

    def stop(self) -> None:
        """See `Ingest.stop`."""
        self._stopped = True
        self._audio.stop()
        if self._observer is not None:
            self._observer.close()

    @property
    def decoded(self) -> Decoded:
        """See `Ingest.decoded`."""
        audio = self._audio
        return Decoded(audio.yielded_seconds, audio.warnings, audio.origin)
