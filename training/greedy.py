"""Greedy TDT decoding, one utterance at a time and plainly: the yardstick during training."""

import torch
from torch import Tensor

from training.architecture import DURATIONS
from training.network import Network

MOST_SYMBOLS_PER_FRAME = 10

LstmState = tuple[Tensor, Tensor] | None


def step(network: Network, token: int, state: LstmState) -> tuple[Tensor, LstmState]:
    """The prediction network after one more token: its projected state (width,), its memory."""
    embedded = network.decoder.embed(torch.tensor([[token]]))
    output, state = network.decoder.lstm(embedded, state)
    return network.joint.pred(output[0, 0]), state


def decode(network: Network, states: Tensor) -> list[int]:
    """(T', width) encoder states -> token ids."""
    heard = network.joint.enc(states)
    said, memory = step(network, network.blank, None)
    tokens: list[int] = []
    frame = symbols = 0
    while frame < len(heard):
        logits = network.joint.logits(heard[frame] + said)
        token = int(logits[: network.blank + 1].argmax())
        duration = DURATIONS[int(logits[network.blank + 1 :].argmax())]
        if token == network.blank:
            duration = max(duration, 1)
        else:
            tokens.append(token)
            said, memory = step(network, token, memory)
        symbols = symbols + 1 if duration == 0 else 0
        frame += duration
        if symbols == MOST_SYMBOLS_PER_FRAME:
            frame, symbols = frame + 1, 0
    return tokens
