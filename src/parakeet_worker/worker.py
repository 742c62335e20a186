"""The composition root: settings to a model, an engine, a batcher and a pipeline."""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from threading import Lock, Thread
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from parakeet_worker import heap, language, weights
from parakeet_worker.audio import decoding
from parakeet_worker.batcher import Batcher
from parakeet_worker.container import Container, fitted
from parakeet_worker.engine.base import Capacity, Engine
from parakeet_worker.extras import required
from parakeet_worker.ingest.processes import Processes
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.remote import s3
from parakeet_worker.scratch import scratch_of
from parakeet_worker.settings import Settings
from parakeet_worker.vad.base import VadBackend
from parakeet_worker.vad.detectors import Detectors

if TYPE_CHECKING:
    from parakeet_worker.speakers.diarization import WindowQueue
    from parakeet_worker.speakers.networks import Networks

log = logging.getLogger(__name__)

Value = TypeVar("Value")

OpenDetectors: TypeAlias = Callable[[Settings, Callable[[str], None]], Detectors]
"""Loads what detectors share; the callback is for a reason why the device is unusable."""

_MIN_PROCESSORS = 4
"""With fewer, ingest processes are no faster than threads."""

_MOST_PROCESSES = 8
"""Ingest processes that are together faster than any engine."""

_COLLECTIONS_PER_FULL_ONE = 1000

VARIABLES = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "GOMP_SPINCOUNT": "10000",
    # hf_xet would retry for minutes before the fallback to plain HTTP.
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    # Of numpy, whose products are short; its threads would compete with torch's.
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment variables that a server sets before it imports libraries, unless they are set.

