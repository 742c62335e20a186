"""Part `self_check`: results and duration of a worker's comparison of kernels at start."""

import time

from bench.gpu.figures import Report
from bench.gpu.opening import (
    DEMO,
    Loaded,
    loaded,
    random_nemo,
    served,
    settle,
)
from bench.gpu.parts import Setup
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.gpu_engine import GpuEngine, search_model
from parakeet_worker.engine.native.kernel_choice import (
    EncoderParts,
    check_encoder,
    check_search,
)
from parakeet_worker.engine.native.tensors import strip_prefix

_GOAL = 0.5


def run(setup: Setup, report: Report) -> None:
    """Use the random model, which has the largest errors, and the demo checkpoint."""
    for name, path in (("random", random_nemo(setup)), ("demo", DEMO)):
        with served(setup, path, "bf16") as engine:
            for result in engine.reports:
                report.check(
                    f"{result.name}, {name}", result.error, "of the norm", at_most=result.tolerance
                )
            seconds = _seconds(setup, loaded(setup, path, "bf16"), engine)
        report.measure(f"comparison, {name}", seconds, "s", at_most=_GOAL)


def _seconds(setup: Setup, model: Loaded, engine: GpuEngine) -> float:
    """Seconds to compare each kernel, the chain and the search, with compiled kernels."""
    plain = NativeEngine(model.model, model.device)
    folded = strip_prefix("encoder", model.model.tensors)
    shape = EncoderConfig.from_nemo(model.model.encoder)
    parts = EncoderParts(plain.features, shape, folded, model.model.precision)
    settle(setup)
    started = time.perf_counter()
    check_encoder(parts, model.kernels)
    check_search(search_model(model.model), model.search_kernels, model.tiles, model.search_dtype)
    engine.compare()
    settle(setup)
    return time.perf_counter() - started
