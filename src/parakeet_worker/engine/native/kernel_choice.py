"""Which kernels serve a model on its device: compiled first, compared with plain PyTorch after."""

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
from parakeet_worker.engine.native.compilation import CompileRequest, Target, compiled, missing
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.kernels import ahead, cache
from parakeet_worker.engine.native.kernels.check import Comparison, replaced
from parakeet_worker.engine.native.kernels.kernel_set import OPERATIONS, Kernels
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.rows import Plan, rows_of
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchKernels, SearchModel
from parakeet_worker.engine.native.tensors import Tensors

log = logging.getLogger(__name__)

_LAYERS = 2  # a middle one and the last; the others are like the first
_SECONDS = (11.03, 0.005, 0.07, 0.9)
"""Rows longer than any tile, shorter than a frame, and in between."""
_MOST_PROCESSES = 8
_LOUDNESS = 3000
_SEARCH_OPERATIONS = ("product", "lstm", "joint_hidden", "joint_scores", "search_step")
_SEARCHED_ROWS = (16, 32, 64)
"""Each of these has tiles of its own."""
_SEARCHED_TOKENS = 12
_SEARCHED_CALLS = 6


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """What the packed encoder is made of, on the device."""

    features: Features
    config: EncoderConfig
    folded: Tensors
    precision: Precision


def prepared(target: Target, folders: Sequence[Path]) -> dict[str, str]:
    """Have the kernels of `target` compiled: found in `folders`, or made and kept in the last.

    Takes as long as that takes, in a process of its own: call it beside other work. Returns the
    reasons of those that did not compile, by name; raises `NoKernels` if none did.
    """
    started = time.monotonic()
    folders = cache.writable(folders)
    cache.use(folders)
    ahead.prepare()
    card = ahead.card_name(target.capability)
    if not missing([target], folders):
        log.info("the kernels for %s in %s are compiled", card, target.precision)
        return {}
    processes = min(_MOST_PROCESSES, Container.read().threads)
    try:
        results = compiled(CompileRequest((target,), folders, processes))
    except (ChildProcessError, OSError) as failure:
        log.warning("kernels are compiled at their first launch: %s", failure)
        return {}
    failures = {one.kernel: one.failure for one in results if one.failure}
    if len([one for one in results if one.failure]) == len(results):
        raise NoKernels(f"they do not compile: {next(iter(failures.values()), 'none are known')}")
    log.info(
        "compiled %d kernels for %s in %s within %.1f s, %d at a time; kept in %s",
        len(results) - len(failures), card, target.precision, time.monotonic() - started, processes,
        folders[-1],
    )  # fmt: skip
    return failures


@torch.inference_mode()
def checked_encoder(
    parts: EncoderParts, kernels: Kernels, failures: Mapping[str, str] | None = None
) -> tuple[Kernels, tuple[KernelReport, ...]]:
    """`kernels`, of which those that differ from plain PyTorch on noise are replaced by it.

    So are those in `failures`, which has reasons by name.
    """
    references = Kernels.reference()
    # Without `reproducible` the product is the library's, and not a kernel.
    names = [name for name in OPERATIONS if name != "product" or kernels.reproducible]
    comparison = Comparison(failures=failures)
    compared = comparison.of(kernels, references, names)
    device = parts.features.window.device
    with _without_cudnn():
        config = replace(parts.config, layers=min(_LAYERS, parts.config.layers))
        rate, hop = parts.features.config.sample_rate, parts.features.config.hop_samples
        plan = Plan(tuple(round(seconds * rate) for seconds in _SECONDS), hop)
        rows = rows_of(plan, [1 / (1 << 15)] * len(_SECONDS), device)
        noise = _noise(sum(plan.samples)) * _LOUDNESS
        features = PackedFeatures.of(parts.features, compared, parts.precision.dtype)
        encoder = PackedEncoder(parts.folded, config, compared, longest=rows.longest)
        encoder(features(noise.to(torch.int16).to(device), rows), rows)
    reports = comparison.reports()
    return replaced(kernels, references, reports), reports


@torch.inference_mode()
def checked_search(
    model: SearchModel,
    kernels: SearchKernels,
    tiles: Tiles,
    dtype: torch.dtype,
    failures: Mapping[str, str] | None = None,
) -> tuple[SearchKernels, tuple[KernelReport, ...]]:
    """As `checked_encoder`, of a search in `dtype`."""
    references = SearchKernels.reference()
    names = [name for name in _SEARCH_OPERATIONS if name != "product" or kernels.reproducible]
    comparison = Comparison(_SEARCHED_CALLS, failures)
    weight = model.joint["enc.weight"]
    search = GraphSearch(
        model,
        weight.device,
        dtype=dtype,
        kernels=comparison.of(kernels, references, names),
        tiles=tiles,
        limits=Limits(max(_SEARCHED_ROWS), max(_SEARCHED_ROWS) * _SEARCHED_TOKENS, slots=2),
    )
    # Rows of any model say something where they may not be silent.
    scores = torch.zeros(len(model.predictor["prediction.embed.weight"]), device=weight.device)
    scores[-1] = -torch.inf
    search.set_slot(1, scores)
    with _without_cudnn():
        for rows in _SEARCHED_ROWS:
            lengths = [1 + row % _SEARCHED_TOKENS for row in range(rows)]
            states = _noise(sum(lengths), weight.shape[1]).to(weight)
            search.decode(states, lengths, [row % 2 for row in range(rows)])
    reports = comparison.reports()
    return replaced(kernels, references, reports), reports


def worst(reports: Sequence[KernelReport]) -> tuple[KernelReport, ...]:
    """One of each name: encoder and search may both have products."""
    kept: dict[str, KernelReport] = {}
    for report in sorted(reports, key=lambda one: (one.replaced, one.error), reverse=True):
        kept.setdefault(report.name, report)
    return tuple(kept[name] for name in dict.fromkeys(report.name for report in reports))


def announce(reports: Sequence[KernelReport]) -> None:
    """In the log, what was replaced as warnings."""
    for report in reports:
        log.log(logging.WARNING if report.replaced else logging.INFO, "%s", report)


def _noise(*shape: int) -> Tensor:
    """The same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """The references' convolutions and LSTMs: loading cuDNN for a moment takes a start's time."""
    kept = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = kept