oneDNN caches one primitive per input length, 1,024 by default; a batch needs a fraction of that. An
OpenMP thread spins 300,000 times by default before it sleeps: if other processes use the same
cores, it spins while the thread it waits for is not scheduled, and a batch takes ten times as long.
"""


@contextmanager
def open_pipeline(settings: Settings) -> Iterator[Pipeline]:
    """Open a pipeline with a loaded and warmed-up engine; raises `SetupError`."""
    started = time.monotonic()
    heap.limit_arenas()
    settings = fitted(settings, Container.read())
    scratch_of(settings).prepare()
    decoding.find_ffmpeg(settings.ffmpeg)
    s3.check(settings)
    # Takes 0.5 s; needed by the first answer that names a language.
    identifier = Thread(target=language.load, name="language", daemon=True)
    identifier.start()
    engine = _in_temporary_thread(lambda: open_engine(settings))
    with pipeline_around(engine, settings, open_detectors) as pipeline:
        identifier.join()
        seconds = time.monotonic() - started
        log.info("ready after %.1f s: %s from %s", seconds, engine, settings.model)
        with gc_frozen():
            yield pipeline


@contextmanager
def pipeline_around(
    engine: Engine, settings: Settings, open_detectors: OpenDetectors
) -> Iterator[Pipeline]:
    """A pipeline around a loaded engine, which is warmed up first and closed at the end.

    A lost engine is not closed: its device may block forever.
    """
    created: Future[Batcher] = Future()
    with ExitStack() as stack:
        stack.callback(_close, engine, created)
        # Before the capacity is measured, since detectors use memory of the same device.
        detectors = _in_temporary_thread(lambda: open_detectors(settings, _losing(created)))
        # They start while the engine is warmed up.
        processes = stack.enter_context(ingest_processes(settings, engine, detectors.backend))
        _in_temporary_thread(lambda: engine.warm_up(settings.segment_seconds))
        capacity = _in_temporary_thread(lambda: batch_capacity(engine, settings))
        log.info("batches of %.0f s", capacity.seconds)
        batcher = Batcher(
            engine,
            capacity=capacity,
            queue_seconds=settings.queue_seconds,
            timeout_seconds=settings.engine_timeout_seconds,
        )
        created.set_result(stack.enter_context(batcher))
        ffmpeg = decoding.find_ffmpeg(settings.ffmpeg)
        networks = stack.enter_context(speaker_networks(settings, _losing(created)))
        yield Pipeline(settings, batcher, ffmpeg, detectors, networks, processes=processes)


def _close(engine: Engine, created: "Future[Batcher]") -> None:
    if not created.done() or not created.result().lost:
        engine.close()


@contextmanager
def ingest_processes(
    settings: Settings, engine: Engine, backend: VadBackend | None
) -> Iterator[Processes | None]:
    """The chosen number of ingest processes; by default only for an engine on a GPU.

    A CPU transcribes slower than one process decodes and cuts, and has no core to spare.
    """
    count = settings.ingest_processes
    if count is None and engine.depth > 1:
        processors = Container.read().threads
        count = min(_MOST_PROCESSES, processors // 2) if processors >= _MIN_PROCESSORS else 0
    if not count:
        yield None
        return
    with closing(Processes(count, backend)) as processes:
        yield processes


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Exclude all existing objects from garbage collection, and make full collections rare.

    torch alone has 250,000 permanent objects; a full collection would hold the GIL for 140 ms.
    The words of ten hours of audio are 200,000 more. By default a full collection follows ten
    others, so that most long recordings have one. What lives so long contains few cycles.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*thresholds[:2], _COLLECTIONS_PER_FULL_ONE)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _losing(created: "Future[Batcher]") -> Callable[[str], None]:
    """Return a callback that marks the engine as lost, once the batcher exists."""
    return lambda reason: created.add_done_callback(lambda done: done.result().mark_lost(reason))


def batch_capacity(engine: Engine, settings: Settings) -> Capacity:
    """The capacity of one batch of a warmed-up engine, limited by the settings."""
    capacity = engine.capacity(settings.segment_seconds)
    if settings.batch_seconds is None:
        return capacity
    return replace(capacity, seconds=settings.batch_seconds)


def _in_temporary_thread(work: Callable[[], Value]) -> Value:
    """Call `work` in a thread that ends afterwards.

    OpenMP keeps a thread pool per calling thread. A second pool next to the engine's would exceed
    the number of CPUs and disable spinning: measured on two CPUs, a busy worker loses a sixth of
    its throughput.
    """
    done: Future[Value] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as failure:  # noqa: BLE001  # re-raised by `result`
            done.set_exception(failure)

    # A daemon, so that an interrupt while loading does not block the exit.
    thread = Thread(target=run, name="loading", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def open_detectors(
    settings: Settings, on_device_failure: Callable[[str], None] | None = None
) -> Detectors:
    """Load what speech detectors share.

    `on_device_failure` is called with the reason if the GPU of the detector fails. The tones
    engine transcribes pure tones, which a speech model rejects, so it gets an energy detector.
    """
    if settings.engine == "tones":
        return Detectors(None)
    from parakeet_worker.vad import backends

    on_cpu = "cpu" in (settings.device, settings.vad_device)
    return Detectors(backends.open_backend("cpu" if on_cpu else "auto", on_device_failure))


@contextmanager
def speaker_networks(
    settings: Settings, on_device_failure: Callable[[str], None] | None = None
) -> "Iterator[Callable[[], WindowQueue]]":
    """Loads both networks at the first call, returns the same ones at later calls, closes them.

    `on_device_failure` is called with the reason if the GPU fails.
    """
    lock = Lock()
    loaded: list[Networks] = []

    def load() -> "WindowQueue":
        with lock:
            if not loaded:
                with required("speakers"):
                    from parakeet_worker.speakers.networks import Networks, default_device

                device = "cpu" if settings.engine == "tones" else default_device(settings.device)
                loaded.append(Networks(device, on_device_failure=on_device_failure))
            return loaded[0]

    try:
        yield load
    finally:
        for networks in loaded:
            networks.close()


def open_engine(settings: Settings) -> Engine:
    """Open the configured engine with its model loaded; raises `SetupError`."""
    if settings.engine == "tones":
        from parakeet_worker.engine.tones import ToneEngine

        return ToneEngine()
    # Before torch is imported, so that a missing model fails immediately.
    kinds: tuple[weights.Kind, ...] = ("nemo",) if settings.engine == "nemo" else weights.ANY_KIND
    checkpoint = weights.find(
        settings.model, kinds, revision=settings.model_revision,
        timeout_seconds=settings.model_timeout_seconds,
    )  # fmt: skip
    from parakeet_worker.engine import device

    device.disable_tf32()
    if settings.threads is not None:
        device.limit_threads(settings.threads)
    if settings.engine == "nemo":
        from parakeet_worker.engine.nemo import NemoEngine

        return NemoEngine.open(checkpoint, device=settings.device, precision=settings.precision)
    from parakeet_worker.engine.native.opening import open_native

    return open_native(
        checkpoint,
        device=settings.device,
        precision=settings.precision,
        cache_dir=settings.converted.expanduser(),
        kernels=settings.kernels == "auto",
        kernel_folders=settings.kernel_folders,
        reproducible=settings.reproducible,
        chunk_seconds=settings.segment_seconds,
    )
