"""The search's steps in plain PyTorch, in one workspace, equal `GreedyDecoder`."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles
from parakeet_worker.engine.native.search import Emissions, GraphSearch, Limits, SearchKernels
from searching import (
    TOKENS,
    assert_rows_equal,
    constant_model,
    demo_model,
    demo_states,
    greedy,
    only_script,
    random_model,
)
from tiny_model import WIDTH

CPU = torch.device("cpu")
SMALL = Limits(rows=16, tokens=1024)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def random_states(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("seed", [0, 1])
def test_consecutive_batches_of_several_sizes_equal_the_greedy_decoder(seed):
    tokens = 0
    model = random_model(seed)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(32, 512))
    for lengths in ([40, 1, 23, 0, 31], [7], [0], [0, 0], [70, 5], [3] * 20, []):
        # More states than the rows have: a batch in a bucket of tokens.
        states = random_states(sum(lengths) + 5, seed)
        result = search.decode(states, lengths)
        assert result.finite.tolist() == [True] * len(lengths)
        tokens += assert_rows_equal(result.rows, greedy(model, states, lengths))
    assert tokens > 50, "the networks must emit tokens"


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 24), max_size=20),
    max_symbols=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_batch_equals_the_greedy_decoder(lengths, max_symbols, seed):
    model = random_model(seed, max_symbols)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(16, 256))
    states = random_states(sum(lengths), seed)
    assert_rows_equal(search.decode(states, lengths).rows, greedy(model, states, lengths))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_other_activations(activation):
    model = random_model(1, activation=activation)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    states = random_states(60, 0)
    assert assert_rows_equal(search.decode(states, [60]).rows, greedy(model, states, [60])) > 5


def test_logit_biases_are_per_row_and_log_probabilities_ignore_them():
    model, lengths = random_model(3), [50, 50, 50]
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    row = random_states(50, 1)
    states = row.repeat(3, 1)
    favoured, forbidden = torch.zeros(TOKENS), torch.zeros(TOKENS)
    favoured[5] = 2.0
    forbidden[:6] = -math.inf
    search.set_logit_bias(1, favoured)
    search.set_logit_bias(2, forbidden)
    rows = search.decode(states, lengths, [1, 0, 2]).rows
    bias = torch.stack([favoured, torch.zeros(TOKENS), forbidden])
    assert assert_rows_equal(rows, greedy(model, states, lengths, bias)) > 20
    assert_rows_equal(rows[1:2], greedy(model, row, [50]))
    assert 5 in rows[0].tokens
    assert rows[2].tokens.min() >= 6
    assert rows[2].logprobs.min() < -1.0, "forbidden tokens keep their probability"


def test_max_symbols_advances_a_row():
    model = constant_model(max_symbols=1)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    (row,) = search.decode(torch.randn(9, WIDTH), [9]).rows
    assert row.frames.tolist() == list(range(9))
    assert row.tokens.tolist() == [1] * 9
    assert row.durations.tolist() == [0] * 9


def test_a_row_with_more_tokens_than_frames_is_decoded_again_by_the_reference():
    model = constant_model(max_symbols=10)
    states = torch.randn(7, WIDTH)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    rows = search.decode(states, [3, 4]).rows
    assert [len(row) for row in rows] == [30, 40]
    assert_rows_equal(rows, greedy(model, states, [3, 4]))


def test_a_row_beyond_its_capacity_does_not_write_into_its_neighbour():
    """Both orders: the full row is before and after the other one."""
    model = random_model(0)
    model.joint["joint_net.2.bias"][TOKENS] += 10.0  # every token has duration 0
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    quiet, crowded = torch.zeros(TOKENS), torch.zeros(TOKENS)
    quiet[-1], crowded[-1] = 10.0, -math.inf
    search.set_logit_bias(1, quiet)
    search.set_logit_bias(2, crowded)
    row = random_states(40, 4)
    (alone,) = search.decode(row, [40], [1]).rows
    assert 5 < len(alone) <= 40
    for slots in ([2, 1], [1, 2]):
        rows = search.decode(row.repeat(2, 1), [40, 40], slots).rows
        neighbour = rows[slots.index(1)]
        assert neighbour.tokens.tolist() == alone.tokens.tolist()
        assert neighbour.logprobs.tolist() == alone.logprobs.tolist()
        assert len(rows[slots.index(2)]) > 40


@pytest.mark.parametrize(("rows", "limits"), [(270, Limits(256, 98_304)), (60, Limits(256, 100))])
def test_batches_beyond_the_limit_of_rows_or_tokens_are_split_into_groups(rows, limits):
    model = random_model(2)
    lengths = torch.randint(0, 12, (rows,), generator=torch.Generator().manual_seed(0)).tolist()
    states = random_states(sum(lengths), 0)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=limits)
    actual = search.decode(states, lengths).rows
    assert assert_rows_equal(actual, greedy(model, states, lengths)) > rows


def test_more_frames_than_one_pass_projects():
    model, lengths = random_model(2), [66] * 256
    states = random_states(sum(lengths), 6)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(256, 17_000))
    actual = search.decode(states, lengths).rows
    assert assert_rows_equal(actual, greedy(model, states, lengths)) > 4000


def test_a_row_longer_than_the_workspace_is_decoded_by_the_reference():
    model = random_model(2)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(16, 100))
    lengths = [30, 101, 7]
    states = random_states(138, 2)
    rows = search.decode(states, lengths).rows
    assert assert_rows_equal(rows, greedy(model, states, lengths)) > 20
    states[100] = math.nan
    result = search.decode(states, lengths)
    assert result.finite.tolist() == [True, False, True]
    assert len(result.rows[1]) == 0


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float32, math.nan), (torch.float32, -math.inf), (torch.float16, math.inf)],
)
def test_a_non_finite_row_is_reported_and_affects_no_other(dtype, value):
    """Whether its first or its last frame is not finite; later batches are unaffected."""
    model, lengths = random_model(5), [20, 20, 0, 20]
    search = GraphSearch(model, CPU, dtype=dtype, limits=SMALL)
    states = random_states(60, 3)
    before = search.decode(states, lengths)
    for frame in (20, 39):
        damaged = states.clone()
        damaged[frame, 3] = value
        result = search.decode(damaged, lengths)
        assert result.finite.tolist() == [True, False, True, True]
        assert len(result.rows[1]) == 0
        for row in (0, 2, 3):
            assert result.rows[row].tokens.tolist() == before.rows[row].tokens.tolist()
            assert result.rows[row].logprobs.tolist() == before.rows[row].logprobs.tolist()
    assert search.decode(states, lengths).finite.all()


def test_states_beyond_the_range_of_float16_are_reported():
    search = GraphSearch(random_model(5), CPU, dtype=torch.float16, limits=SMALL)
    states = torch.randn(20, WIDTH)
    states[4] = 1e6
    assert search.decode(states, [10, 10]).finite.tolist() == [False, True]


def test_non_finite_weights_end_the_search():
    model = random_model(5)
    joint = {**model.joint, "pred.bias": torch.full_like(model.joint["pred.bias"], math.nan)}
    search = GraphSearch(dataclasses.replace(model, joint=joint), CPU, limits=SMALL)
    result = search.decode(torch.randn(30, WIDTH), [10, 20])
    assert result.finite.tolist() == [False, False]


def test_float16_weights_give_the_tokens_of_float32_on_the_demo_checkpoint():
    model = demo_model()
    states, lengths = demo_states(["de", "en", "ru", "el"])
    expected = greedy(model, states, lengths)
    exact = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL).decode(states, lengths)
    assert assert_rows_equal(exact.rows, expected) > 30
    search = GraphSearch(model, CPU, limits=Limits(16, 2048))
    assert_rows_equal(search.decode(states, lengths).rows, expected, within=0.02)


def test_one_batch_may_contain_several_scripts():
    model = demo_model()
    states, lengths = demo_states(["ru", "de", "ru", "el"])
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(16, 2048))
    scripts = [only_script("Latin"), only_script("Cyrillic"), only_script("Greek")]
    for slot, bias in enumerate(scripts, start=1):
        search.set_logit_bias(slot, bias)
    rows = search.decode(states, lengths, [2, 2, 0, 1]).rows
    bias = torch.stack([scripts[1], scripts[1], torch.zeros_like(scripts[0]), scripts[0]])
    assert assert_rows_equal(rows, greedy(model, states, lengths, bias)) > 20
    assert rows[0].tokens.tolist() == rows[2].tokens.tolist()
    assert rows[1].tokens.tolist() != search.decode(states, lengths).rows[1].tokens.tolist()


def test_tile_sizes_do_not_affect_the_result():
    model = random_model(1)
    states = random_states(90, 5)
    tile = Tile(rows=16, columns=16, depth=16)
    tiles = dataclasses.replace(
        Tiles(), joint_scores=tile, search_step=dataclasses.replace(tile, rows=4)
    )
    search = GraphSearch(model, CPU, dtype=torch.float32, tiles=tiles, limits=SMALL)
    rows = search.decode(states, [50, 40]).rows
    assert assert_rows_equal(rows, greedy(model, states, [50, 40])) > 20


def test_a_replaced_kernel_is_called():
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return SearchKernels.reference().lstm(*arguments, **options)

    kernels = dataclasses.replace(SearchKernels.reference(), lstm=counted)
    GraphSearch(random_model(0), CPU, kernels=kernels, limits=SMALL).decode(
        torch.randn(4, WIDTH), [4]
    )
    assert calls


@pytest.mark.parametrize(
    ("frames", "duration", "replays"),
    [(1, 1, 1), (16, 1, 1), (17, 1, 2), (48, 1, 3), (64, 4, 1), (65, 4, 2), (160, 4, 3)],
)
def test_no_more_steps_are_launched_than_the_longest_row_requires(frames, duration, replays):
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return SearchKernels.reference().search_step(*arguments, **options)

    kernels = dataclasses.replace(SearchKernels.reference(), search_step=counted)
    search = GraphSearch(constant_model(10, duration), CPU, kernels=kernels, limits=SMALL)
    rows = search.decode(torch.randn(frames + 1, WIDTH), [1, frames]).rows
    assert [len(row) for row in rows] == [1, math.ceil(frames / duration)]
    assert len(calls) == 16 * replays


def test_memory_bytes_grows_by_the_buffers_of_each_token():
    model = random_model(0)
    small, large = (
        GraphSearch(model, CPU, limits=Limits(rows, tokens)).memory_bytes
        for rows, tokens in ((16, 1000), (16, 2000))
    )
    per_token = 2 * 16 + 4 + 16  # a frame of 16 values, a count, and a line of the record
    assert large - small == 1000 * per_token


def test_emissions_are_arrays_of_32_bits():
    search = GraphSearch(constant_model(1), CPU, limits=SMALL)
    (row,) = search.decode(torch.randn(4, WIDTH), [4]).rows
    assert isinstance(row, Emissions)
    arrays = (row.tokens, row.frames, row.durations, row.logprobs)
    assert [array.dtype for array in arrays] == [np.int32, np.int32, np.int32, np.float32]


@needs_gpu
def test_cuda_graphs_equal_the_greedy_decoder():
    model, gpu = random_model(1), torch.device("cuda")
    on_gpu = dataclasses.replace(
        model,
        predictor={name: tensor.to(gpu) for name, tensor in model.predictor.items()},
        joint={name: tensor.to(gpu) for name, tensor in model.joint.items()},
    )
    for kernels in (SearchKernels.triton(Tiles()), SearchKernels.reference()):
        search = GraphSearch(on_gpu, gpu, dtype=torch.float32, kernels=kernels)
        search.capture()
        torch.manual_seed(0)
        for lengths in ([40, 1, 23, 0, 31], [7], [3] * 20, [130, 5], [60] * 300):
            states = torch.randn(sum(lengths), WIDTH) * 2
            result = search.decode(states.to(gpu), lengths)
            assert_rows_equal(result.rows, greedy(model, states, lengths))
