"""Selects the kernels that serve a model on its device: compiles them, then compares them."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from parakeet_worker.container import Container
from parakeet_worker.engine.kernel_report import KernelReport, NoKernels
from parakeet_worker.engine.native.compilation import (
    CompileRequest,
    Target,
    compile_kernels,
    missing,
)
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.kernels import ahead, cache
from parakeet_worker.engine.native.kernels.check import Comparison, with_fallbacks
from parakeet_worker.engine.native.kernels.kernel_set import OPERATIONS, Kernels
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.rows import Plan, rows_of
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchKernels, SearchModel
from parakeet_worker.engine.native.tensors import Tensors

log = logging.getLogger(__name__)

_LAYERS = 2  # a middle layer and the last; all others are like the first
_SECONDS = (11.03, 0.005, 0.07, 0.9)
"""Rows longer than any tile, shorter than a frame, and of lengths between."""
_MAX_PROCESSES = 8
_NOISE_LEVEL = 3000
_SEARCH_OPERATIONS = ("product", "lstm", "joint_hidden", "joint_scores", "search_step")
_SEARCH_ROWS = (16, 32, 64)
"""Each of these numbers of rows selects different tiles."""
_SEARCH_TOKENS = 12
_SEARCH_CALLS = 6


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """Components of the packed encoder, on the device."""

    features: Features
    config: EncoderConfig
    folded: Tensors
    precision: Precision


def compile_missing(target: Target, folders: Sequence[Path]) -> dict[str, str]:
    """Compile the kernels of `target` that `folders` lack; store them in the last folder.

    Blocks while a child process compiles: run it concurrently with other work. Returns the reasons
    of kernels that did not compile, by name; raises `NoKernels` if none compiled.
    """
    started = time.monotonic()
    folders = cache.with_writable(folders)
    cache.activate(folders)
    ahead.precompute_key()
    card = ahead.card_name(target.capability)
    if not missing([target], folders):
        log.info("the kernels for %s in %s are compiled", card, target.precision)
        return {}
    processes = min(_MAX_PROCESSES, Container.read().threads)
    try:
        results = compile_kernels(CompileRequest((target,), folders, processes))
    except (ChildProcessError, OSError) as failure:
        log.warning("kernels are compiled at their first launch: %s", failure)
        return {}
    failures = {result.kernel: result.failure for result in results if result.failure}
    if len([result for result in results if result.failure]) == len(results):
        reason = next(iter(failures.values()), "the model launches none")
        raise NoKernels(f"they do not compile: {reason}")
    log.info(
        "compiled %d kernels for %s in %s within %.1f s with %d processes; stored in %s",
        len(results) - len(failures), card, target.precision, time.monotonic() - started, processes,
        folders[-1],
    )  # fmt: skip
    return failures


@torch.inference_mode()
def check_encoder(
    parts: EncoderParts, kernels: Kernels, failures: Mapping[str, str] | None = None
) -> tuple[Kernels, tuple[KernelReport, ...]]:
    """Compare `kernels` with plain PyTorch on noise; replace those that differ by references.

    Kernels in `failures`, which maps names to reasons, are replaced without a comparison.
    """
    references = Kernels.reference()
    # Without `reproducible` the product is the library's, not a kernel.
    names = [name for name in OPERATIONS if name != "product" or kernels.reproducible]
    comparison = Comparison(failures=failures)
    compared = comparison.wrap(kernels, references, names)
    device = parts.features.window.device
    with _without_cudnn():
        config = replace(parts.config, layers=min(_LAYERS, parts.config.layers))
        rate, hop = parts.features.config.sample_rate, parts.features.config.hop_samples
        plan = Plan(tuple(round(seconds * rate) for seconds in _SECONDS), hop)
        rows = rows_of(plan, [1 / (1 << 15)] * len(_SECONDS), device)
        noise = _noise(sum(plan.samples)) * _NOISE_LEVEL
        features = PackedFeatures.of(parts.features, compared, parts.precision.dtype)
        encoder = PackedEncoder(parts.folded, config, compared, longest=rows.longest)
        encoder(features(noise.to(torch.int16).to(device), rows), rows)
    reports = comparison.reports()
    return with_fallbacks(kernels, references, reports), reports


@torch.inference_mode()
def check_search(
    model: SearchModel,
    kernels: SearchKernels,
    tiles: Tiles,
    dtype: torch.dtype,
    failures: Mapping[str, str] | None = None,
) -> tuple[SearchKernels, tuple[KernelReport, ...]]:
    """Same as `check_encoder` for the kernels of a search in `dtype`."""
    references = SearchKernels.reference()
    names = [name for name in _SEARCH_OPERATIONS if name != "product" or kernels.reproducible]
    comparison = Comparison(_SEARCH_CALLS, failures)
    weight = model.joint["enc.weight"]
    search = GraphSearch(
        model,
        weight.device,
        dtype=dtype,
        kernels=comparison.wrap(kernels, references, names),
        tiles=tiles,
        limits=Limits(max(_SEARCH_ROWS), max(_SEARCH_ROWS) * _SEARCH_TOKENS, slots=2),
    )
    # With the blank forbidden, the rows of any model emit tokens.
    bias = torch.zeros(len(model.predictor["prediction.embed.weight"]), device=weight.device)
    bias[-1] = -torch.inf
    search.set_logit_bias(1, bias)
    with _without_cudnn():
        for rows in _SEARCH_ROWS:
            lengths = [1 + row % _SEARCH_TOKENS for row in range(rows)]
            states = _noise(sum(lengths), weight.shape[1]).to(weight)
            search.decode(states, lengths, [row % 2 for row in range(rows)])
    reports = comparison.reports()
    return with_fallbacks(kernels, references, reports), reports


def worst_by_name(reports: Sequence[KernelReport]) -> tuple[KernelReport, ...]:
    """The worst report of each name: encoder and search may both have products."""
    worst: dict[str, KernelReport] = {}
    for report in sorted(reports, key=lambda each: (each.replaced, each.error), reverse=True):
        worst.setdefault(report.name, report)
    return tuple(worst[name] for name in dict.fromkeys(report.name for report in reports))


def log_reports(reports: Sequence[KernelReport]) -> None:
    """Log each report, replaced kernels as warnings."""
    for report in reports:
        log.log(logging.WARNING if report.replaced else logging.INFO, "%s", report)


def _noise(*shape: int) -> Tensor:
    """Normal noise, identical on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Disable cuDNN for the references' convolutions and LSTMs: loading it delays the start."""
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
