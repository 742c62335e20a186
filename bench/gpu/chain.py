"""Part `chain`: compares packed with padded rows, and graphs with single launches.

In 16 bits every path differs from float32. The error of the padded path is the unit for the
others: random weights amplify rounding errors in every implementation.
"""

from itertools import pairwise

import torch
from torch import Tensor

from bench.gpu.comparing import relative
from bench.gpu.figures import Report
from bench.gpu.kernels import PRECISIONS, chain, chunks_of, laid_out
from bench.gpu.opening import CHUNK_SECONDS, CPU_BUCKETS, Loaded, loaded, random_nemo
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from parakeet_worker.engine.base import SAMPLE_RATE, as_float
from parakeet_worker.engine.native.encoder_graphs import BUCKET_TOKENS, EncoderGraphs
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.packed_encoder import GROUP_TOKENS
from parakeet_worker.engine.native.rows import FACTOR, Plan
from parakeet_worker.engine.native.staging import Staging

_MIXED = (128_000, 16_000, 80_000, 400_000, 51_200, 12_345, 1280)
_SMALL = (32_000, 16_000, 12_345, 1280)
_NO_WORSE = 1.5
"""Maximum error as a multiple of the padded path's."""
_HOP = 160


@torch.inference_mode()
def run(setup: Setup, report: Report) -> None:
    """Report errors relative to float32 in every precision, as multiples of the padded path's."""
    batch = chunks_of(_SMALL if setup.small else _MIXED)
    exact = padded_states(loaded(setup, random_nemo(setup), "fp32"), batch)
    for precision in PRECISIONS:
        model = loaded(setup, random_nemo(setup), precision)
        plain = relative(padded_states(model, batch), exact)
        report.measure(f"padded, {precision}, error against fp32", plain, "of the norm")
        for name, states in (
            ("packed", packed_states(model, batch)),
            ("packed, references", packed_states(model.with_references(), batch)),
            ("packed, in a graph", graph_states(model, batch)),
        ):
            error = relative(states, exact) / plain
            report.check(f"{name}, {precision}, error", error, "x padded", at_most=_NO_WORSE)
    _check_reproducible(setup, report, batch)


def _check_reproducible(setup: Setup, report: Report, batch: list[Pcm]) -> None:
    """Compare bitwise: alone, packed with others, and in a graph's bucket."""
    model = loaded(setup, random_nemo(setup), "bf16", reproducible=True)
    together = packed_states(model, batch)
    alone = torch.cat([packed_states(model, [chunk]) for chunk in batch])
    graphed = graph_states(model, batch)
    # On a CPU the references are library products without a guaranteed summation order.
    limit = 0 if setup.cuda else None
    for name, states in (("alone", alone), ("in a graph", graphed)):
        different = float((states != together).any(dim=1).sum())
        report.check(f"reproducible, {name}, other frames", different, "frames", at_most=limit)


def padded_states(model: Loaded, batch: list[Pcm]) -> Tensor:
    """(N, width) valid states of all chunks, from the plain encoder on a padded batch."""
    engine = NativeEngine(model.model, model.device)
    states, valid = engine.encode([as_float(chunk) for chunk in batch])
    rows = zip(states, valid.tolist(), strict=True)
    return torch.cat([row[:length] for row, length in rows]).float()


def packed_states(model: Loaded, batch: list[Pcm]) -> Tensor:
    """(N, width) states from the packed encoder, with single launches."""
    features, encoder = chain(model, model.kernels)
    samples, rows = laid_out(batch, model.device)
    return encoder(features(samples, rows), rows).float()


def graph_states(model: Loaded, batch: list[Pcm]) -> Tensor:
    """(N, width) states from CUDA graphs, in batches of one and two chunks."""
    features, encoder = chain(model, model.kernels)
    tokens = round(CHUNK_SECONDS * SAMPLE_RATE) // (FACTOR * _HOP)
    graphs = EncoderGraphs(
        lambda samples, rows: encoder(features(samples, rows), rows),
        model.device,
        tokens,
        _HOP,
        BUCKET_TOKENS if model.device.type == "cuda" else CPU_BUCKETS,
    )
    graphs.capture()
    staging = Staging(model.device, samples=1_000_000, rows=16, tokens=8192)
    parts = []
    for first, last in pairwise([*range(0, len(batch), 2), len(batch)]):
        parts.append(_replayed(graphs, staging, batch[first:last]))
    return torch.cat(parts).float()


def _replayed(graphs: EncoderGraphs, staging: Staging, chunks: list[Pcm]) -> Tensor:
    plan = Plan(tuple(len(chunk) for chunk in chunks), _HOP)
    shape = graphs.shape_for(plan)
    assert shape is not None
    staged = staging.stage(chunks, plan, shape, GROUP_TOKENS)
    states = graphs(staged, shape)
    staging.release(staged)
    return states[: sum(plan.tokens)]
