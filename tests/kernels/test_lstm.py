"""One step of an LSTM layer equals plain PyTorch, and torch's own LSTM."""

from dataclasses import replace

import pytest
import torch
from comparing import assert_close

from parakeet_worker.engine.native.kernels import lstm
from parakeet_worker.engine.native.kernels.lstm import Layer
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

TILE = replace(Tiles().lstm, rows=16)


def layer_of(width: int, dtype: torch.dtype, tokens: int | None = None) -> Layer:
    """Random weights; with `tokens` those of a first layer."""
    from_inputs = torch.randn(width, 4 * width) * 0.3
    if tokens is not None:
        from_inputs = torch.randn(tokens, 4 * width)
    return Layer(
        from_inputs if tokens is not None else from_inputs.to(dtype),
        torch.randn(4 * width),
        (torch.randn(width, 4 * width) * 0.3).to(dtype),
    )


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (16, 1), (37, 40), (16, 80)])
def test_a_step_equals_the_reference(
    dtype: torch.dtype, rows: int, width: int, first: bool
) -> None:
    """Rows that emitted advance, the others keep their state, to the bit."""
    torch.manual_seed(rows + width)
    layer = layer_of(width, dtype, 13 if first else None)
    inputs = torch.randn(rows, width)
    if first:
        inputs = torch.randint(0, 13, (rows,), dtype=torch.int32)
    for emitted in (torch.rand(rows) < 0.5, torch.zeros(rows), torch.ones(rows)):
        hidden, cell = torch.randn(rows, width), torch.randn(rows, width)
        before = cell.clone()
        mine, theirs = (torch.full((rows, width), 7.0), cell), (torch.zeros(rows, width), None)
        theirs = (theirs[0], cell.clone())
        for step, (advanced, memory) in ((lstm.launch, mine), (lstm.reference, theirs)):
            step(layer, inputs, emitted.int(), hidden, memory, advanced, tile=TILE)
        assert_close(mine[0], theirs[0], roundings=32)
        assert_close(mine[1], theirs[1], roundings=32)
        kept = ~emitted.bool()
        assert torch.equal(mine[0][kept], hidden[kept])
        assert torch.equal(mine[1][kept], before[kept])
        if emitted.any():
            assert not torch.allclose(mine[0][~kept], hidden[~kept])


def test_tokens_of_rows_that_did_not_emit_are_not_looked_up() -> None:
    """A failed row may hold any number there."""
    layer = layer_of(16, torch.float32, 5)
    tokens = torch.tensor([10**8, 4], dtype=torch.int32)
    hidden, cell, advanced = torch.randn(2, 16), torch.randn(2, 16), torch.zeros(2, 16)
    emitted = torch.tensor([0, 1], dtype=torch.int32)
    lstm.launch(layer, tokens, emitted, hidden, cell, advanced, tile=TILE)
    assert torch.equal(advanced[0], hidden[0])


@pytest.mark.parametrize("tile", [Tile(16, 16, 16), Tile(32, 64, 32)])
def test_two_layers_equal_the_lstm_of_torch(tile: Tile) -> None:
    """A row's state after three tokens, from the weights as checkpoints have them."""
    torch.manual_seed(0)
    width, tokens = 24, 7
    network, embedding = torch.nn.LSTM(width, width, 2, batch_first=True), torch.randn(7, width)
    parts = dict(network.named_parameters())
    said = torch.randint(0, tokens, (5, 3))
    with torch.inference_mode():
        expected = network(embedding[said])[0]
        layers = []
        for number in range(2):
            into = parts[f"weight_ih_l{number}"].t().contiguous()
            bias = parts[f"bias_ih_l{number}"] + parts[f"bias_hh_l{number}"]
            table = embedding @ into + bias if number == 0 else into
            layers.append(Layer(table, bias, parts[f"weight_hh_l{number}"].t().contiguous()))
        hidden, cell = torch.zeros(2, 5, width), torch.zeros(2, 5, width)
        for step in range(3):
            after, inputs = torch.zeros_like(hidden), said[:, step].int()
            for layer, *state in zip(layers, hidden, cell, after, strict=True):
                emitted = torch.ones(5, dtype=torch.int32)
                lstm.launch(layer, inputs, emitted, *state, tile=tile)
                inputs = state[2]
            hidden = after
            assert_close(hidden[1], expected[:, step], roundings=32)
