"""Embeddings: alike for one voice, at any length; parity with their origin is in tests/oracle."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from parakeet_worker.speakers import embedding, weights
from parakeet_worker.speakers.embedding import Embedding, Filterbank
from parakeet_worker.speakers.windows import EMBEDDING_SIZE
from recordings import decode
from speech import named


@pytest.fixture(scope="module")
def network():
    return embedding.load()


def features(samples):
    return Filterbank()(torch.from_numpy(samples)[None])


def test_a_second_of_audio_has_98_frames_of_features():
    assert features(decode(named("minute").path)[:16_000]).shape == (1, 98, 80)


@pytest.mark.parametrize("frames", [3, 40, 199, 201])
def test_any_number_of_frames_has_one_embedding(network, frames):
    result = network(features(decode(named("minute").path)[:64_000])[:, :frames])
    assert result.shape == (1, EMBEDDING_SIZE)
    assert result.isfinite().all()


def test_the_level_of_a_recording_does_not_change_its_embedding(network):
    loud = decode(named("minute").path)[:64_000]
    result = network(torch.cat((features(loud), features(loud / 8))))
    assert cosine_similarity(result[0], result[1], dim=0) > 0.97


def test_folded_norms_compute_what_separate_norms_do(network):
    separate = Embedding().eval()
    separate.load_state_dict(weights.load(weights.EMBEDDING))
    spectra = features(decode(named("minute").path)[:48_000])
    with torch.inference_mode():
        assert network(spectra)[0] == pytest.approx(separate(spectra)[0], abs=1e-4)


def test_two_spans_of_one_reader_are_closer_than_two_readers(network):
    several = decode(named("minute").path)
    parts = [several[begin : begin + 48_000] for begin in (0, 48_000, 288_000)]
    same, again, other = network(torch.cat([features(each) for each in parts]))
    assert cosine_similarity(same, again, dim=0) > 0.6
    assert cosine_similarity(same, other, dim=0) < 0.5
