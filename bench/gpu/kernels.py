"""Part `kernels`: compares each kernel with its reference on the device.

The whole chain and the search run on rows of mixed lengths. At every call, the kernel and its
reference receive the same tensors; see `parakeet_worker.engine.native.kernels.check`.
"""

import numpy as np
import torch
from torch import Tensor

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import Loaded, loaded, random_nemo
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.gpu_engine import search_model
from parakeet_worker.engine.native.kernels.check import Comparison
from parakeet_worker.engine.native.kernels.kernel_set import OPERATIONS, Kernels
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.rows import Plan, Rows, rows_of
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchKernels
from parakeet_worker.engine.native.tensors import strip_prefix

PRECISIONS = ("bf16", "fp16")
"""Precisions with kernels."""

_SEARCH = ("product", "lstm", "joint_hidden", "joint_scores", "search_step")
_SEARCHED_ROWS = (16, 64, 256)
_SEARCHED_CALLS = 24
_HOP = 160
_LAYOUTS: tuple[tuple[int, ...], ...] = (
    (1,),
    (_HOP,),
    (8 * _HOP,),
    (0, 1279, 0, 16_000, 1),
    (30 * 16_000,),
    (3 * 16_000, 11_111, 8 * 16_000 + 1, _HOP - 1, 128_000, 5 * 16_000 - 1, 20_480),
)
"""Samples of each row: less than a frame, one frame, one token, empty rows, one row, mixed."""


def run(setup: Setup, report: Report) -> None:
    """Compare every kernel in every precision, with library products and with product kernels."""
    for precision in PRECISIONS:
        for reproducible in (False, True):
            model = loaded(setup, random_nemo(setup), precision, reproducible=reproducible)
            kind = f"{precision}, reproducible" if reproducible else precision
            for result in (*encoder_reports(model, small=setup.small), *search_reports(model)):
                report.check(
                    f"{result.name}, {kind}", result.error, "of the norm", at_most=result.tolerance
                )


@torch.inference_mode()
def encoder_reports(model: Loaded, *, small: bool) -> tuple[KernelReport, ...]:
    """Reports of each kernel over all layouts; `small` omits those that take long on a CPU.

    Products are compared as well, including those of the library.
    """
    comparison = Comparison()
    compared = comparison.wrap(model.kernels, Kernels.reference(), OPERATIONS)
    features, encoder = chain(model, compared)
    for lengths in _LAYOUTS[:4] if small else _LAYOUTS:
        samples, rows = laid_out(chunks_of(lengths), model.device)
        encoder(features(samples, rows), rows)
    return comparison.reports()


@torch.inference_mode()
def search_reports(model: Loaded) -> tuple[KernelReport, ...]:
    """Reports of each kernel of the search on noise, with many lengths and each bucket's tiles."""
    comparison = Comparison(_SEARCHED_CALLS)
    search = GraphSearch(
        search_model(model.model),
        model.device,
        dtype=model.search_dtype,
        kernels=comparison.wrap(model.search_kernels, SearchKernels.reference(), _SEARCH),
        tiles=model.tiles,
        limits=Limits(max(_SEARCHED_ROWS), 20 * max(_SEARCHED_ROWS), slots=2),
    )
    width = model.model.encoder["d_model"]
    generator = torch.Generator().manual_seed(0)
    for count in _SEARCHED_ROWS:
        lengths = [row % 20 for row in range(count)]
        states = torch.randn(sum(lengths), width, generator=generator).to(model.device)
        search.decode(states, lengths)
    return comparison.reports()


def chain(model: Loaded, kernels: Kernels) -> tuple[PackedFeatures, PackedEncoder]:
    """Packed features and encoder of a model with these kernels."""
    plain = NativeEngine(model.model, model.device)
    return (
        PackedFeatures.of(plain.features, kernels, model.model.precision.dtype),
        PackedEncoder(
            strip_prefix("encoder", model.model.tensors),
            EncoderConfig.from_nemo(model.model.encoder),
            kernels,
        ),
    )


def chunks_of(lengths: tuple[int, ...]) -> list[Pcm]:
    """Speech of these lengths in samples, with some noise, so that no frame is silent."""
    generator = np.random.default_rng(len(lengths))
    speech = np.resize(sounds.speech(), sum(lengths))
    noisy = (speech * 0.8 + generator.normal(0, 30, len(speech))).astype(np.int16)
    return np.split(noisy, np.cumsum(lengths)[:-1])


def laid_out(chunks: list[Pcm], device: torch.device) -> tuple[Tensor, Rows]:
    """Packed int16 samples and their rows."""
    plan = Plan(tuple(len(chunk) for chunk in chunks), _HOP)
    samples = torch.from_numpy(np.concatenate(chunks)).to(device)
    return samples, rows_of(plan, [1 / 32768] * len(chunks), device)
