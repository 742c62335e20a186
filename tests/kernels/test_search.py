"""The whole search with its kernels in the interpreter equals `GreedyDecoder`."""

import dataclasses
import math

import pytest
import torch

from parakeet_worker.engine.native.kernels.launcher import Launch, recording
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchKernels
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
TRITON = SearchKernels.triton(Tiles())
SMALL = Limits(rows=16, tokens=1024)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_all_lengths_equal_the_greedy_decoder(seed: int) -> None:
    """Including rows of one frame and of none, each with its own logit bias."""
    model, lengths = random_model(seed), [25, 1, 13, 0, 18]
    search = GraphSearch(model, CPU, dtype=torch.float32, kernels=TRITON, limits=SMALL)
    bias = torch.zeros(5, TOKENS)
    bias[1:3, 3] = 3.0
    bias[4, :4] = -math.inf
    search.set_logit_bias(1, bias[1])
    search.set_logit_bias(2, bias[4])
    torch.manual_seed(seed)
    states = torch.randn(sum(lengths), WIDTH) * 2
    result = search.decode(states, lengths, [0, 1, 1, 0, 2])
    assert assert_rows_equal(result.rows, greedy(model, states, lengths, bias)) > 15
    assert result.finite.all()


def test_rows_beyond_a_group_and_tokens_beyond_the_capacity_of_a_row() -> None:
    """Seventeen rows in two groups, each decoded again by the reference."""
    model = constant_model(max_symbols=2)
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    states, lengths = torch.randn(34, WIDTH), [2] * 17
    rows = search.decode(states, lengths).rows
    assert assert_rows_equal(rows, greedy(model, states, lengths)) == 68


def test_a_non_finite_row_is_reported_and_affects_no_other() -> None:
    model, lengths = random_model(5), [8, 8, 8]
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    states = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    before = search.decode(states, lengths)
    states[12] = math.nan
    result = search.decode(states, lengths)
    assert result.finite.tolist() == [True, False, True]
    for row in (0, 2):
        assert result.rows[row].logprobs.tolist() == before.rows[row].logprobs.tolist()


def test_non_finite_weights_end_the_search() -> None:
    """The kernels detect what the states do not show."""
    model = random_model(5)
    joint = {**model.joint, "pred.bias": torch.full_like(model.joint["pred.bias"], math.nan)}
    model = dataclasses.replace(model, joint=joint)
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    assert search.decode(torch.randn(6, WIDTH), [2, 4]).finite.tolist() == [False, False]


def test_the_demo_checkpoint_in_float16_with_a_script() -> None:
    """Real words, with the tiles of a GPU, and German that the script suppresses."""
    model, lengths = demo_model(), [62, 20]
    rows = torch.split(*demo_states(["ru", "de"]))
    states = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    bias = torch.stack([only_script("Cyrillic"), only_script("Cyrillic")])
    search.set_logit_bias(1, bias[0])
    expected = greedy(model, states, lengths, bias)
    actual = search.decode(states, lengths, [1, 1]).rows
    assert assert_rows_equal(actual, expected, within=0.02) > 8


def test_each_kernel_can_be_replaced_by_its_reference() -> None:
    model, lengths = random_model(1), [9, 4]
    states = torch.randn(13, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    expected = greedy(model, states, lengths)
    references = SearchKernels.reference()
    for name in ("lstm", "joint_hidden", "joint_scores", "search_step"):
        kernels = dataclasses.replace(TRITON, **{name: getattr(references, name)})
        search = GraphSearch(model, CPU, dtype=torch.float32, kernels=kernels, limits=SMALL)
        assert assert_rows_equal(search.decode(states, lengths).rows, expected) > 3


def test_reproducible_rows_are_bitwise_equal_alone_and_in_a_batch() -> None:
    """In buckets of different size."""
    model = random_model(2)
    row = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(7)) * 2
    search = GraphSearch(
        model,
        CPU,
        kernels=SearchKernels.triton(Tiles(), reproducible=True),
        limits=Limits(rows=32, tokens=1024),
    )
    (alone,) = search.decode(row, [12]).rows
    together = search.decode(torch.cat([torch.randn(60, WIDTH), row]), [4] * 15 + [12] + [0]).rows
    assert together[15].logprobs.tolist() == alone.logprobs.tolist()
    assert len(alone) > 3


@pytest.mark.parametrize(("reproducible", "row_tiles"), [(False, 3), (True, 1)])
def test_recorded_steps_have_one_set_of_constants_per_tile_size(
    reproducible: bool, row_tiles: int
) -> None:
    """For any number of rows, so that all of them can be compiled ahead of time."""
    launches: list[Launch] = []
    meta, model = torch.device("meta"), random_model(0)
    search = GraphSearch(
        dataclasses.replace(
            model,
            predictor={name: tensor.to(meta) for name, tensor in model.predictor.items()},
            joint={name: tensor.to(meta) for name, tensor in model.joint.items()},
        ),
        meta,
        kernels=SearchKernels.triton(Tiles(), reproducible=reproducible),
    )
    with recording(launches.append):
        search.record_steps()
    variants = {(each.kernel.fn.__name__, tuple(each.options.items())) for each in launches}
    names = [name for name, _ in variants]
    # The LSTM has two variants: its first layer reads a table.
    counts = {"_lstm": 2, "_joint_hidden": 1, "_joint_scores": 1}
    assert {name: names.count(name) for name in counts} == {
        name: count * row_tiles for name, count in counts.items()
    }
    assert names.count("_search_step") == 1
    projection = {"_product"} if reproducible else set()  # otherwise cuBLAS
    assert set(names) == {*counts, "_search_step"} | projection
