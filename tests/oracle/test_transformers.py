"""The demo checkpoint saved, loaded, encoded and decoded by transformers."""

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
def demo(demo_path: Path) -> Checkpoint:
    return widened(checkpoint.read_checkpoint(demo_path))


@pytest.fixture(scope="module")
def folder(demo: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(demo, tmp_path_factory.mktemp("transformers") / "demo")


@pytest.fixture(scope="module")
def model(folder: Path) -> ParakeetForTDT:
    return ParakeetForTDT.from_pretrained(folder).eval()


def test_the_folder_has_the_weights_of_the_nemo_file(demo: Checkpoint, folder: Path) -> None:
    again = checkpoint.read_checkpoint(folder)
    assert again.vocabulary == demo.vocabulary
    assert (again.durations, again.max_symbols) == (demo.durations, demo.max_symbols)
    compared = 0
    for part in ("encoder", "decoder", "joint"):
        saved, native = strip_prefix(part, again.weights), strip_prefix(part, demo.weights)
        # The index of the joint's last layer is higher by one with dropout.
        names = {name.replace("joint_net.2.", "joint_net.1."): name for name in native}
        assert {name.replace("joint_net.2.", "joint_net.1.") for name in saved} == set(names)
        for name, tensor in saved.items():
            expected = native[names[name.replace("joint_net.2.", "joint_net.1.")]]
            assert torch.equal(tensor, expected), name
            compared += 1
    assert compared > 100


def test_results_of_the_folder_equal_those_of_the_nemo_file(
    folder: Path, spoken: Sequence[Utterance], native_hypotheses: Sequence[Hypothesis]
) -> None:
    engine = NativeEngine.open(folder, "cpu", precision="fp32")
    some = range(0, len(spoken), 4)
    hypotheses = engine.transcribe([spoken[index].samples for index in some])
    for index, hypothesis in zip(some, hypotheses, strict=True):
        expected = native_hypotheses[index]
        assert [(token.piece, token.frame, token.duration) for token in hypothesis.tokens] == [
            (token.piece, token.frame, token.duration) for token in expected.tokens
        ]


@torch.inference_mode()
def test_the_encoder_states_equal_those_of_the_whole_model(
    demo: Checkpoint, model: ParakeetForTDT, spoken: Sequence[Utterance]
) -> None:
    pieces = [torch.from_numpy(utterance.samples) for utterance in spoken[::20]]
    lengths = torch.tensor([len(piece) for piece in pieces])
    features = Features.from_config(demo.preprocessor)
    encoder = Encoder.from_config(demo.encoder).eval()
    encoder.load_state_dict(strip_prefix("encoder", demo.weights))
    states, valid = encoder(*features(pad_sequence(pieces, batch_first=True), lengths))
    extractor = ParakeetFeatureExtractor.from_pretrained(model.name_or_path)
    inputs = extractor([piece.numpy() for piece in pieces], sampling_rate=16_000)
    expected = model.encoder(inputs.input_features, attention_mask=inputs.attention_mask)
    for row, length in enumerate(valid.tolist()):
        difference = states[row, :length] - expected.last_hidden_state[row, :length]
        assert difference.abs().max() < 1e-4


def test_generate_has_equal_results_alone_and_in_a_batch(
    demo: Checkpoint,
    model: ParakeetForTDT,
    spoken: Sequence[Utterance],
    native_hypotheses: Sequence[Hypothesis],
) -> None:
    """As long as no frame has ten tokens: `generate` has no limit per frame."""
    extractor = ParakeetFeatureExtractor.from_pretrained(model.name_or_path)
    some = list(range(0, len(spoken), 16))
    groups = [[index] for index in some[: len(some) // 2]] + [some[len(some) // 2 :]]
    tokens = 0
    for group in groups:
        inputs = extractor([spoken[index].samples for index in group], sampling_rate=16_000)
        decoded = emissions(model, inputs.input_features, inputs.attention_mask)
        for index, expected in zip(group, decoded, strict=True):
            emitted = [
                (token.piece, token.frame, token.duration)
                for token in native_hypotheses[index].tokens
            ]
            assert emitted == [
                (demo.vocabulary.text(token), frame, duration)
                for token, frame, duration in expected
            ]
            tokens += len(emitted)
    assert tokens > 100


def test_generate_has_no_limit_of_tokens_per_frame(demo: Checkpoint) -> None:
    """The native engine and NeMo apply `max_symbols`; this fails when transformers does too."""
    blank = demo.vocabulary.blank
    weights = dict(demo.weights)
    scores = torch.zeros_like(weights["joint.joint_net.2.bias"])
    scores[5] = scores[blank + 1] = 100.0  # always the token 5, always of duration 0
    weights["joint.joint_net.2.bias"] = scores
    stuck = replace(demo, weights=weights)
    samples = np.random.default_rng(0).standard_normal(4_800).astype(np.float32)
    (native,) = NativeEngine(prepack(stuck, Precision.FP32), torch.device("cpu")).transcribe(
        [samples]
    )
    assert Counter(token.frame for token in native.tokens) == dict.fromkeys(
        range(4), demo.max_symbols
    )
    inputs = ParakeetFeatureExtractor(feature_size=demo.preprocessor["features"])(
        [samples], sampling_rate=16_000
    )
    (reference,) = emissions(whole_model(stuck), inputs.input_features, inputs.attention_mask)
    assert {frame for _, frame, _ in reference} == {0}
    assert len(reference) > demo.max_symbols
