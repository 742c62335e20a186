"""The composition root: settings to a model, an engine, a batcher and a pipeline."""

import ctypes
import gc
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from typing import TypeVar

from parakeet_worker import language, weights
from parakeet_worker.audio import decoding
from parakeet_worker.batcher import Batcher
from parakeet_worker.container import Container, fitted
from parakeet_worker.engine.base import Capacity, Engine
from parakeet_worker.options import Vad
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.remote import s3
from parakeet_worker.scratch import scratch_of
from parakeet_worker.settings import Settings
from parakeet_worker.vad.base import Detector
from parakeet_worker.vad.energy import EnergyDetector

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_M_ARENA_MAX = -8  # from malloc.h

VARIABLES = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "GOMP_SPINCOUNT": "10000",
    # The retries of hf_xet would take minutes before plain HTTP is tried.
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
}
"""What a server sets before libraries are loaded, where the operator has not.

On a processor every new length of audio leaves a product's plan and code behind, 1,024 of them by
default; what one batch needs is a fraction of these. A thread of OpenMP's that waits for another
looks 300,000 times by default before it sleeps: where other processes want the same cores, it waits
for one that does not run meanwhile, and a batch takes ten times as long.
"""


@contextmanager
def open_pipeline(settings: Settings) -> Iterator[Pipeline]:
    """A pipeline whose engine is loaded and warm; raises `SetupError`s."""
    started = time.monotonic()
    _share_heaps()
    settings = fitted(settings, Container.read())
    scratch_of(settings).prepare()
    ffmpeg = decoding.find_ffmpeg(settings.ffmpeg)
    s3.check(settings)
    # Its half second is needed by the first answer that names a language; here others load too.
    identifier = Thread(target=language.load, name="language", daemon=True)
    identifier.start()
    engine = _apart(lambda: open_engine(settings))
    made: Future[Batcher] = Future()
    try:
        # Detectors first, as what is free afterwards is the batches'.
        detectors = _apart(lambda: open_detectors(settings, _losing(made)))
        capacity = _apart(lambda: warmed_up(engine, settings))
        with Batcher(
            engine,
            capacity=capacity,
            queue_seconds=settings.queue_seconds,
            timeout_seconds=settings.engine_timeout_seconds,
        ) as batcher:
            made.set_result(batcher)
            identifier.join()
            seconds = time.monotonic() - started
            log.info(
                "ready after %.1f s: %s from %s, batches of %.0f s",
                seconds, engine, settings.model, capacity.seconds,
            )  # fmt: skip
            with loaded_is_kept():
                yield Pipeline(settings, batcher, ffmpeg, detectors)
    finally:
        # Of an engine that is lost nothing is touched any more: its device may never answer.
        if not made.done() or not made.result().lost:
            engine.close()


@contextmanager
def loaded_is_kept() -> Iterator[None]:
    """Keep the garbage collector away from all that was loaded before.

    torch alone is 250,000 objects that never become garbage; to look at them all takes 140 ms, in
    which no thread runs.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _losing(made: "Future[Batcher]") -> Callable[[str], None]:
    """Gives up the engine for a reason outside it: at once, or as soon as there is a batcher."""
    return lambda reason: made.add_done_callback(lambda done: done.result().mark_lost(reason))


def warmed_up(engine: Engine, settings: Settings) -> Capacity:
    """What a batch of the engine may hold, after warming it up; the operator's limit counts."""
    engine.warm_up(settings.segment_seconds)
    capacity = engine.capacity(settings.segment_seconds)
    if settings.batch_seconds is None:
        return capacity
    return replace(capacity, seconds=settings.batch_seconds)


def _apart(work: Callable[[], Value]) -> Value:
    """Do it in a thread that ends with it.

    Whoever computes gets a team of OpenMP threads for life. With a second team beside the engine's
    there are more of them than processors, and then none waits actively any more for the others:
    on two processors a busy worker loses a sixth of its throughput.
    """
    done: Future[Value] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as failure:  # noqa: BLE001  # raised again where it is waited for
            done.set_exception(failure)

    # A daemon: who interrupts the loading does not wait for its end.
    thread = Thread(target=run, name="loading", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def _share_heaps() -> None:
    """Let all threads allocate from two heaps.

    glibc gives nearly every thread one of its own; each keeps the most that its thread ever held,
    so that a worker with many threads grows for thousands of jobs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no such option, nor such heaps
        mallopt(_M_ARENA_MAX, 2)


def give_back_memory() -> None:
    """Give the system what was freed; the heaps keep it otherwise, a tenth of a worker's memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def open_detectors(
    settings: Settings, on_device_failure: Callable[[str], None] | None = None
) -> Callable[[Vad], Detector]:
    """What listens for speech; pure tones, which the tones engine hears, are none.

    `on_device_failure` is called with the reason where the GPU fails while it is listened on.
    """
    if settings.engine == "tones":
        return lambda _: EnergyDetector()
    from parakeet_worker.vad import backends

    on_cpu = "cpu" in (settings.device, settings.vad_device)
    listener = backends.open_listener("cpu" if on_cpu else "auto", on_device_failure)
    return lambda vad: EnergyDetector() if vad == "off" else backends.SileroDetector(listener)


def open_engine(settings: Settings) -> Engine:
    """The engine that the settings name, with its model loaded."""
    if settings.engine == "tones":
        from parakeet_worker.engine.tones import ToneEngine

        return ToneEngine()
    # Before torch is imported: a model that is not there is said at once.
    wanted: tuple[weights.Kind, ...] = ("nemo",) if settings.engine == "nemo" else weights.ANY_KIND
    checkpoint = weights.find(
        settings.model, wanted, revision=settings.model_revision,
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
