"""One step of an LSTM layer equals plain PyTorch, and torch's own LSTM."""

from dataclasses import replace

import pytest
import torch
from comparing import assert_close

from parakeet_worker.engine.native.kernels import lstm
from parakeet_worker.engine.native.kernels.lstm import Layer
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

TILE = replace(Tiles().lstm, rows=16)


def random_layer(width: int, dtype: torch.dtype, tokens: int | None = None) -> Layer:
    """Random weights; with `tokens` those of a first layer."""
    input_weight = torch.randn(width, 4 * width) * 0.3
    if tokens is not None:
        input_weight = torch.randn(tokens, 4 * width)
    return Layer(
        input_weight if tokens is not None else input_weight.to(dtype),
        torch.randn(4 * width),
        (torch.randn(width, 4 * width) * 0.3).to(dtype),
    )


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (16, 1), (37, 40), (16, 80)])
def test_a_step_equals_the_reference(
    dtype: torch.dtype, rows: int, width: int, first: bool
) -> None:
    """Rows that emitted advance; the others keep their state bit for bit."""
    torch.manual_seed(rows + width)
    layer = random_layer(width, dtype, 13 if first else None)
    inputs = torch.randn(rows, width)
    if first:
        inputs = torch.randint(0, 13, (rows,), dtype=torch.int32)
    for emitted in (torch.rand(rows) < 0.5, torch.zeros(rows), torch.ones(rows)):
        hidden, cell = torch.randn(rows, width), torch.randn(rows, width)
        actual, expected = torch.full((rows, width), 7.0), torch.zeros(rows, width)
        actual_cell, expected_cell = cell.clone(), cell.clone()
        for step, next_hidden, next_cell in (
            (lstm.launch, actual, actual_cell),
            (lstm.reference, expected, expected_cell),
        ):
            step(layer, inputs, emitted.int(), hidden, next_cell, next_hidden, tile=TILE)
        assert_close(actual, expected, roundings=32)
        assert_close(actual_cell, expected_cell, roundings=32)
        unchanged = ~emitted.bool()
        assert torch.equal(actual[unchanged], hidden[unchanged])
        assert torch.equal(actual_cell[unchanged], cell[unchanged])
        if emitted.any():
            assert not torch.allclose(actual[~unchanged], hidden[~unchanged])


def test_the_token_of_a_row_that_did_not_emit_is_not_read() -> None:
    """The token of a failed row may be out of range."""
    layer = random_layer(16, torch.float32, 5)
    tokens = torch.tensor([10**8, 4], dtype=torch.int32)
    hidden, cell, next_hidden = torch.randn(2, 16), torch.randn(2, 16), torch.zeros(2, 16)
    emitted = torch.tensor([0, 1], dtype=torch.int32)
    lstm.launch(layer, tokens, emitted, hidden, cell, next_hidden, tile=TILE)
    assert torch.equal(next_hidden[0], hidden[0])


@pytest.mark.parametrize("tile", [Tile(16, 16, 16), Tile(32, 64, 32)])
def test_two_layers_equal_the_lstm_of_torch(tile: Tile) -> None:
    """A row's state after three tokens, from weights in the layout of checkpoints."""
    torch.manual_seed(0)
    width, tokens = 24, 7
    network, embedding = torch.nn.LSTM(width, width, 2, batch_first=True), torch.randn(7, width)
    parameters = dict(network.named_parameters())
    sequences = torch.randint(0, tokens, (5, 3))
    with torch.inference_mode():
        expected = network(embedding[sequences])[0]
        layers = []
        for index in range(2):
            weight = parameters[f"weight_ih_l{index}"].t().contiguous()
            bias = parameters[f"bias_ih_l{index}"] + parameters[f"bias_hh_l{index}"]
            input_weight = embedding @ weight + bias if index == 0 else weight
            hidden_weight = parameters[f"weight_hh_l{index}"].t().contiguous()
            layers.append(Layer(input_weight, bias, hidden_weight))
        hidden, cell = torch.zeros(2, 5, width), torch.zeros(2, 5, width)
        for step in range(3):
            next_hidden, inputs = torch.zeros_like(hidden), sequences[:, step].int()
            for layer, *state in zip(layers, hidden, cell, next_hidden, strict=True):
                emitted = torch.ones(5, dtype=torch.int32)
                lstm.launch(layer, inputs, emitted, *state, tile=tile)
                inputs = state[2]
            hidden = next_hidden
            assert_close(hidden[1], expected[:, step], roundings=32)
