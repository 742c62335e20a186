"""The demo checkpoint as Hugging Face's transformers saves, loads, encodes and decodes it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ParakeetFeatureExtractor, ParakeetForTDT
from transformers_models import emissions, whole_model, widened, write_folder

from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native import NativeEngine, checkpoint
from parakeet_worker.engine.native.checkpoint import Checkpoint
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import prepack
from parakeet_worker.engine.native.tensors import strip_prefix
from utterances import Utterance


@pytest.fixture(scope="module")
def load_prepacked(demo_path: Path) -> Checkpoint:
    return widened(checkpoint.read_checkpoint(demo_path))


@pytest.fixture(scope="module")
def folder(read: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(read, tmp_path_factory.mktemp("transformers") / "demo")


@pytest.fixture(scope="module")
def model(folder: Path) -> ParakeetForTDT:
    return ParakeetForTDT.from_pretrained(folder).eval()


def test_the_folder_holds_the_weights_of_the_nemo_file(read: Checkpoint, folder: Path) -> None:
    again = checkpoint.read_checkpoint(folder)
    assert again.vocabulary == read.vocabulary
    assert (again.durations, again.max_symbols) == (read.durations, read.max_symbols)
    compared = 0
    for part in ("encoder", "decoder", "joint"):
        theirs, ours = strip_prefix(part, again.weights), strip_prefix(part, read.weights)
        # The joint's last layer has a number more where there is dropout before it.
        names = {name.replace("joint_net.2.", "joint_net.1."): name for name in ours}
        assert {name.replace("joint_net.2.", "joint_net.1.") for name in theirs} == set(names)
        for name, tensor in theirs.items():
            expected = ours[names[name.replace("joint_net.2.", "joint_net.1.")]]
            assert torch.equal(tensor, expected), name
            compared += 1
    assert compared > 100


def test_the_folder_is_heard_as_the_nemo_file_is(
    folder: Path, spoken: Sequence[Utterance], native_heard: Sequence[Hypothesis]
) -> None:
    engine = NativeEngine.open(folder, "cpu", precision="fp32")
    some = range(0, len(spoken), 4)
    heard = engine.transcribe([spoken[index].samples for index in some])
    for index, hypothesis in zip(some, heard, strict=True):
        expected = native_heard[index]
        assert [(token.piece, token.frame, token.duration) for token in hypothesis.tokens] == [
            (token.piece, token.frame, token.duration) for token in expected.tokens
        ]


@torch.inference_mode()
def test_the_encoder_states_are_those_of_the_whole_model(
    read: Checkpoint, model: ParakeetForTDT, spoken: Sequence[Utterance]
) -> None:
    pieces = [torch.from_numpy(utterance.samples) for utterance in spoken[::20]]
    lengths = torch.tensor([len(piece) for piece in pieces])
    features = Features.from_config(read.preprocessor)
    encoder = Encoder.from_config(read.encoder).eval()
    encoder.load_state_dict(strip_prefix("encoder", read.weights))
    states, valid = encoder(*features(pad_sequence(pieces, batch_first=True), lengths))
    extractor = ParakeetFeatureExtractor.from_pretrained(model.name_or_path)
    inputs = extractor([piece.numpy() for piece in pieces], sampling_rate=16_000)
    expected = model.encoder(inputs.input_features, attention_mask=inputs.attention_mask)
    for row, length in enumerate(valid.tolist()):
        difference = states[row, :length] - expected.last_hidden_state[row, :length]
        assert difference.abs().max() < 1e-4


def test_generate_says_the_same_alone_and_in_a_batch(
    read: Checkpoint,
    model: ParakeetForTDT,
    spoken: Sequence[Utterance],
    native_heard: Sequence[Hypothesis],
) -> None:
    """As long as no frame has ten tokens: `generate` knows no limit there."""
    extractor = ParakeetFeatureExtractor.from_pretrained(model.name_or_path)
    some = list(range(0, len(spoken), 16))
    groups = [[index] for index in some[: len(some) // 2]] + [some[len(some) // 2 :]]
    tokens = 0
    for group in groups:
        inputs = extractor([spoken[index].samples for index in group], sampling_rate=16_000)
        said = emissions(model, inputs.input_features, inputs.attention_mask)
        for index, expected in zip(group, said, strict=True):
            found = [
                (token.piece, token.frame, token.duration) for token in native_heard[index].tokens
            ]
            assert found == [
                (read.vocabulary.text(token), frame, duration)
                for token, frame, duration in expected
            ]
            tokens += len(found)
    assert tokens > 100


def test_generate_knows_no_limit_of_tokens_on_a_frame(read: Checkpoint) -> None:
    """Ours, as NeMo's, moves on after `max_symbols`; fails when transformers learns to."""
    blank = read.vocabulary.blank
    weights = dict(read.weights)
    scores = torch.zeros_like(weights["joint.joint_net.2.bias"])
    scores[5] = scores[blank + 1] = 100.0  # always the token 5, always of duration 0
    weights["joint.joint_net.2.bias"] = scores
    stuck = replace(read, weights=weights)
    samples = np.random.default_rng(0).standard_normal(4_800).astype(np.float32)
    (ours,) = NativeEngine(prepack(stuck, Precision.FP32), torch.device("cpu")).transcribe(
        [samples]
    )
    assert Counter(token.frame for token in ours.tokens) == dict.fromkeys(range(4), 10)
    inputs = ParakeetFeatureExtractor(feature_size=read.preprocessor["features"])(
        [samples], sampling_rate=16_000
    )
    (theirs,) = emissions(whole_model(stuck), inputs.input_features, inputs.attention_mask)
    assert {frame for _, frame, _ in theirs} == {0}
    assert len(theirs) > 10
