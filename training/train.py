"""Trains the network: `python -m training.train --shards S --tokenizer T --into RUN`."""

import argparse
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import greedy, weights
from training.batches import ahead, endless
from training.corpus import Example, read_shard
from training.errors import WordErrors, compare, plain
from training.network import Losses, Network, WeightsAverage, parameters_count
from training.pieces import Pieces

log = logging.getLogger(__name__)

WARM_UP_STEPS = 200
SAVE_EVERY_STEPS = 250
AVERAGE_DECAY = 0.999
LARGEST_GRADIENT = 2.0
CHECKED = 100
"""Utterances of the check shard that are decoded at every save."""


@dataclass(frozen=True, slots=True)
class Run:
    """Options of one run."""

    steps: int
    learning_rate: float
    batch_seconds: float
    words_weight: float
    seed: int
    encoder_share: float
    """Of the learning rate, for the encoder."""
    keep: bool
    """The averaged weights of every save, not of the latest only."""


def learning_rate(step: int, run: Run) -> float:
    """Return the learning rate: warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return run.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / run.steps)))


def optimiser(network: Network, encoder_share: float) -> torch.optim.AdamW:
    """Create AdamW without weight decay for vectors (norms and biases).

    `share` of each group is its part of the learning rate.
    """
    own = {id(one) for one in network.encoder.parameters()}
    groups = []
    for share, inside in ((encoder_share, True), (1.0, False)):
        those = [one for one in network.parameters() if (id(one) in own) is inside]
        matrices = [one for one in those if one.ndim > 1]
        vectors = [one for one in those if one.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": 0.02, "share": share})
        groups.append({"params": vectors, "weight_decay": 0.0, "share": share})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def one_step(network: Network, adam: torch.optim.AdamW, losses: Losses, run: Run) -> None:
    """Take one optimiser step on the total loss."""
    adam.zero_grad(set_to_none=True)
    losses.total(run.words_weight).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    adam.step()


def validate(network: Network, examples: list[Example], pieces: Pieces) -> dict[str, WordErrors]:
    """Count word errors without case and punctuation by origin, and `written` with them."""
    counted: dict[str, WordErrors] = {}
    network.eval()
    for example in examples:
        mels = torch.from_numpy(example.mels).float().T.unsqueeze(0)
        with torch.inference_mode():
            states, _ = network.encoder(mels, torch.tensor([len(example.mels)]))
            hypothesis = pieces.text(greedy.decode(network, states[0]))
        reference = " ".join(word.written for word in example.words)
        kind = example.origin if example.origin in ("human", "nothing") else "synthesised"
        counted[kind] = counted.get(kind, WordErrors()) + compare(
            plain(reference), plain(hypothesis)
        )
        counted["written"] = counted.get("written", WordErrors()) + compare(reference, hypothesis)
    network.train()
    return counted


def describe(counted: dict[str, WordErrors]) -> str:
    """Format a log line; `nothing` counts words in audio without speech."""
    return "  ".join(
        f"{kind} {one.rate:.2%}" if one.words else f"{kind} +{one.errors}"
        for kind, one in sorted(counted.items())
    )


def save(into: Path, network: Network, average: WeightsAverage, step: int, *, keep: bool) -> None:
    """Write `latest.pt` atomically, and the averaged weights by step if they are kept."""
    stored: dict[str, Any] = {"network": network.state_dict(), "average": average.state}
    unfinished = into / "latest.unfinished"
    torch.save({**stored, "step": step}, unfinished)
    unfinished.rename(into / "latest.pt")
    if keep:
        torch.save({"average": average.state}, into / f"{step:05}.pt")


def train(
    network: Network, pieces: Pieces, shards: Path, into: Path, check: list[Example], run: Run
) -> None:
    """Run all steps, periodically saving and validating the averaged weights."""
    adam = optimiser(network, run.encoder_share)
    average = WeightsAverage(network, AVERAGE_DECAY)
    averaged = Network(pieces)
    batches = ahead(endless(shards, pieces, int(run.batch_seconds * 100), run.seed))
    started = time.monotonic()
    for step in range(run.steps):
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, run) * group["share"]
        losses = network.losses(next(batches))
        one_step(network, adam, losses, run)
        average.update(network)
        if step % 50 == 0:
            log.info(
                "%5d %6.0f s  words %.3f  tokens %.3f  durations %.3f  skips %.3f", step,
                time.monotonic() - started, losses.words.item(), losses.tokens.item(),
                losses.durations.item(), losses.skips.item(),
            )  # fmt: skip
        if (step + 1) % SAVE_EVERY_STEPS == 0 or step + 1 == run.steps:
            save(into, network, average, step + 1, keep=run.keep)
            averaged.load_state_dict(average.state)
            log.info("      %s", describe(validate(averaged, check, pieces)))


def main() -> None:
    """Train from random weights, or from another run's with `--start`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--check", type=Path, required=True, help="a shard to validate on")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a run or a .nemo file")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--encoder-share", type=float, default=1.0, help="of the learning rate")
    parser.add_argument("--batch-seconds", type=float, default=110)
    parser.add_argument("--words-weight", type=float, default=1.0)
    parser.add_argument("--decoder-only", action="store_true", help="freeze the encoder")
    parser.add_argument("--keep", action="store_true", help="the weights of every save")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    pieces = Pieces(arguments.tokenizer)
    network = Network(pieces)
    if arguments.start:
        network.resume(weights.read(arguments.start))
    if arguments.decoder_only:
        network.freeze_encoder()
        network.train()
    log.info("%d parameters", parameters_count(network))
    arguments.into.mkdir(parents=True, exist_ok=True)
    run = Run(
        arguments.steps, arguments.learning_rate, arguments.batch_seconds,
        arguments.words_weight, arguments.seed, arguments.encoder_share,
        arguments.keep,
    )  # fmt: skip
    check = read_shard(arguments.check)[:CHECKED]
    train(network, pieces, arguments.shards, arguments.into, check, run)


if __name__ == "__main__":
    main()
