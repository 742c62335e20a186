"""A batch in a bucket's buffers has the same result as without them.

On a CPU the chain runs where a GPU replays its graph: buffers and layouts are the same.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from packed import random_chunks, tiny_modules
from parakeet_worker.engine.native.encoder_graphs import ROWS, Chain, EncoderGraphs
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.rows import Plan, Rows
from parakeet_worker.engine.native.staging import Shape, Staging

CPU = torch.device("cpu")
CHUNK_TOKENS = 30


@pytest.fixture(scope="module")
def chain() -> Chain:
    features, encoder = tiny_modules()
    kernels = Kernels.reference()
    packed = PackedEncoder(fold(encoder, Precision.FP32), encoder.config, kernels, longest=64)
    packed_features = PackedFeatures.of(features, kernels, torch.float32)

    def run(samples: Tensor, rows: Rows) -> Tensor:
        return packed(packed_features(samples, rows), rows)

    return run


@pytest.fixture(scope="module")
def graphs(chain: Chain) -> EncoderGraphs:
    graphs = EncoderGraphs(chain, CPU, CHUNK_TOKENS, 160, (128, 64, 256))
    graphs.capture()
    return graphs


@torch.inference_mode()
def test_consecutive_batches_of_any_size_equal_the_chain_without_buckets(
    graphs: EncoderGraphs, chain: Chain
) -> None:
    """Nothing of an earlier batch remains in the buffers."""
    staging = Staging(CPU, samples=400_000, rows=ROWS, tokens=1024)
    lengths = ((38_000, 5, 20_001), (1_280,), (0,), tuple(range(500, 16_500, 1000)), (38_399,))
    for samples in lengths:
        batch = random_chunks(samples)
        plan = Plan(samples, 160)
        shape = graphs.shape_for(plan)
        assert shape is not None
        actual = graphs(staging.stage(batch, plan, shape, 1 << 30), shape)
        exact_shape = Shape(len(batch), sum(plan.tokens), max(plan.tokens))
        staged = staging.stage(batch, plan, exact_shape, 1 << 30)
        expected = chain(staged.samples, staged.rows)
        assert torch.allclose(actual[: len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [
        ((), 64),
        ((64 * 1280,), None),  # longer than a chunk
        ((30 * 1280,) * 2, 64),
        ((30 * 1280,) * 3, 128),
        ((1280,) * ROWS, 64),
        ((1280,) * (ROWS + 1), None),
    ],
)
def test_the_smallest_bucket_that_fits_is_selected(
    graphs: EncoderGraphs, samples: tuple[int, ...], tokens: int | None
) -> None:
    """By the total of tokens, the longest chunk and the number of chunks."""
    shape = graphs.shape_for(Plan(samples, 160))
    assert (None if shape is None else shape.tokens) == tokens


@torch.inference_mode()
def test_the_next_batch_does_not_change_an_earlier_result(graphs: EncoderGraphs) -> None:
    """Two batches are in flight: the first is searched while the second is encoded."""
    staging = Staging(CPU, samples=100_000, rows=ROWS, tokens=64)
    results = []
    for value in (1000, 20):
        samples = np.full(12_800, value, np.int16)
        samples[::7] = -value
        plan = Plan((12_800,), 160)
        shape = graphs.shape_for(plan)
        assert shape is not None
        results.append(graphs(staging.stage([samples], plan, shape, 1 << 30), shape))
        results.append(results[-1].clone())
    assert torch.equal(results[0], results[1])
