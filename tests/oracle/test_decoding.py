"""The same tokens, frames and durations as NeMo, decoded utterance by utterance."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nemo_models
import numpy as np
import pytest
import torch
from torch import Tensor

from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native import NativeEngine, checkpoint
from parakeet_worker.engine.native.checkpoint import Checkpoint
from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Joint, Predictor, Scorer
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import prepack
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchModel
from parakeet_worker.engine.native.tensors import strip_prefix
from utterances import Utterance

CPU = torch.device("cpu")
MOST_SYMBOLS = 10


@pytest.fixture(scope="module")
def template(tiny_nemo: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny model's `.nemo` file as the native engine reads it."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.nemo"
    tiny_nemo.save_to(str(path))
    return checkpoint.read_checkpoint(path)


def with_weights_of(template: Checkpoint, model: Any) -> Checkpoint:
    weights = {
        name.replace("preprocessor.featurizer.", "preprocessor."): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    return replace(template, weights=weights)


def networks(template: Checkpoint, model: Any) -> tuple[Predictor, Joint]:
    read = with_weights_of(template, model)
    predictor, joint = Predictor.from_config(read.decoder), Joint.from_config(read.joint)
    predictor.load_state_dict(strip_prefix("decoder", read.weights))
    joint.load_state_dict(strip_prefix("joint", read.weights))
    return predictor.eval(), joint.eval()


def placed(emissions: Sequence[Emission]) -> list[tuple[int, int, int]]:
    return [(said.token, said.frame, said.duration) for said in emissions]


def logprobs(model: Any, hypothesis: Any) -> list[float]:
    """NeMo's confidence with its stretch undone; see `test_confidence`."""
    outcomes = model.decoding.blank_id + 1
    stretched = np.array(hypothesis.token_confidence, dtype=np.float64)
    return list(np.log((stretched * (outcomes - 1) + 1) / outcomes))


@pytest.mark.parametrize("kind", ["plain", "graph"])
def test_a_padded_batch_of_random_states_is_decoded_as_nemo_decodes_each_row(
    tiny_nemo: Any, template: Checkpoint, kind: str
) -> None:
    lengths = torch.tensor([60, 1, 50, 40, 0])
    rows = busy = stuck = 0
    for seed in range(40):
        nemo_models.randomise(tiny_nemo, seed, stay=seed % 4 * 0.8)
        nemo_models.configure(tiny_nemo)
        decoder = native_decoder(kind, *networks(template, tiny_nemo))
        states = torch.randn(5, 60, 32, generator=torch.Generator().manual_seed(seed)) * 2
        for row, emissions in enumerate(decoder.decode(states, lengths)):
            expected = nemo_row(tiny_nemo, states[row], lengths[row])
            assert placed(emissions) == nemo_models.emissions(expected), (seed, row)
            assert [said.logprob for said in emissions] == pytest.approx(
                logprobs(tiny_nemo, expected), abs=2e-5
            )
            here = Counter(said.frame for said in emissions)
            rows += 1
            busy += max(here.values(), default=0) >= 3
            stuck += max(here.values(), default=0) >= MOST_SYMBOLS
    assert rows == 200
    assert busy > 60, "many rows must have several tokens on a frame"
    assert stuck > 10, "some rows must be moved on by force"


class Steps:
    """The steps of the graph search, in plain PyTorch, on padded rows."""

    def __init__(self, predictor: Predictor, joint: Joint) -> None:
        weights = (predictor.state_dict(), joint.state_dict(), joint.config.activation)
        model = SearchModel(*weights, (0, 1, 2, 3, 4), MOST_SYMBOLS)
        self._search = GraphSearch(
            model, CPU, dtype=torch.float32, limits=Limits(rows=16, tokens=1024)
        )

    def decode(self, states: Tensor, lengths: Tensor) -> list[list[Emission]]:
        valid = lengths.tolist()
        packed = torch.cat([row[:length] for row, length in zip(states, valid, strict=True)])
        return [
            [
                Emission(*each)
                for each in zip(row.tokens, row.frames, row.durations, row.logprobs, strict=True)
            ]
            for row in self._search.decode(packed, valid).rows
        ]


