"""Compares the graph search with `GreedyDecoder`, on random models and the demo checkpoint."""

import math
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import parakeet_worker
from parakeet_worker.engine.base import Samples
from parakeet_worker.engine.native import NativeEngine, checkpoint
from parakeet_worker.engine.native.checkpoint import Checkpoint
from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Joint, Predictor, Scorer
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.search import Emissions, SearchModel
from parakeet_worker.engine.native.tensors import strip_prefix
from parakeet_worker.language import Script, allowed
from speech import sample
from test_native_decoder import DURATIONS, networks
from tiny_model import PIECES

DEMO = Path(parakeet_worker.__file__).parent / "checkpoints" / "demo.nemo"
TOKENS = len(PIECES) + 1  # of the tiny model, with the blank


def random_model(seed: int, max_symbols: int = 3, activation: str = "relu") -> SearchModel:
    predictor, joint = networks(seed)
    weights = (predictor.state_dict(), joint.state_dict())
    return SearchModel(*weights, activation, DURATIONS, max_symbols)


def constant_model(max_symbols: int, duration: int = 0) -> SearchModel:
    """Emits token 1 with that duration in every frame."""
    predictor, joint = networks(0)
    with torch.no_grad():
        head = joint.joint_net[-1]
        head.weight.zero_()
        head.bias.zero_()
        head.bias[1] = 5.0
        head.bias[TOKENS + duration] = 5.0
    weights = (predictor.state_dict(), joint.state_dict())
    return SearchModel(*weights, "relu", DURATIONS, max_symbols)


def demo_model() -> SearchModel:
    """The networks of the demo checkpoint, which emits real words."""
    demo = _demo_checkpoint()
    predictor, joint = Predictor.from_config(demo.decoder), Joint.from_config(demo.joint)
    predictor.load_state_dict(strip_prefix("decoder", demo.weights))
    joint.load_state_dict(strip_prefix("joint", demo.weights))
    return SearchModel(
        predictor.state_dict(),
        joint.state_dict(),
        joint.config.activation,
        demo.durations,
        demo.max_symbols,
    )


@cache
def _demo_checkpoint() -> Checkpoint:
    return checkpoint.read_checkpoint(DEMO)


def greedy(
    model: SearchModel, states: Tensor, lengths: Sequence[int], bias: Tensor | None = None
) -> list[tuple[Emission, ...]]:
    """Result of `GreedyDecoder` for the same packed rows."""
    if not lengths:
        return []
    scorer = Scorer(model.predictor, model.joint, model.activation, Precision.FP32)
    decoder = GreedyDecoder(scorer, model.durations, model.max_symbols)
    padded = pad_sequence(states[: sum(lengths)].float().split(list(lengths)), batch_first=True)
    return decoder.decode(padded, torch.tensor(lengths), bias)


def assert_rows_equal(
    actual: Sequence[Emissions], expected: Sequence[Sequence[Emission]], within: float = 1e-4
) -> int:
    """Same tokens at the same frames, log-probabilities `within`; returns the number of tokens."""
    assert len(actual) == len(expected)
    for row, right in zip(actual, expected, strict=True):
        assert row.tokens.tolist() == [emission.token for emission in right]
        assert row.frames.tolist() == [emission.frame for emission in right]
        assert row.durations.tolist() == [emission.duration for emission in right]
        differences = [
            abs(logprob - emission.logprob)
            for logprob, emission in zip(row.logprobs.tolist(), right, strict=True)
        ]
        assert max(differences, default=0.0) <= within
    return sum(len(row) for row in expected)


def demo_states(languages: Sequence[str]) -> tuple[Tensor, list[int]]:
    """Packed encoder states of the samples in these languages, and the length of each."""
    rows = [_demo_row(language) for language in languages]
    return torch.cat(rows), [len(row) for row in rows]


@cache
def _demo_engine() -> NativeEngine:
    return NativeEngine.open(DEMO, "cpu", "fp32")


@cache
def _demo_row(language: str) -> Tensor:
    with torch.inference_mode():
        states, valid = _demo_engine().encode([_samples(language)])
    return states[0, : int(valid[0])].clone()


def only_script(script: Script) -> Tensor:
    """Minus infinity for the demo checkpoint's tokens in other scripts, zero for the rest."""
    pieces = _demo_checkpoint().vocabulary.pieces
    scores = [0.0 if allowed(piece, script) else -math.inf for piece in pieces]
    return torch.tensor([*scores, 0.0])


def _samples(language: str) -> Samples:
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-loglevel", "error", "-i", str(sample(language).path)),
        *("-ac", "1", "-ar", "16000", "-f", "f32le", "-"),
    ]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(output, "<f4").copy()
