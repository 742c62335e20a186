"""Speakers to known speakers, from vectors alone."""

import numpy as np
import pytest

from parakeet_worker.speakers.clustering import Vectors, unit
from parakeet_worker.speakers.known import SAME_PERSON_SIMILARITY, Voice, identified

ADA, BEN = np.eye(192, dtype=np.float32)[:2]


def towards(voice: Vectors, similarity: float, axis: int = 7) -> Vectors:
    """A unit vector of that cosine to `voice`."""
    other = np.eye(192, dtype=np.float32)[axis]
    return unit(similarity * voice + np.sqrt(1 - similarity**2) * other)


def names(centroids: list[Vectors], *voices: Voice) -> list[str | None]:
    return [each and each.name for each in identified(np.stack(centroids), voices)]


KNOWN = (Voice("Ada", ADA), Voice("Ben", BEN))


def test_similar_speakers_have_names_and_others_none():
    below, above = SAME_PERSON_SIMILARITY - 0.01, SAME_PERSON_SIMILARITY + 0.01
    assert names([towards(BEN, above), towards(ADA, above)], *KNOWN) == ["Ben", "Ada"]
    assert names([towards(ADA, below)], *KNOWN) == [None]


def test_each_person_is_at_most_one_speaker_and_the_most_similar_one():
    assert names([towards(ADA, 0.8), towards(ADA, 0.95, 8)], *KNOWN) == [None, "Ada"]


def test_the_assignment_is_the_best_of_all_pairs():
    # Ada is most similar to both voices; Ben's speaker resembles Ada's voice only.
    between = unit(ADA + 0.9 * BEN)
    voices = (Voice("Ada", ADA), Voice("Ben", between))
    assert names([unit(ADA + 0.5 * BEN), towards(ADA, 0.9)], *voices) == ["Ben", "Ada"]


def test_the_confidence_grows_with_the_margin_to_an_unknown_and_to_other_voices():
    def confidence(similarity: float, *voices: Voice) -> float:
        (person,) = identified(towards(ADA, similarity)[None], voices)
        assert person is not None
        return person.confidence

    alone = [confidence(similarity, KNOWN[0]) for similarity in (0.66, 0.7, 0.8, 0.95)]
    assert alone == sorted(alone)
    assert alone[0] == pytest.approx(0.55, abs=0.02)
    assert alone[-1] > 0.99
    similar = Voice("Ben", towards(ADA, 0.9, 8))
    assert confidence(0.8, KNOWN[0], similar) < alone[2]


def test_without_speakers_or_voices_there_is_no_identity():
    assert identified(np.zeros((0, 192), np.float32), KNOWN) == ()
    assert identified(np.stack([ADA]), ()) == (None,)
