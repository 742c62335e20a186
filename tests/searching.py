"""The graph search held against the plain loop, on models small and large."""

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import parakeet_worker
from parakeet_worker.engine.base import Samples
from parakeet_worker.engine.native import NativeEngine, checkpoint
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


def tiny(seed: int, max_symbols: int = 3, activation: str = "relu") -> SearchModel:
    predictor, joint = networks(seed)
    weights = (predictor.state_dict(), joint.state_dict())
    return SearchModel(*weights, activation, DURATIONS, max_symbols)


def stubborn(max_symbols: int, duration: int = 0) -> SearchModel:
    """Says token 1 in every frame, of that duration."""
    predictor, joint = networks(0)
    with torch.no_grad():
        head = joint.joint_net[-1]
        head.weight.zero_()
        head.bias.zero_()
        head.bias[1] = 5.0
        head.bias[TOKENS + duration] = 5.0
    weights = (predictor.state_dict(), joint.state_dict())
    return SearchModel(*weights, "relu", DURATIONS, max_symbols)


def demo() -> SearchModel:
    """The networks of the demo checkpoint, which has real words."""
    read = checkpoint.read_checkpoint(DEMO)
    predictor, joint = Predictor.from_config(read.decoder), Joint.from_config(read.joint)
    predictor.load_state_dict(strip_prefix("decoder", read.weights))
    joint.load_state_dict(strip_prefix("joint", read.weights))
    return SearchModel(
        predictor.state_dict(),
        joint.state_dict(),
        joint.config.activation,
        read.durations,
        read.max_symbols,
    )


def plainly(
    model: SearchModel, states: Tensor, lengths: Sequence[int], added: Tensor | None = None
) -> list[tuple[Emission, ...]]:
    """What `GreedyDecoder` says of the same packed rows."""
    if not lengths:
        return []
    scorer = Scorer(model.predictor, model.joint, model.activation, Precision.FP32)
    decoder = GreedyDecoder(scorer, model.durations, model.max_symbols)
    padded = pad_sequence(states[: sum(lengths)].float().split(list(lengths)), batch_first=True)
    return decoder.decode(padded, torch.tensor(lengths), added)


def assert_equal(
    found: Sequence[Emissions], expected: Sequence[Sequence[Emission]], within: float = 1e-4
) -> int:
    """Same tokens at the same places, log-probabilities within so much; returns how many."""
    assert len(found) == len(expected)
    for mine, right in zip(found, expected, strict=True):
        assert mine.tokens.tolist() == [each.token for each in right]
        assert mine.frames.tolist() == [each.frame for each in right]
        assert mine.durations.tolist() == [each.duration for each in right]
        off = [abs(a - b.logprob) for a, b in zip(mine.logprobs.tolist(), right, strict=True)]
        assert max(off, default=0.0) <= within
    return sum(len(row) for row in expected)


def demo_states(languages: Sequence[str]) -> tuple[Tensor, list[int]]:
    """Encoder states of the samples in these languages, packed, and the length of each."""
    engine = NativeEngine.open(DEMO, "cpu", "fp32")
    with torch.inference_mode():
        states, valid = engine.encode([_samples(language) for language in languages])
    lengths = valid.tolist()
    return torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)]), lengths


def outside(script: Script) -> Tensor:
    """Minus infinity for the demo checkpoint's tokens in other scripts, and zero for others."""
    pieces = checkpoint.read_checkpoint(DEMO).vocabulary.pieces
    scores = [0.0 if allowed(piece, script) else -math.inf for piece in pieces]
    return torch.tensor([*scores, 0.0])


def _samples(language: str) -> Samples:
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-loglevel", "error", "-i", str(sample(language).path)),
        *("-ac", "1", "-ar", "16000", "-f", "f32le", "-"),
    ]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(said, "<f4").copy()
