"""Greedy TDT decoding, one utterance at a time, for validation during training."""

import torch
from torch import Tensor

from training.architecture import DURATIONS
from training.network import Network

MOST_SYMBOLS_PER_FRAME = 10

LstmState = tuple[Tensor, Tensor] | None


def step(network: Network, token: int, state: LstmState) -> tuple[Tensor, LstmState]:
    """Advance the prediction network by one token; return its projection (width,) and state."""
    embedded = network.decoder.embed(torch.tensor([[token]]))
    output, state = network.decoder.lstm(embedded, state)
    return network.joint.pred(output[0, 0]), state


def decode(network: Network, states: Tensor) -> list[int]:
    """Decode (T', width) encoder states to token ids."""
    encoded = network.joint.enc(states)
    predicted, memory = step(network, network.blank, None)
    tokens: list[int] = []
    frame = symbols = 0
    while frame < len(encoded):
        logits = network.joint.logits(encoded[frame] + predicted)
        token = int(logits[: network.blank + 1].argmax())
        duration = DURATIONS[int(logits[network.blank + 1 :].argmax())]
        if token == network.blank:
            duration = max(duration, 1)
        else:
            tokens.append(token)
            predicted, memory = step(network, token, memory)
        symbols = symbols + 1 if duration == 0 else 0
        frame += duration
        if symbols == MOST_SYMBOLS_PER_FRAME:
            frame, symbols = frame + 1, 0
    return tokens
