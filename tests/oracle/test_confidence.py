"""Confidence of the native engine and of NeMo, value by value.

NeMo's token confidence (`max_prob`, `alpha` 1) is the probability p of the token among n
classes, rescaled so that the uniform probability is 0: (p n - 1) / (n - 1). The native one is p;
each follows from the other. NeMo's word confidence is the mean, minimum, maximum or product of
its tokens' confidences. The native one is the geometric mean of the probabilities, which NeMo
does not have: it does not fall with the number of tokens, as a product does, and one doubtful
token lowers it further than a mean.
"""

import math
from collections.abc import Sequence
from typing import Any

import nemo_models
import numpy as np
import pytest
from numpy.typing import NDArray

from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.recognition import transcript
from parakeet_worker.recognition.chunks import Chunk
from utterances import Utterance

Floats = NDArray[np.float64]

AGGREGATIONS = {"mean": np.mean, "min": np.min, "max": np.max, "prod": np.prod}


def rescaled(probabilities: Floats, classes: int) -> Floats:
    return (probabilities * classes - 1) / (classes - 1)


def probabilities(word: transcript.Word) -> Floats:
    return np.exp([token.logprob for token in word.tokens])


def words(utterance: Utterance, hypothesis: Hypothesis) -> tuple[transcript.Word, ...]:
    return transcript.stitch(Chunk(0.0, utterance.samples), hypothesis).words


def test_nemos_token_confidence_is_the_rescaled_probability(
    nemo_demo: Any, nemo_hypotheses: Sequence[Any], native_hypotheses: Sequence[Hypothesis]
) -> None:
    classes = nemo_demo.decoding.blank_id + 1
    compared = 0
    for expected, hypothesis in zip(nemo_hypotheses, native_hypotheses, strict=True):
        native = np.exp([token.logprob for token in hypothesis.tokens])
        assert rescaled(native, classes) == pytest.approx(expected.token_confidence, abs=1e-4)
        compared += len(native)
    assert compared > 1000


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
def test_nemos_word_confidence_follows_from_native_tokens(
    nemo_demo: Any,
    spoken: Sequence[Utterance],
    native_hypotheses: Sequence[Hypothesis],
    aggregation: str,
) -> None:
    nemo_models.configure(nemo_demo, aggregation)
    classes = nemo_demo.decoding.blank_id + 1
    compared = 0
    for utterance, hypothesis in list(zip(spoken, native_hypotheses, strict=True))[::10]:
        expected = nemo_models.transcribed(nemo_demo, utterance.samples).word_confidence
        native = [
            AGGREGATIONS[aggregation](rescaled(probabilities(word), classes))
            for word in words(utterance, hypothesis)
        ]
        assert native == pytest.approx(expected, abs=1e-4)
        compared += len(native)
    assert compared > 100


def test_native_word_confidence_is_the_geometric_mean_of_nemos_probabilities(
    nemo_demo: Any,
    spoken: Sequence[Utterance],
    nemo_hypotheses: Sequence[Any],
    native_hypotheses: Sequence[Hypothesis],
) -> None:
    classes = nemo_demo.decoding.blank_id + 1
    several = 0
    for utterance, expected, hypothesis in zip(
        spoken, nemo_hypotheses, native_hypotheses, strict=True
    ):
        probabilities_ = (np.array(expected.token_confidence) * (classes - 1) + 1) / classes
        reference = iter(probabilities_.tolist())
        for word in words(utterance, hypothesis):
            parts = [next(reference) for _ in word.tokens]
            assert word.confidence == pytest.approx(math.prod(parts) ** (1 / len(parts)), abs=1e-4)
            assert min(parts) - 1e-4 <= word.confidence <= np.mean(parts) + 1e-4
            several += len(parts) > 1
        assert not list(reference)
    assert several > 300
