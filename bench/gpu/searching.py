"""Part `searching`: compares the search in kernels and graphs with `GreedyDecoder`; its speed."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.gpu import sounds
from bench.gpu.comparing import Tokens, differing_tokens
from bench.gpu.figures import Report
from bench.gpu.kernels import chain, laid_out
from bench.gpu.opening import DEMO, Loaded, loaded, random_nemo, settle
from bench.gpu.parts import Setup
from bench.harness import median
from parakeet_worker.engine.native.decoder import GreedyDecoder, Scorer
from parakeet_worker.engine.native.gpu_engine import search_model
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.search import Emissions, GraphSearch, SearchKernels

_EXACT = 1.0
_HALF = 3.0
"""Tokens per thousand that may differ: two scores that are equal except for rounding."""
_REPEATS = 10
_TOKENS = 375  # 30 s


@torch.inference_mode()
def run(setup: Setup, report: Report) -> None:
    """Compare tokens of the demo checkpoint in both dtypes, then measure the full size."""
    _check_tokens(setup, report)
    _measure(setup, report)


def _check_tokens(setup: Setup, report: Report) -> None:
    model = loaded(setup, DEMO, "fp32")
    batch = sounds.utterances(setup.count(200, 60, 6))
    states, lengths = _states(model, batch)
    expected = _greedy(model, states, lengths)
    report.measure("tokens compared", sum(map(len, expected)), "tokens")
    exact, half = ("fp32", torch.float32, _EXACT), ("fp16", torch.float16, _HALF)
    for name, dtype, limit in (half, exact) if setup.cuda else (exact,):
        for kind, kernels in (("", model.search_kernels), (", references", _REFERENCES)):
            search = _search(model, dtype, kernels)
            # References synchronise with the host and cannot be captured: they run step by step.
            if not kind:
                search.capture()
            actual = [_tokens(row) for row in search.decode(states, lengths).rows]
            report.check(
                f"search, {name}{kind}, other tokens",
                differing_tokens(actual, expected), "of 1,000", at_most=limit,
            )  # fmt: skip


_REFERENCES = SearchKernels.reference()


def _search(model: Loaded, dtype: torch.dtype, kernels: SearchKernels) -> GraphSearch:
    return GraphSearch(
        search_model(model.model), model.device, dtype=dtype, kernels=kernels, tiles=model.tiles
    )


def _states(model: Loaded, batch: list[sounds.Pcm]) -> tuple[Tensor, list[int]]:
    """Packed states of all chunks from plain PyTorch in float32, and the length of each row."""
    features, encoder = chain(model, model.with_references().kernels)
    samples, rows = laid_out(batch, model.device)
    return encoder(features(samples, rows), rows), rows.offsets.diff().tolist()


def _greedy(model: Loaded, states: Tensor, lengths: Sequence[int]) -> list[Tokens]:
    """Tokens of `GreedyDecoder` for the same states."""
    parts = search_model(model.model)
    scorer = Scorer(parts.predictor, parts.joint, parts.activation, Precision.FP32)
    decoder = GreedyDecoder(scorer, parts.durations, parts.max_symbols)
    padded = pad_sequence(states.split(list(lengths)), batch_first=True)
    rows = decoder.decode(padded, torch.tensor(lengths, device=model.device))
    return [tuple((str(each.token), each.frame, each.duration) for each in row) for row in rows]


def _tokens(row: Emissions) -> Tokens:
    columns: Any = (row.tokens, row.frames, row.durations)
    return tuple(
        (str(token), int(frame), int(duration))
        for token, frame, duration in zip(*columns, strict=True)
    )


def _measure(setup: Setup, report: Report) -> None:
    """Measure the search alone, on noise as states, from the device to the host."""
    model = loaded(setup, random_nemo(setup), "bf16")
    search = model.search()
    search.capture()
    report.measure("search, memory", search.memory_bytes / 2**20, "MiB")
    counts, tokens = ((1, 2), 20) if setup.small else ((1, 16, 128, 256), _TOKENS)
    width = model.model.encoder["d_model"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(max(counts) * tokens, width, generator=generator)
    states = noise.to(model.device, model.model.precision.dtype)
    for rows in counts:
        noise_states, lengths = states[: rows * tokens], [tokens] * rows
        result = search.decode(noise_states, lengths)
        spent = []
        for _ in range(setup.count(_REPEATS, 5, 2)):
            settle(setup)
            started = time.perf_counter()
            search.decode(noise_states, lengths)
            spent.append(1000 * (time.perf_counter() - started))
        emitted = sum(map(len, result.rows))
        report.measure(
            f"search, {rows} x {tokens} frames, {emitted / (rows * tokens * 0.08):.1f} tokens/s",
            median(spent), "ms", values=spent,
        )  # fmt: skip
