"""Balances deletions and insertions: `python -m training.calibrate --weights RUN/latest.pt ...`.

A TDT joint network chooses its two outputs independently, so a blank may be combined with a word's
duration and skip it. A small penalty on the blank and on long durations is harmless: training
covers states one frame early. Both are constants in the joint's output bias, searched on training
voices.
"""

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parakeet_worker.engine.native.decoder import GreedyDecoder, Scorer
from parakeet_worker.engine.native.precision import Precision
from training.architecture import DURATIONS, MELS
from training.corpus import Example, read_shard
from training.errors import WordErrors, compare
from training.network import Network
from training.pieces import Pieces

BLANK_PENALTIES = (0.0, 0.5, 1.0, 1.5, 2.0)
FRAME_PENALTIES = (0.0, 0.3, 0.6, 1.0)
MOST_SYMBOLS = 10


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties on the joint network's logits."""

    blank: float
    per_frame: float
    """Multiplied by the duration."""


def penalised(bias: Tensor, blank: int, penalties: Penalties) -> Tensor:
    """Return the joint network's output bias (tokens + blank + durations,) with the penalties."""
    changed = bias.clone()
    changed[blank] -= penalties.blank
    changed[blank + 1 :] -= penalties.per_frame * torch.tensor(DURATIONS)
    return changed


def padded(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """(B, mels, T) and (B,) frames."""
    lengths = torch.tensor([len(one.mels) for one in examples])
    mels = torch.zeros(len(examples), int(lengths.max()), MELS)
    for row, one in enumerate(examples):
        mels[row, : len(one.mels)] = torch.from_numpy(one.mels).float()
    return mels.transpose(1, 2), lengths


def errors(
    network: Network, encoded: tuple[Tensor, Tensor], examples: list[Example], pieces: Pieces
) -> WordErrors:
    """Count word errors with full stops and capitals."""
    decoder = GreedyDecoder(
        Scorer.of(network.decoder, network.joint, Precision.FP32), DURATIONS, MOST_SYMBOLS
    )
    total = WordErrors()
    for example, row in zip(examples, decoder.decode(*encoded), strict=True):
        reference = " ".join(word.written for word in example.words)
        total += compare(reference, pieces.text([emission.token for emission in row]))
    return total


@torch.inference_mode()
def search(network: Network, examples: list[Example], pieces: Pieces) -> Penalties:
    """Return the pair with the fewest errors, print all, and apply it to the network."""
    network.eval()
    encoded = network.encoder(*padded(examples))
    output = network.joint.joint_net[-1]
    original = output.bias.clone()
    totals: dict[Penalties, int] = {}
    for pair in itertools.starmap(Penalties, itertools.product(BLANK_PENALTIES, FRAME_PENALTIES)):
        output.bias.copy_(penalised(original, network.blank, pair))
        counted = errors(network, encoded, examples, pieces)
        totals[pair] = counted.errors
        print(f"blank {pair.blank}  per frame {pair.per_frame}  {counted.rate:.2%}", flush=True)
    best = min(totals, key=lambda pair: totals[pair])
    output.bias.copy_(penalised(original, network.blank, best))
    return best


def main() -> None:
    """Search, and write the weights with the best penalties in the same layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shard", type=Path, required=True, help="a shard of training voices")
    parser.add_argument("--utterances", type=int, default=150)
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    pieces = Pieces(arguments.tokenizer)
    network = Network(pieces)
    network.load_state_dict(torch.load(arguments.weights)["average"])
    examples = [one for one in read_shard(arguments.shard) if len(one.mels) < 1500]
    print(search(network, examples[: arguments.utterances], pieces))
    torch.save({"average": network.state_dict()}, arguments.into)


if __name__ == "__main__":
    main()
