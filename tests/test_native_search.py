"""The search's steps in plain PyTorch, in its one set of buffers, equal the plain loop."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles
from parakeet_worker.engine.native.search import Emissions, GraphSearch, Limits, SearchKernels
from searching import (
    TOKENS,
    assert_equal,
    demo,
    demo_states,
    outside,
    plainly,
    stubborn,
    tiny,
)
from tiny_model import WIDTH

CPU = torch.device("cpu")
SMALL = Limits(rows=16, tokens=1024)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_batches_of_several_sizes_one_after_the_other_equal_the_plain_loop():
    tokens = 0
    for seed in range(4):
        model = tiny(seed)
        search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(32, 512))
        torch.manual_seed(seed)
        for lengths in ([40, 1, 23, 0, 31], [7], [0], [0, 0], [130, 5], [3] * 20, []):
            # More states than the rows have: a batch in a bucket of tokens.
            states = torch.randn(sum(lengths) + 5, WIDTH) * 2
            found = search.decode(states, lengths)
            assert found.finite.tolist() == [True] * len(lengths)
            tokens += assert_equal(found.rows, plainly(model, states, lengths))
    assert tokens > 200, "the networks must say something"


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_other_activations(activation):
    model = tiny(1, activation=activation)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    states = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0)) * 2
    assert assert_equal(search.decode(states, [60]).rows, plainly(model, states, [60])) > 5


def test_each_row_has_its_own_additive_scores_and_probabilities_count_all_tokens():
    model, lengths = tiny(3), [50, 50, 50]
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    row = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    states = row.repeat(3, 1)
    favoured, forbidden = torch.zeros(TOKENS), torch.zeros(TOKENS)
    favoured[5] = 2.0
    forbidden[:6] = -math.inf
    search.set_slot(1, favoured)
    search.set_slot(2, forbidden)
    found = search.decode(states, lengths, [1, 0, 2]).rows
    added = torch.stack([favoured, torch.zeros(TOKENS), forbidden])
    assert assert_equal(found, plainly(model, states, lengths, added)) > 20
    assert_equal(found[1:2], plainly(model, row, [50]))
    assert 5 in found[0].tokens
    assert found[2].tokens.min() >= 6
    assert found[2].logprobs.min() < -1.0, "what it would rather have said is counted"


def test_max_symbols_moves_a_row_on():
    model = stubborn(max_symbols=1)
    states = torch.randn(9, WIDTH)
    (row,) = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL).decode(states, [9]).rows
    assert row.frames.tolist() == list(range(9))
    assert row.tokens.tolist() == [1] * 9
    assert row.durations.tolist() == [0] * 9


def test_a_row_with_more_tokens_than_frames_is_decoded_again_by_the_plain_loop():
    model = stubborn(max_symbols=10)
    states = torch.randn(30, WIDTH)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    found = search.decode(states, [12, 18]).rows
    assert [len(row) for row in found] == [120, 180]
    assert_equal(found, plainly(model, states, [12, 18]))


def test_a_full_row_does_not_write_into_its_neighbour():
    """Both orders: the row that has no room lies before and behind the other one."""
    model = tiny(0)
    bias = "joint_net.2.bias"
    model.joint[bias][TOKENS] += 10.0  # no token takes time
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL)
    quiet, crowded = torch.zeros(TOKENS), torch.zeros(TOKENS)
    quiet[-1], crowded[-1] = 10.0, -math.inf
    search.set_slot(1, quiet)
    search.set_slot(2, crowded)
    row = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(4)) * 2
    (alone,) = search.decode(row, [40], [1]).rows
    assert 5 < len(alone) <= 40
    for slots in ([2, 1], [1, 2]):
        found = search.decode(row.repeat(2, 1), [40, 40], slots).rows
        beside = found[slots.index(1)]
        assert beside.tokens.tolist() == alone.tokens.tolist()
        assert beside.logprobs.tolist() == alone.logprobs.tolist()
        assert len(found[slots.index(2)]) > 40


def test_rows_and_tokens_beyond_the_buffers_are_split_into_groups():
    model = tiny(2)
    torch.manual_seed(0)
    lengths = torch.randint(0, 12, (300,)).tolist()
    states = torch.randn(sum(lengths), WIDTH) * 2
    expected = plainly(model, states, lengths)
    by_rows = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(256, 98_304))
    assert assert_equal(by_rows.decode(states, lengths).rows, expected) > 300
    by_tokens = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(256, 100))
    assert_equal(by_tokens.decode(states, lengths).rows, expected)


def test_more_frames_than_are_projected_at_once():
    model, lengths = tiny(2), [300] * 60
    states = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(6)) * 2
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(64, 20_000))
    assert assert_equal(search.decode(states, lengths).rows, plainly(model, states, lengths)) > 5000


def test_a_row_longer_than_the_buffers_goes_to_the_plain_loop():
    model = tiny(2)
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(16, 100))
    lengths = [30, 101, 7]
    states = torch.randn(138, WIDTH, generator=torch.Generator().manual_seed(2)) * 2
    assert assert_equal(search.decode(states, lengths).rows, plainly(model, states, lengths)) > 20
    states[100] = math.nan
    found = search.decode(states, lengths)
    assert found.finite.tolist() == [True, False, True]
    assert len(found.rows[1]) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_that_is_not_finite_is_reported_and_harms_no_other(value, dtype):
    model, lengths = tiny(5), [20, 20, 0, 20]
    search = GraphSearch(model, CPU, dtype=dtype, limits=SMALL)
    states = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(3)) * 2
    before = search.decode(states, lengths)
    for frame in (20, 39):
        broken = states.clone()
        broken[frame, 3] = value
        found = search.decode(broken, lengths)
        assert found.finite.tolist() == [True, False, True, True]
        assert len(found.rows[1]) == 0
        for row in (0, 2, 3):
            assert found.rows[row].tokens.tolist() == before.rows[row].tokens.tolist()
            assert found.rows[row].logprobs.tolist() == before.rows[row].logprobs.tolist()
    assert search.decode(states, lengths).finite.all(), "nothing remains of it"


def test_states_beyond_the_range_of_float16_are_reported():
    search = GraphSearch(tiny(5), CPU, dtype=torch.float16, limits=SMALL)
    states = torch.randn(20, WIDTH)
    states[4] = 1e6
    assert search.decode(states, [10, 10]).finite.tolist() == [False, True]


def test_weights_that_are_not_finite_end_the_search_too():
    model = tiny(5)
    broken = {**model.joint, "pred.bias": torch.full_like(model.joint["pred.bias"], math.nan)}
    search = GraphSearch(dataclasses.replace(model, joint=broken), CPU, limits=SMALL)
    found = search.decode(torch.randn(30, WIDTH), [10, 20])
    assert found.finite.tolist() == [False, False]


def test_float16_weights_find_what_float32_finds_on_the_demo_checkpoint():
    model = demo()
    states, lengths = demo_states(["de", "en", "ru", "el", "bg", "fr"])
    expected = plainly(model, states, lengths)
    exact = GraphSearch(model, CPU, dtype=torch.float32, limits=SMALL).decode(states, lengths)
    assert assert_equal(exact.rows, expected) > 40
    search = GraphSearch(model, CPU, limits=Limits(16, 2048))
    assert_equal(search.decode(states, lengths).rows, expected, within=0.02)


def test_scripts_are_mixed_in_one_batch():
    model = demo()
    states, lengths = demo_states(["ru", "de", "ru", "el"])
    search = GraphSearch(model, CPU, dtype=torch.float32, limits=Limits(16, 2048))
    scripts = [outside("Latin"), outside("Cyrillic"), outside("Greek")]
    for slot, scores in enumerate(scripts, start=1):
        search.set_slot(slot, scores)
    found = search.decode(states, lengths, [2, 2, 0, 1]).rows
    added = torch.stack([scripts[1], scripts[1], torch.zeros_like(scripts[0]), scripts[0]])
    assert assert_equal(found, plainly(model, states, lengths, added)) > 20
    assert found[0].tokens.tolist() == found[2].tokens.tolist()
    assert found[1].tokens.tolist() != search.decode(states, lengths).rows[1].tokens.tolist()


def test_tiles_do_not_change_what_is_found():
    model = tiny(1)
    states = torch.randn(90, WIDTH, generator=torch.Generator().manual_seed(5)) * 2
    tile = Tile(rows=16, columns=16, depth=16)
    tiles = dataclasses.replace(
        Tiles(), joint_scores=tile, search_step=dataclasses.replace(tile, rows=4)
    )
    search = GraphSearch(model, CPU, dtype=torch.float32, tiles=tiles, limits=SMALL)
    assert assert_equal(search.decode(states, [50, 40]).rows, plainly(model, states, [50, 40])) > 20


def test_one_kernel_may_be_replaced_and_is_then_called():
    called = []

    def counted(*arguments, **options):
        called.append(1)
        return SearchKernels.reference().lstm(*arguments, **options)

    kernels = dataclasses.replace(SearchKernels.reference(), lstm=counted)
    GraphSearch(tiny(0), CPU, kernels=kernels, limits=SMALL).decode(torch.randn(4, WIDTH), [4])
    assert called


@pytest.mark.parametrize(
    ("frames", "duration", "replays"),
    [(1, 1, 1), (16, 1, 1), (17, 1, 2), (160, 1, 10), (64, 4, 1), (65, 4, 2), (160, 4, 3)],
)
def test_no_more_steps_are_started_than_the_longest_row_needs(frames, duration, replays):
    called = []

    def counted(*arguments, **options):
        called.append(1)
        return SearchKernels.reference().search_step(*arguments, **options)

    kernels = dataclasses.replace(SearchKernels.reference(), search_step=counted)
    search = GraphSearch(stubborn(10, duration), CPU, kernels=kernels, limits=SMALL)
    found = search.decode(torch.randn(frames + 1, WIDTH), [1, frames])
    assert [len(row) for row in found.rows] == [1, math.ceil(frames / duration)]
    assert len(called) == 16 * replays


def test_the_memory_of_the_buffers_is_what_they_say():
    model = tiny(0)
    small, large = (
        GraphSearch(model, CPU, limits=Limits(rows, tokens)).memory_bytes
        for rows, tokens in ((16, 1000), (16, 2000))
    )
    per_token = 2 * 16 + 4 + 16  # a frame of 16 values, a count, and a line of the record
    assert large - small == 1000 * per_token


def test_emissions_are_arrays():
    found = GraphSearch(stubborn(1), CPU, limits=SMALL).decode(torch.randn(4, WIDTH), [4])
    (row,) = found.rows
    assert isinstance(row, Emissions)
    assert [each.dtype for each in (row.tokens, row.frames, row.durations, row.logprobs)] == [
        np.int32,
        np.int32,
        np.int32,
        np.float32,
    ]


@needs_gpu
def test_cuda_graphs_equal_the_plain_loop():
    model, gpu = tiny(1), torch.device("cuda")
    moved = dataclasses.replace(
        model,
        predictor={name: tensor.to(gpu) for name, tensor in model.predictor.items()},
        joint={name: tensor.to(gpu) for name, tensor in model.joint.items()},
    )
    for kernels in (SearchKernels.triton(Tiles()), SearchKernels.reference()):
        search = GraphSearch(moved, gpu, dtype=torch.float32, kernels=kernels)
        search.prepare()
        torch.manual_seed(0)
        for lengths in ([40, 1, 23, 0, 31], [7], [3] * 20, [130, 5], [60] * 300):
            states = torch.randn(sum(lengths), WIDTH) * 2
            found = search.decode(states.to(gpu), lengths)
            assert_equal(found.rows, plainly(model, states, lengths))
