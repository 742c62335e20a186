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
MAX_SYMBOLS = 10


@pytest.fixture(scope="module")
def template(tiny_nemo: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny model's `.nemo` file, read by the native engine."""
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
    return [(one.token, one.frame, one.duration) for one in emissions]


def logprobs(model: Any, hypothesis: Any) -> list[float]:
    """Probabilities from NeMo's rescaled confidence; see `test_confidence`."""
    classes = model.decoding.blank_id + 1
    rescaled = np.array(hypothesis.token_confidence, dtype=np.float64)
    return list(np.log((rescaled * (classes - 1) + 1) / classes))


@pytest.mark.parametrize("kind", ["plain", "graph"])
def test_a_padded_batch_of_random_states_equals_nemo_row_by_row(
    tiny_nemo: Any, template: Checkpoint, kind: str
) -> None:
    lengths = torch.tensor([60, 1, 50, 40, 0])
    rows = busy = stuck = 0
    for seed in range(12):
        nemo_models.randomise(tiny_nemo, seed, stay=seed % 4 * 0.8)
        nemo_models.configure(tiny_nemo)
        decoder = native_decoder(kind, *networks(template, tiny_nemo))
        states = torch.randn(5, 60, 32, generator=torch.Generator().manual_seed(seed)) * 2
        for row, emissions in enumerate(decoder.decode(states, lengths)):
            expected = nemo_row(tiny_nemo, states[row], lengths[row])
            assert placed(emissions) == nemo_models.emissions(expected), (seed, row)
            assert [one.logprob for one in emissions] == pytest.approx(
                logprobs(tiny_nemo, expected), abs=2e-5
            )
            here = Counter(one.frame for one in emissions)
            rows += 1
            busy += max(here.values(), default=0) >= 3
            stuck += max(here.values(), default=0) >= MAX_SYMBOLS
    assert rows == 60
    assert busy > 15, "many rows must have several tokens on a frame"
    assert stuck > 2, "max_symbols must apply to some rows"


class Steps:
    """The steps of the graph search, in plain PyTorch, on padded rows."""

    def __init__(self, predictor: Predictor, joint: Joint) -> None:
        weights = (predictor.state_dict(), joint.state_dict(), joint.config.activation)
        model = SearchModel(*weights, (0, 1, 2, 3, 4), MAX_SYMBOLS)
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
    return GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), (0, 1, 2, 3, 4), MAX_SYMBOLS)


def nemo_row(model: Any, states: Tensor, length: Tensor) -> Any:
    """One row alone; an empty one keeps a frame beyond its length."""
    valid = length.view(1)
    kept = states[: max(1, int(length))]
    return nemo_models.decoded(model, kept.t().unsqueeze(0), valid)[0]


def test_tiny_random_models_have_equal_hypotheses(tiny_nemo: Any, template: Checkpoint) -> None:
    tokens = 0
    for seed in range(6):
        nemo_models.randomise(tiny_nemo, seed, stay=seed % 3 * 0.8)
        nemo_models.configure(tiny_nemo)
        engine = NativeEngine(prepack(with_weights_of(template, tiny_nemo), Precision.FP32), CPU)
        noise = np.random.default_rng(seed)
        batch = [
            (noise.standard_normal(length) * 0.1).astype(np.float32)
            for length in (48_000, 16_000, 70_001, 1_700, 800, 320, 160)
        ]
        for piece, hypothesis in zip(batch, engine.transcribe(batch), strict=True):
            expected = nemo_models.transcribed(tiny_nemo, piece)
            assert emissions_of(hypothesis) == nemo_tokens(tiny_nemo, expected), (seed, len(piece))
            tokens += len(hypothesis.tokens)
    assert tokens > 250


def test_the_demo_checkpoint_has_equal_hypotheses(
    nemo_demo: Any,
    spoken: Sequence[Utterance],
    nemo_hypotheses: Sequence[Any],
    native_hypotheses: Sequence[Hypothesis],
) -> None:
    assert len(spoken) >= 300
    different = [
        utterance.name
        for utterance, expected, hypothesis in zip(
            spoken, nemo_hypotheses, native_hypotheses, strict=True
        )
        if emissions_of(hypothesis) != nemo_tokens(nemo_demo, expected)
    ]
    assert different == []
    assert sum(len(hypothesis.tokens) for hypothesis in native_hypotheses) > 1000


def test_the_text_equals_nemos(
    nemo_hypotheses: Sequence[Any], native_hypotheses: Sequence[Hypothesis]
) -> None:
    for expected, hypothesis in zip(nemo_hypotheses, native_hypotheses, strict=True):
        pieces = "".join(token.piece for token in hypothesis.tokens)
        assert pieces.replace("▁", " ").strip() == expected.text


def test_log_probabilities_equal_nemos(
    nemo_demo: Any, nemo_hypotheses: Sequence[Any], native_hypotheses: Sequence[Hypothesis]
) -> None:
    native = [token.logprob for hypothesis in native_hypotheses for token in hypothesis.tokens]
    reference = [
        logprob for expected in nemo_hypotheses for logprob in logprobs(nemo_demo, expected)
    ]
    assert native == pytest.approx(reference, abs=1e-4)


def test_results_of_the_demo_checkpoint_do_not_depend_on_the_batch_or_its_order(
    native_demo: NativeEngine, spoken: Sequence[Utterance], native_hypotheses: Sequence[Hypothesis]
) -> None:
    some = range(0, len(spoken), 8)
    shuffled = list(np.random.default_rng(0).permutation(some))
    again = native_demo.transcribe([spoken[index].samples for index in shuffled])
    for index, hypothesis in zip(shuffled, again, strict=True):
        (alone,) = native_demo.transcribe([spoken[index].samples])
        assert (
            emissions_of(alone)
            == emissions_of(hypothesis)
            == emissions_of(native_hypotheses[index])
        )


def emissions_of(hypothesis: Hypothesis) -> list[tuple[str, int, int]]:
    return [(token.piece, token.frame, token.duration) for token in hypothesis.tokens]


def nemo_tokens(model: Any, hypothesis: Any) -> list[tuple[str, int, int]]:
    """As `emissions_of`, with NeMo's pieces; the unknown piece is empty."""
    return [
        (model.tokenizer.ids_to_tokens([token])[0].replace("<unk>", ""), frame, duration)
        for token, frame, duration in nemo_models.emissions(hypothesis)
    ]
