"""The engine on a GPU: packed rows through Triton kernels, in overlapping stages.

While one batch is encoded, the next is copied to the device and the previous one is searched, on a
separate stream and thread. `NativeEngine` computes the same in plain PyTorch: it is the reference
of the comparison at start, and serves chunks that are too long to be packed.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parakeet_worker.engine import budget, failures
from parakeet_worker.engine.base import (
    Capacity,
    Finished,
    Hypothesis,
    LazyTokens,
    Outcome,
    Pending,
    Token,
    Waveform,
)
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.engine.native.decoder import JointConfig
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.encoder_graphs import BUCKET_TOKENS
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.kernel_choice import (
    EncoderParts,
    check_encoder,
    check_search,
    log_reports,
    worst_by_name,
)
from parakeet_worker.engine.native.kernels import cache
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.tiles import Tiles, tiles_for
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.packed_pipeline import (
    MAX_CHUNKS,
    MAX_FULL_CHUNKS,
    PackedPipeline,
)
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import Prepacked
from parakeet_worker.engine.native.rows import Plan
from parakeet_worker.engine.native.script_bias import SCRIPT_SLOTS, script_bias
from parakeet_worker.engine.native.search import (
    Emissions,
    GraphSearch,
    SearchKernels,
    SearchModel,
)
from parakeet_worker.engine.native.search_thread import SearchThread
from parakeet_worker.engine.native.self_check import (
    CHAIN_TOLERANCE,
    compare_chain,
    compare_search,
    plain_states,
)
from parakeet_worker.engine.native.tensors import strip_prefix
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import NotFinite, OutOfMemory
from parakeet_worker.language import Script

# Chunks of a batch that exceeds every graph, used to measure the memory of a larger one.
_LARGE_BATCH = 32

log = logging.getLogger(__name__)


class GpuEngine:
    """Transcribes packed batches, two of them in flight."""

    depth = 2

    def __init__(
        self,
        model: Prepacked,
        plain: NativeEngine,
        kernels: Kernels,
        search: GraphSearch,
        *,
        chunk_seconds: float,
        bucket_tokens: Sequence[int] = BUCKET_TOKENS,
        reports: Sequence[KernelReport] = (),
        report_path: Path | None = None,
    ) -> None:
        """`model` has its tensors on the device of `plain`, which serves the same model.

        `chunk_seconds` is the usual maximum length of a chunk; `reports` are the comparisons of
        single kernels. All comparisons are written to `report_path`, for the operator's checks.
        Raises `ValueError` for an encoder that packed rows do not support.
        """
        device = plain.device
        self._device = device
        self._cuda = device.type == "cuda"
        self._plain = plain
        self._vocabulary = model.vocabulary
        config = EncoderConfig.from_nemo(model.encoder)
        self._sample_rate = plain.features.config.sample_rate
        self.frame_seconds = plain.frame_seconds
        self.precision = model.precision
        features = PackedFeatures.of(plain.features, kernels, model.precision.dtype)
        encoder = PackedEncoder(strip_prefix("encoder", model.tensors), config, kernels)
        self._capturable = kernels.capturable
        self._width = config.width
        self._search = search
        self._packing = True
        self._kernel_reports, self._report_path = tuple(reports), report_path
        self.reports = self._kernel_reports
        """Results of the comparisons with plain PyTorch; complete after `warm_up`."""
        for script, slot in SCRIPT_SLOTS.items():
            if script is not None:
                search.set_logit_bias(slot, script_bias(self._vocabulary, script).to(device))
        self._pipeline = PackedPipeline(
            features, encoder, device, chunk_seconds=chunk_seconds, bucket_tokens=bucket_tokens
        )
        self._encode_stream: Any = torch.cuda.Stream(device) if self._cuda else None
        self._search_stream: Any = torch.cuda.Stream(device, priority=-1) if self._cuda else None
        self._search_thread = SearchThread()

    @classmethod
    def on_device(
        cls,
        model: Prepacked,
        device: torch.device,
        *,
        reproducible: bool = False,
        **options: Any,
    ) -> "GpuEngine":
        """Use the kernels for the device's compute capability; `model` has its tensors there.

        Raises `ValueError` for a model that packed rows do not support.
        """
        capability = torch.cuda.get_device_capability(device)
        return cls.checked(
            model,
            device,
            Kernels.triton(tiles_for(capability), reproducible=reproducible),
            SearchKernels.triton(tiles_for(capability), reproducible=reproducible),
            tiles_for(capability),
            **options,
        )

    @classmethod
    def checked(
        cls,
        model: Prepacked,
        device: torch.device,
        kernels: Kernels,
        search_kernels: SearchKernels,
        tiles: Tiles,
        *,
        compile_failures: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "GpuEngine":
        """Compare each kernel with plain PyTorch first, which replaces those that differ.

        `compile_failures` maps the names of kernels that did not compile to reasons. `options` are
        those of `__init__`.
        """
        plain = NativeEngine(model, device, reproducible=kernels.reproducible)
        folded = strip_prefix("encoder", model.tensors)
        parts = EncoderParts(
            plain.features, EncoderConfig.from_nemo(model.encoder), folded, model.precision
        )
        kernels, reports = check_encoder(parts, kernels, compile_failures)
        model_of_search = search_model(model)
        dtype = torch.float32 if model.precision is Precision.FP32 else torch.float16
        search_kernels, search_reports = check_search(
            model_of_search, search_kernels, tiles, dtype, compile_failures
        )
        search = GraphSearch(
            model_of_search, device, dtype=dtype, kernels=search_kernels, tiles=tiles
        )
        reports = worst_by_name((*reports, *search_reports))
        log_reports(reports)
        return cls(model, plain, kernels, search, reports=reports, **options)

    def __str__(self) -> str:
        """A description for logs and people."""
        return f"{self._plain}, packed"

    def warm_up(self, chunk_seconds: float) -> None:
        """Compile kernels, capture graphs, compare, and run a small and a large batch."""
        if self._cuda:  # weights and buffers were written on another stream
            torch.cuda.synchronize(self._device)
        with self._on_stream(self._search_stream):
            self._search.capture()
        reports = (*self._capture_graphs(), *self.compare())
        log_reports(reports)
        self.reports = (*self._kernel_reports, *reports)
        self._write_reports()
        noise = budget.noise(chunk_seconds, self._sample_rate)
        for chunks in (1, _LARGE_BATCH) if self._cuda else (1,):
            self.transcribe([noise] * chunks)

    def _write_reports(self) -> None:
        if self._report_path is None:
            return
        document = json.dumps([report.document() for report in self.reports], indent=1)
        try:
            cache.write_atomic(self._report_path, document.encode())
        except OSError as failure:
            log.warning("the comparisons of kernels cannot be stored: %s", failure)

    def _capture_graphs(self) -> Iterator[KernelReport]:
        """Capture the graphs of small batches; if that fails, report it and serve without them."""
        if self._cuda and not self._capturable:
            return
        try:
            with self._on_stream(self._encode_stream):
                self._pipeline.capture()
        except RuntimeError as failure:
            if failures.is_out_of_memory(failure):
                raise
            reason = f"{type(failure).__name__}: {failure}".partition("\n")[0]
            yield KernelReport("graphs", inf, CHAIN_TOLERANCE[self.precision], reason)

    @torch.inference_mode()
    def compare(self) -> tuple[KernelReport, ...]:
        """Compare the whole chain, with and without a graph, and the search with plain PyTorch.

        Plain PyTorch replaces each of the two that differs too much.
        """
        with self._on_stream(self._encode_stream):
            chain = tuple(compare_chain(self._pipeline, self._plain, self.precision))
        with self._on_stream(self._search_stream):
            search = compare_search(self._search, self._width, self._vocabulary.blank, self._device)
        self._packing = not any(report.replaced for report in chain)
        if search.replaced:
            self._search.use_reference()
        return (*chain, search)

    def capacity(self, chunk_seconds: float) -> Capacity:
        """Free memory divided by the memory of a large batch."""
        seconds = MAX_FULL_CHUNKS * chunk_seconds
        if self._cuda:
            noise = [budget.noise(chunk_seconds, self._sample_rate)] * _LARGE_BATCH
            batches = budget.batches_that_fit(self._device, lambda: self.transcribe(noise))
            seconds = min(seconds, max(chunk_seconds, batches * len(noise) * chunk_seconds))
        longest_seconds = self._pipeline.longest_tokens * self.frame_seconds
        return Capacity(seconds, MAX_CHUNKS, packed=True, alone_seconds=longest_seconds)

    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """`submit(...).result()`, for tools and tests."""
        return self.submit(batch, scripts).result()

    @torch.inference_mode()
    def submit(self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()) -> Pending:
        """Encode a batch and queue its search. Raises `OutOfMemory` if it is too large."""
        if not batch:
            return Finished([])
        plan = self._pipeline.plan(batch)
        packed = self._packing and self._pipeline.accepts(plan)
        if packed and not self._pipeline.fits(plan):
            raise OutOfMemory(self._longest_seconds(plan))
        non_finite: frozenset[int] = frozenset()
        with (
            failures.translate_out_of_memory(self._longest_seconds(plan)),
            self._on_stream(self._encode_stream),
        ):
            if packed:
                graph = self._pipeline.graph_shape(plan)
                staged, states = self._pipeline.encode(graph, batch, plan)
                non_finite = staged.non_finite
            else:
                states = plain_states(self._plain, batch, plan)
            encoded = self._encode_stream.record_event() if self._cuda else None
        slots = [SCRIPT_SLOTS[script] for script in scripts]
        return self._search_thread.submit(
            lambda: self._decode(states, encoded, plan, slots, non_finite)
        )

    def release(self) -> None:
        """Return cached memory to the device."""
        self._plain.release()

    def close(self) -> None:
        """End the search thread and free memory."""
        self._search_thread.close()
        self._plain.close()

    @torch.inference_mode()
    def _decode(
        self,
        states: Tensor,
        encoded: Any,
        plan: Plan,
        slots: Sequence[int],
        non_finite: frozenset[int],
    ) -> list[Outcome]:
        """Runs in the search thread, after the event `encoded`."""
        with (
            failures.translate_out_of_memory(self._longest_seconds(plan)),
            self._on_stream(self._search_stream),
        ):
            if encoded is not None:
                self._search_stream.wait_event(encoded)
            result = self._search.decode(states, plan.tokens, slots)
        return [
            self._hypothesis(emissions)
            if finite and row not in non_finite
            else NotFinite(plan.samples[row] / self._sample_rate)
            for row, (emissions, finite) in enumerate(zip(result.rows, result.finite, strict=True))
        ]

    def _hypothesis(self, emissions: Emissions) -> Hypothesis:
        tokens = LazyTokens(len(emissions), lambda: _tokens(emissions, self._vocabulary))
        return Hypothesis(tokens, self.frame_seconds)

    def _longest_seconds(self, plan: Plan) -> float:
        return max(plan.samples) / self._sample_rate

    def _on_stream(self, stream: Any) -> AbstractContextManager[object]:
        return torch.cuda.stream(stream) if self._cuda else nullcontext()


def search_model(model: Prepacked) -> SearchModel:
    """The part of a model that the search uses."""
    return SearchModel(
        strip_prefix("decoder", model.tensors),
        strip_prefix("joint", model.tensors),
        JointConfig.from_nemo(model.joint).activation,
        model.durations,
        model.max_symbols,
    )


def _tokens(emissions: Emissions, vocabulary: Vocabulary) -> tuple[Token, ...]:
    columns = (emissions.tokens, emissions.frames, emissions.durations, emissions.logprobs)
    return tuple(
        Token(vocabulary.text(token), frame, duration, logprob, token)
        for token, frame, duration, logprob in zip(
            *(column.tolist() for column in columns), strict=True
        )
    )
