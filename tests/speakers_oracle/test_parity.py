"""Both networks against the code that their authors publish, on the same weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.utils.powerset import Powerset
from speakerlab.models.campplus.DTDNN import CAMPPlus
from speakerlab.process.processor import FBank

from parakeet_worker.speakers import embedding, segmentation, weights
from parakeet_worker.speakers import windows as windows_module
from parakeet_worker.speakers.embedding import Filterbank
from parakeet_worker.speakers.windows import EMBEDDING_SIZE

WITHIN = 1e-4


@pytest.fixture(scope="module")
def pyannet() -> PyanNet:
    """pyannote.audio's network as the checkpoint's configuration describes it."""
    network = PyanNet(
        sincnet={"stride": 10},
        lstm={"hidden_size": 128, "num_layers": 4, "bidirectional": True, "monolithic": True},
        linear={"hidden_size": 128, "num_layers": 2},
    )
    network.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=10.0,
        classes=["first", "second", "third"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    network.build()
    network.load_state_dict(weights.load(weights.SEGMENTATION))
    return network.eval()


@pytest.fixture(scope="module")
def campplus() -> CAMPPlus:
    network = CAMPPlus(feat_dim=80, embedding_size=EMBEDDING_SIZE)
    network.load_state_dict(weights.load(weights.EMBEDDING))
    return network.eval()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).abs().max())


def test_segmentation_is_that_of_pyannote(pyannet, windows):
    result, expected = segmentation.load()(windows), pyannet(windows[:, None])
    assert difference(result, expected) <= WITHIN
    assert len(set(expected.argmax(dim=-1).flatten().tolist())) >= 3


def test_frames_lie_where_pyannote_has_them(pyannet):
    field = pyannet.receptive_field
    assert field.start == 0
    assert field.step == pytest.approx(windows_module.FRAME_SAMPLES / windows_module.SAMPLE_RATE)
    assert field.duration == pytest.approx(
        windows_module.FIRST_FRAME_SAMPLES / windows_module.SAMPLE_RATE
    )


def test_classes_are_the_sets_of_speakers_that_pyannote_means():
    assert np.array_equal(Powerset(3, 2).mapping.numpy(), windows_module.CLASSES)


@pytest.mark.parametrize("samples", [8_000, 16_000, 32_400, 64_000, 160_000])
def test_features_and_embeddings_are_those_of_3d_speaker(campplus, windows, samples):
    reference_features = FBank(80, sample_rate=16_000, mean_nor=True)
    network: Callable[[torch.Tensor], torch.Tensor] = embedding.load()
    for window in windows:
        spoken = window[-samples:]
        features, expected = Filterbank()(spoken[None]), reference_features(spoken)[None]
        assert difference(network(features), campplus(expected)) <= WITHIN
        assert difference(features - features.mean(dim=1, keepdim=True), expected) <= 1e-3