def native_decoder(kind: str, predictor: Predictor, joint: Joint) -> Any:
    if kind == "graph":
        return Steps(predictor, joint)
    return GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), (0, 1, 2, 3, 4), MOST_SYMBOLS)


def nemo_row(model: Any, states: Tensor, length: Tensor) -> Any:
    """One row on its own; an empty one keeps a frame, which it may not look at."""
    valid = length.view(1)
    kept = states[: max(1, int(length))]
    return nemo_models.decoded(model, kept.t().unsqueeze(0), valid)[0]


def test_tiny_random_models_hear_the_same_from_the_samples_on(
    tiny_nemo: Any, template: Checkpoint
) -> None:
    tokens = 0
    for seed in range(12):
        nemo_models.randomise(tiny_nemo, seed, stay=seed % 3 * 0.8)
        nemo_models.configure(tiny_nemo)
        engine = NativeEngine(prepack(with_weights_of(template, tiny_nemo), Precision.FP32), CPU)
        noise = np.random.default_rng(seed)
        batch = [
            (noise.standard_normal(length) * 0.1).astype(np.float32)
            for length in (48_000, 16_000, 70_001, 1_700, 800, 320, 160)
        ]
        for piece, hypothesis in zip(batch, engine.transcribe(batch), strict=True):
            expected = nemo_models.heard(tiny_nemo, piece)
            assert heard(hypothesis) == nemo_tokens(tiny_nemo, expected), (seed, len(piece))
            tokens += len(hypothesis.tokens)
    assert tokens > 500


def test_the_demo_checkpoint_hears_the_same_in_every_utterance(
    nemo_demo: Any,
    spoken: Sequence[Utterance],
    nemo_heard: Sequence[Any],
    native_heard: Sequence[Hypothesis],
) -> None:
    assert len(spoken) >= 300
    different = [
        utterance.name
        for utterance, expected, hypothesis in zip(spoken, nemo_heard, native_heard, strict=True)
        if heard(hypothesis) != nemo_tokens(nemo_demo, expected)
    ]
    assert different == []
    assert sum(len(hypothesis.tokens) for hypothesis in native_heard) > 1000


def test_the_text_is_nemos(nemo_heard: Sequence[Any], native_heard: Sequence[Hypothesis]) -> None:
    for expected, hypothesis in zip(nemo_heard, native_heard, strict=True):
        pieces = "".join(token.piece for token in hypothesis.tokens)
        assert pieces.replace("▁", " ").strip() == expected.text


def test_log_probabilities_are_nemos(
    nemo_demo: Any, nemo_heard: Sequence[Any], native_heard: Sequence[Hypothesis]
) -> None:
    ours = [token.logprob for hypothesis in native_heard for token in hypothesis.tokens]
    theirs = [logprob for expected in nemo_heard for logprob in logprobs(nemo_demo, expected)]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_demo_checkpoint_hears_the_same_alone_in_a_batch_and_in_any_order(
    native_demo: NativeEngine, spoken: Sequence[Utterance], native_heard: Sequence[Hypothesis]
) -> None:
    some = range(0, len(spoken), 8)
    shuffled = list(np.random.default_rng(0).permutation(some))
    again = native_demo.transcribe([spoken[index].samples for index in shuffled])
    for index, hypothesis in zip(shuffled, again, strict=True):
        (alone,) = native_demo.transcribe([spoken[index].samples])
        assert heard(alone) == heard(hypothesis) == heard(native_heard[index])


def heard(hypothesis: Hypothesis) -> list[tuple[str, int, int]]:
    return [(token.piece, token.frame, token.duration) for token in hypothesis.tokens]


def nemo_tokens(model: Any, hypothesis: Any) -> list[tuple[str, int, int]]:
    """As `heard`: NeMo's own pieces, the unknown one written as nothing."""
    return [
        (model.tokenizer.ids_to_tokens([token])[0].replace("<unk>", ""), frame, duration)
        for token, frame, duration in nemo_models.emissions(hypothesis)
    ]
