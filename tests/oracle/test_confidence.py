"""What confidence means here and in NeMo, value by value.

NeMo's confidence of a token by the method `max_prob` with `alpha` 1 is the probability p of the
token among all n tokens and the blank, stretched so that a blind guess is 0:
(p n - 1) / (n - 1). Ours is p itself: the two tell the same, and one is computed from the other.
NeMo's confidence of a word is the mean, the least, the greatest or the product of its tokens'
stretched ones. Ours is the geometric mean of the probabilities, which NeMo does not offer: it
does not fall with the number of pieces, as a product does, and one doubtful piece lowers it
further than a mean.
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


def stretched(probabilities: Floats, outcomes: int) -> Floats:
    return (probabilities * outcomes - 1) / (outcomes - 1)


def probabilities(word: transcript.Word) -> Floats:
    return np.exp([token.logprob for token in word.tokens])


def words(utterance: Utterance, hypothesis: Hypothesis) -> tuple[transcript.Word, ...]:
    return transcript.stitch(Chunk(0.0, utterance.samples), hypothesis).words


def test_nemos_confidence_of_a_token_is_its_probability_stretched(
    nemo_demo: Any, nemo_heard: Sequence[Any], native_heard: Sequence[Hypothesis]
) -> None:
    outcomes = nemo_demo.decoding.blank_id + 1
    compared = 0
    for expected, hypothesis in zip(nemo_heard, native_heard, strict=True):
        ours = np.exp([token.logprob for token in hypothesis.tokens])
        assert stretched(ours, outcomes) == pytest.approx(expected.token_confidence, abs=1e-4)
        compared += len(ours)
    assert compared > 1000


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
def test_nemos_confidence_of_a_word_follows_from_our_tokens(
    nemo_demo: Any,
    spoken: Sequence[Utterance],
    native_heard: Sequence[Hypothesis],
    aggregation: str,
) -> None:
    nemo_models.configure(nemo_demo, aggregation)
    outcomes = nemo_demo.decoding.blank_id + 1
    compared = 0
    for utterance, hypothesis in list(zip(spoken, native_heard, strict=True))[::10]:
        expected = nemo_models.heard(nemo_demo, utterance.samples).word_confidence
        ours = [
            AGGREGATIONS[aggregation](stretched(probabilities(word), outcomes))
            for word in words(utterance, hypothesis)
        ]
        assert ours == pytest.approx(expected, abs=1e-4)
        compared += len(ours)
    assert compared > 100


def test_our_confidence_of_a_word_is_the_geometric_mean_of_nemos_probabilities(
    nemo_demo: Any,
    spoken: Sequence[Utterance],
    nemo_heard: Sequence[Any],
    native_heard: Sequence[Hypothesis],
) -> None:
    outcomes = nemo_demo.decoding.blank_id + 1
    several = 0
    for utterance, expected, hypothesis in zip(spoken, nemo_heard, native_heard, strict=True):
        given = (np.array(expected.token_confidence) * (outcomes - 1) + 1) / outcomes
        theirs = iter(given.tolist())
        for word in words(utterance, hypothesis):
            parts = [next(theirs) for _ in word.tokens]
            assert word.confidence == pytest.approx(math.prod(parts) ** (1 / len(parts)), abs=1e-4)
            assert min(parts) - 1e-4 <= word.confidence <= np.mean(parts) + 1e-4
            several += len(parts) > 1
        assert not list(theirs)
    assert several > 300
