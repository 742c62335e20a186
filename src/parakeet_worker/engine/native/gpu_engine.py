"""The engine on a GPU: packed rows through Triton kernels, in stages that overlap.

While a batch is encoded, the next one is copied to the device and the one before it is searched,
in a stream and a thread of its own. `NativeEngine` computes the same in plain PyTorch: it is what
this one is compared with at start, and what serves chunks that are too long to be packed.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from difflib import SequenceMatcher
from math import inf
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, get_args

import numpy as np
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
    as_float,
)
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.engine.native.decoder import JointConfig
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.encoder_graphs import BUCKET_TOKENS, EncoderGraphs
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.kernel_choice import (
    EncoderParts,
    announce,
    checked_encoder,
    checked_search,
    worst,
)
from parakeet_worker.engine.native.kernels import cache
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.tiles import Tiles, tiles_for
from parakeet_worker.engine.native.packed_encoder import (
    GROUP_TOKENS,
    PackedEncoder,
)
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import Prepacked
from parakeet_worker.engine.native.rows import FACTOR, Plan, Rows
from parakeet_worker.engine.native.search import (
    Emissions,
    GraphSearch,
    SearchKernels,
    SearchModel,
)
from parakeet_worker.engine.native.staging import Shape, Staged, Staging
from parakeet_worker.engine.native.tensors import strip_prefix
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import NotFinite, OutOfMemory
from parakeet_worker.language import Script, allowed

_MAX_CHUNKS = 512
# More audio at once gains nothing and delays the next callers.
_MAX_FULL_CHUNKS = 128
# Chunks of a batch that no graph takes, and that shows what memory a larger one needs.
_LARGE_BATCH = 32
# Libraries choose their kernels by the number of rows: fewer numbers, fewer differences.
_ROUNDED_TOKENS = 1024
# Rows of some tokens, of one, and of none, beside the longest that fits into a small graph.
_COMPARED_SECONDS = (3.1, 0.9, 0.005, 0.07, 6.4)
# Roundings add up over 24 layers: on random weights bfloat16 differs from float32 by 0.07. What
# is wrong by less than that is found in the kernel by itself.
_CHAIN_TOLERANCE = {Precision.BF16: 0.15, Precision.FP16: 0.03, Precision.FP32: 1e-3}
# The share of tokens that differ: sums in another order may decide a close choice otherwise.
_SEARCH_TOLERANCE = 0.25
_SCRIPT_SLOTS: dict[Script | None, int] = {
    None: 0,
    **{script: slot for slot, script in enumerate(get_args(Script), start=1)},
}

log = logging.getLogger(__name__)

Work = Callable[[], list[Outcome]]


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
        remembered: Path | None = None,
    ) -> None:
        """`model` has its tensors on the device of `plain`, which serves the same model.

        Chunks of `chunk_seconds` are the usual longest; `reports` tell what the kernels are.
        All comparisons are written to the file `remembered`, for the operator's checks.
        Raises `ValueError` for an encoder that packed rows are not made for.
        """
        device = plain.device
        self._device = device
        self._cuda = device.type == "cuda"
        self._plain = plain
        self._vocabulary = model.vocabulary
        config = EncoderConfig.from_nemo(model.encoder)
        features = self._plain.features
        self._hop_samples = features.config.hop_samples
        self._sample_rate = features.config.sample_rate
        self.frame_seconds = self._plain.frame_seconds
        self.precision = model.precision
        self._features = PackedFeatures.of(features, kernels, model.precision.dtype)
        self._encoder = PackedEncoder(strip_prefix("encoder", model.tensors), config, kernels)
        self._kernels = kernels
        self._width = config.width
        self._search = search
        self._packs = True
        self._kernel_reports, self._remembered = tuple(reports), remembered
        self.reports = self._kernel_reports
        """What comparisons with plain PyTorch found; complete after `warm_up`."""
        for script, slot in _SCRIPT_SLOTS.items():
            if script is not None:
                search.set_slot(slot, _script_scores(self._vocabulary, script).to(device))
        chunk_tokens = -(-round(chunk_seconds * self._sample_rate) // self._token_samples)
        self._staging = Staging(
            device,
            samples=_MAX_FULL_CHUNKS * chunk_tokens * self._token_samples
            + _MAX_CHUNKS * self._hop_samples,
            rows=_MAX_CHUNKS,
            tokens=max(_MAX_FULL_CHUNKS * chunk_tokens + 2 * _ROUNDED_TOKENS, *bucket_tokens),
        )
        self._graphs = EncoderGraphs(
            self._chain, device, chunk_tokens, self._hop_samples, bucket_tokens
        )
        self._compute: Any = torch.cuda.Stream(device) if self._cuda else None
        self._searching: Any = torch.cuda.Stream(device, priority=-1) if self._cuda else None
        self._searcher = _Searcher()

    @classmethod
    def on_device(
        cls,
        model: Prepacked,
        device: torch.device,
        *,
        reproducible: bool = False,
        **options: Any,
    ) -> "GpuEngine":
        """With the kernels of the device; `model` has its tensors there.

        Raises `ValueError` for a model that packed rows are not made for.
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
        broken: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "GpuEngine":
        """With those of the kernels that agree with plain PyTorch, which replaces the others.

        `broken` are the reasons, by name, of those that did not compile. `options` are
        `__init__`'s.
        """
        plain = NativeEngine(model, device, reproducible=kernels.reproducible)
        folded = strip_prefix("encoder", model.tensors)
        parts = EncoderParts(
            plain.features, EncoderConfig.from_nemo(model.encoder), folded, model.precision
        )
        kernels, reports = checked_encoder(parts, kernels, broken)
        searched = search_model(model)
        dtype = torch.float32 if model.precision is Precision.FP32 else torch.float16
        search_kernels, search_reports = checked_search(
            searched, search_kernels, tiles, dtype, broken
        )
        search = GraphSearch(searched, device, dtype=dtype, kernels=search_kernels, tiles=tiles)
        reports = worst((*reports, *search_reports))
        announce(reports)
        return cls(model, plain, kernels, search, reports=reports, **options)

    def __str__(self) -> str:
        """What it is, for logs and people."""
        return f"{self._plain}, packed"

    def warm_up(self, chunk_seconds: float) -> None:
        """Compile kernels, capture graphs, compare, and run a small and a large batch."""
        if self._cuda:  # weights and buffers were filled in another stream
            torch.cuda.synchronize(self._device)
        with self._within(self._searching):
            self._search.prepare()
        reports = (*self._captured(), *self.compare())
        announce(reports)
        self.reports = (*self._kernel_reports, *reports)
        self._remember()
        noise = budget.noise(chunk_seconds, self._sample_rate)
        for chunks in (1, _LARGE_BATCH) if self._cuda else (1,):
            self.transcribe([noise] * chunks)

    def _remember(self) -> None:
        if self._remembered is None:
            return
        found = json.dumps([report.document() for report in self.reports], indent=1)
        try:
            cache.write(self._remembered, found.encode())
        except OSError as failure:
            log.warning("what comparisons found cannot be kept: %s", failure)

    def _captured(self) -> Iterator[KernelReport]:
        """Capture the graphs of small batches, which are computed without them where that fails."""
        if self._cuda and self._kernels.blocks:
            return
        try:
            with self._within(self._compute):
                self._graphs.capture()
        except RuntimeError as failure:
            if failures.is_out_of_memory(failure):
                raise
            reason = f"{type(failure).__name__}: {failure}".partition("\n")[0]
            yield KernelReport("graphs", inf, _CHAIN_TOLERANCE[self.precision], reason)

    @torch.inference_mode()
    def compare(self) -> tuple[KernelReport, ...]:
        """Hold the whole chain, in and out of a graph, and the search against plain PyTorch.

        What differs too much is served by plain PyTorch from then on.
        """
        with self._within(self._compute):
            chain = tuple(self._compared_chain())
        with self._within(self._searching):
            search = self._compared_search()
        self._packs = not any(report.replaced for report in chain)
        if search.replaced:
            self._search.use_plain()
        return (*chain, search)

    def _compared_chain(self) -> Iterator[KernelReport]:
        batch = [budget.noise(seconds, self._sample_rate) for seconds in _COMPARED_SECONDS]
        plan = Plan(tuple(len(chunk) for chunk in batch), self._hop_samples)
        expected = self._plain_states(batch, plan).split(plan.tokens)
        cases: list[tuple[str, Shape | None]] = [("chain", None)]
        if (graph := self._graphs.shape_for(plan)) is not None:
            cases.append(("chain in a graph", graph))
        for name, shape in cases:
            states = self._encoded(shape, batch, plan)[1]
            found = states[: sum(plan.tokens)].split(plan.tokens)
            error = max(map(_relative_error, found, expected))
            yield KernelReport(name, error, _CHAIN_TOLERANCE[self.precision])

    def _compared_search(self) -> KernelReport:
        """On noise as states, once as it is and once with the blank forbidden, so that rows of any
        model have tokens."""
        chance = torch.Generator().manual_seed(0)
        lengths = [40, 1, 17, 40]
        states = torch.randn(sum(lengths), self._width, generator=chance).to(self._device)
        scores = torch.zeros(self._vocabulary.blank + 1, device=self._device)
        scores[-1] = -torch.inf
        forced = len(_SCRIPT_SLOTS)
        self._search.set_slot(forced, scores)
        slots = [0, forced, 0, forced]
        found = self._search.decode(states, lengths, slots)
        expected = self._search.decode_plainly(states, lengths, slots)
        pairs = zip(found.rows, expected.rows, strict=True)
        similar = [
            SequenceMatcher(None, mine.tokens.tolist(), theirs.tokens.tolist()).ratio()
            for mine, theirs in pairs
        ]
        return KernelReport("search", 1 - min(similar), _SEARCH_TOLERANCE)

    def capacity(self, chunk_seconds: float) -> Capacity:
        """What is free, divided by what a large batch takes."""
        seconds = _MAX_FULL_CHUNKS * chunk_seconds
        if self._cuda:
            noise = [budget.noise(chunk_seconds, self._sample_rate)] * _LARGE_BATCH
            batches = budget.batches_that_fit(self._device, lambda: self.transcribe(noise))
            seconds = min(seconds, max(chunk_seconds, batches * len(noise) * chunk_seconds))
        longest_seconds = self._encoder.longest * self.frame_seconds
        return Capacity(seconds, _MAX_CHUNKS, packed=True, alone_seconds=longest_seconds)

    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """`submit(...).result()`, for tools and tests."""
        return self.submit(batch, scripts).result()

    @torch.inference_mode()
    def submit(self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()) -> Pending:
        """Begin a batch; raises `OutOfMemory` if it is too large."""
        if not batch:
            return Finished([])
        plan = Plan(tuple(len(chunk) for chunk in batch), self._hop_samples)
        packed = self._packs and max(plan.tokens) <= self._encoder.longest
        if packed and (sum(plan.samples) > self._staging.samples or len(batch) > _MAX_CHUNKS):
            raise OutOfMemory(self._longest_seconds(plan))
        broken: frozenset[int] = frozenset()
        with (
            failures.translate_out_of_memory(self._longest_seconds(plan)),
            self._within(self._compute),
        ):
            if packed:
                staged, states = self._encoded(self._graphs.shape_for(plan), batch, plan)
                broken = staged.broken
            else:
                states = self._plain_states(batch, plan)
            done = self._compute.record_event() if self._cuda else None
        slots = [_SCRIPT_SLOTS[script] for script in scripts]
        return self._searcher.submit(lambda: self._searched(states, done, plan, slots, broken))

    def release(self) -> None:
        """Return cached memory to the device."""
        self._plain.release()

    def close(self) -> None:
        """End the search's thread and return memory."""
        self._searcher.close()
        self._plain.close()

    def _encoded(
        self, graph: Shape | None, batch: Sequence[Waveform], plan: Plan
    ) -> tuple[Staged, Tensor]:
        """The batch on the device and (N, width) states of its rows: in a graph, or without."""
        shape = graph or _own_shape(plan)
        staged = self._staging.stage(batch, plan, shape, GROUP_TOKENS)
        if graph is None:
            states = self._chain(staged.samples, staged.rows)
        else:
            states = self._graphs(staged, graph)
        self._staging.release(staged)
        return staged, states

    def _plain_states(self, batch: Sequence[Waveform], plan: Plan) -> Tensor:
        """(N, width) states of the rows by the plain path, which pads."""
        padded, _ = self._plain.encode([as_float(chunk) for chunk in batch])
        return torch.cat([row[:tokens] for row, tokens in zip(padded, plan.tokens, strict=True)])

    def _chain(self, samples: Tensor, rows: Rows) -> Tensor:
        return self._encoder(self._features(samples, rows), rows)

    @torch.inference_mode()
    def _searched(
        self,
        states: Tensor,
        done: Any,
        plan: Plan,
        slots: Sequence[int],
        broken: frozenset[int],
    ) -> list[Outcome]:
        """Runs in the search's thread."""
        with (
            failures.translate_out_of_memory(self._longest_seconds(plan)),
            self._within(self._searching),
        ):
            if done is not None:
                self._searching.wait_event(done)
            found = self._search.decode(states, plan.tokens, slots)
        return [
            self._outcome(emissions)
            if finite and row not in broken
            else NotFinite(plan.samples[row] / self._sample_rate)
            for row, (emissions, finite) in enumerate(zip(found.rows, found.finite, strict=True))
        ]

    def _outcome(self, emissions: Emissions) -> Hypothesis:
        tokens = LazyTokens(len(emissions), lambda: _tokens(emissions, self._vocabulary))
        return Hypothesis(tokens, self.frame_seconds)

    def _longest_seconds(self, plan: Plan) -> float:
        return max(plan.samples) / self._sample_rate

    @property
    def _token_samples(self) -> int:
        samples: int = FACTOR * self._hop_samples
        return samples

    def _within(self, stream: Any) -> AbstractContextManager[object]:
        return torch.cuda.stream(stream) if self._cuda else nullcontext()


