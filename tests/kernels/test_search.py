"""The whole search with its kernels in the interpreter equals the plain loop."""

import dataclasses
import math

import pytest
import torch

from parakeet_worker.engine.native.kernels.launcher import Launch, recording
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchKernels
from searching import TOKENS, assert_equal, demo, demo_states, outside, plainly, stubborn, tiny
from tiny_model import WIDTH

CPU = torch.device("cpu")
TRITON = SearchKernels.triton(Tiles())
SMALL = Limits(rows=16, tokens=1024)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_all_lengths_equal_the_plain_loop(seed: int) -> None:
    """One frame and none among them, each with its own additive scores."""
    model, lengths = tiny(seed), [25, 1, 13, 0, 18]
    search = GraphSearch(model, CPU, dtype=torch.float32, kernels=TRITON, limits=SMALL)
    added = torch.zeros(5, TOKENS)
    added[1:3, 3] = 3.0
    added[4, :4] = -math.inf
    search.set_slot(1, added[1])
    search.set_slot(2, added[4])
    torch.manual_seed(seed)
    states = torch.randn(sum(lengths), WIDTH) * 2
    found = search.decode(states, lengths, [0, 1, 1, 0, 2])
    assert assert_equal(found.rows, plainly(model, states, lengths, added)) > 15
    assert found.finite.all()


def test_more_rows_than_a_group_has_and_more_tokens_than_a_row_has_room_for() -> None:
    """Seventeen rows in two groups, each of them decoded again."""
    model = stubborn(max_symbols=2)
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    states, lengths = torch.randn(34, WIDTH), [2] * 17
    assert assert_equal(search.decode(states, lengths).rows, plainly(model, states, lengths)) == 68


def test_a_row_that_is_not_finite_is_reported() -> None:
    """The others are as before."""
    model, lengths = tiny(5), [8, 8, 8]
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    states = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    before = search.decode(states, lengths)
    states[12] = math.nan
    found = search.decode(states, lengths)
    assert found.finite.tolist() == [True, False, True]
    for row in (0, 2):
        assert found.rows[row].logprobs.tolist() == before.rows[row].logprobs.tolist()


def test_weights_that_are_not_finite_end_the_search() -> None:
    """The kernels see it where the states do not show it."""
    model = tiny(5)
    broken = {**model.joint, "pred.bias": torch.full_like(model.joint["pred.bias"], math.nan)}
    model = dataclasses.replace(model, joint=broken)
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    assert search.decode(torch.randn(6, WIDTH), [2, 4]).finite.tolist() == [False, False]


def test_the_demo_checkpoint_in_float16_with_two_scripts() -> None:
    """Real words, with the tiles that a GPU would use."""
    model = demo()
    states, lengths = demo_states(["ru", "de"])
    search = GraphSearch(model, CPU, kernels=TRITON, limits=SMALL)
    added = torch.stack([outside("Cyrillic"), outside("Cyrillic")])
    search.set_slot(1, added[0])
    expected = plainly(model, states, lengths, added)
    assert assert_equal(search.decode(states, lengths, [1, 1]).rows, expected, within=0.02) > 8


def test_one_kernel_in_plain_pytorch_among_those_of_triton() -> None:
    """Whichever fails may be replaced."""
    model, lengths = tiny(1), [9, 4]
    states = torch.randn(13, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    expected = plainly(model, states, lengths)
    plain = SearchKernels.reference()
    for name in ("lstm", "joint_hidden", "joint_scores", "search_step"):
        kernels = dataclasses.replace(TRITON, **{name: getattr(plain, name)})
        search = GraphSearch(model, CPU, dtype=torch.float32, kernels=kernels, limits=SMALL)
        assert assert_equal(search.decode(states, lengths).rows, expected) > 3


def test_alone_equals_together_where_it_must_be_reproducible() -> None:
    """To the bit, over buckets of different size."""
    model, row = tiny(2), torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(7)) * 2
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
def test_a_step_can_be_recorded_to_be_compiled_ahead(reproducible: bool, row_tiles: int) -> None:
    """As many sets of constants as there are sizes of tile, whatever the number of rows."""
    launches: list[Launch] = []
    meta, model = torch.device("meta"), tiny(0)
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
    kinds = {(each.kernel.fn.__name__, tuple(each.options.items())) for each in launches}
    names = [name for name, _ in kinds]
    # The LSTM has two: its first layer reads a table.
    counts = {"_lstm": 2, "_joint_hidden": 1, "_joint_scores": 1}
    assert {name: names.count(name) for name in counts} == {
        name: count * row_tiles for name, count in counts.items()
    }
    assert names.count("_search_step") == 1
    projection = {"_product"} if reproducible else set()  # else it is cuBLAS's
    assert set(names) == {*counts, "_search_step"} | projection