def search_model(model: Prepacked) -> SearchModel:
    """The part of a model that the search needs."""
    return SearchModel(
        strip_prefix("decoder", model.tensors),
        strip_prefix("joint", model.tensors),
        JointConfig.from_nemo(model.joint).activation,
        model.durations,
        model.max_symbols,
    )


class _Searcher:
    """One thread that runs what it is given, in order.

    A daemon, unlike those of an executor: where the device never answers, the process can end.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[list[Outcome]], Work] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> "Future[list[Outcome]]":
        """Queue `work`; the future has what it returns or raises."""
        future: Future[list[Outcome]] = Future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as failure:  # noqa: BLE001  # raised again by `result`
                future.set_exception(failure)
            del item, future, work  # they hold the batch's tensors


def _own_shape(plan: Plan) -> Shape:
    tokens = -(-sum(plan.tokens) // _ROUNDED_TOKENS) * _ROUNDED_TOKENS
    return Shape(len(plan.samples), tokens, max(plan.tokens))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    difference = (found.float() - expected.float()).norm()
    return float(difference / expected.float().norm().clamp(min=1e-6))


def _script_scores(vocabulary: Vocabulary, script: Script) -> Tensor:
    """(tokens + blank,): minus infinity for the tokens of other scripts, 0 for the rest."""
    scores = [0.0 if allowed(piece, script) else -np.inf for piece in vocabulary.pieces]
    return torch.tensor([*scores, 0.0])


def _tokens(emissions: Emissions, vocabulary: Vocabulary) -> tuple[Token, ...]:
    columns = (emissions.tokens, emissions.frames, emissions.durations, emissions.logprobs)
    return tuple(
        Token(vocabulary.text(token), frame, duration, logprob)
        for token, frame, duration, logprob in zip(
            *(column.tolist() for column in columns), strict=True
        )
    )
