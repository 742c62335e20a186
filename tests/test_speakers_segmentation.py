"""Segmentation: the network's frames and classes; parity with its origin is in tests/oracle."""

import pytest
import torch

from parakeet_worker.speakers import segmentation
from parakeet_worker.speakers.windows import (
    CLASSES,
    FIRST_FRAME_SAMPLES,
    FRAME_SAMPLES,
    LOCAL_SPEAKERS,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
)
from recordings import decode, silence
from speech import named


@pytest.fixture(scope="module")
def network():
    return segmentation.load()


def test_each_class_is_a_set_of_at_most_two_of_the_local_speakers():
    assert len(set(CLASSES)) == len(CLASSES)
    assert all(len(active) == LOCAL_SPEAKERS and sum(active) <= 2 for active in CLASSES)


def test_a_window_has_the_stated_number_of_frames(network):
    whole = network(torch.zeros(1, WINDOW_SAMPLES))
    assert whole.shape == (1, WINDOW_FRAMES, len(CLASSES))
    three = FIRST_FRAME_SAMPLES + 2 * FRAME_SAMPLES
    assert network(torch.zeros(1, three)).shape[1] == 3
    assert network(torch.zeros(1, three - 1)).shape[1] == 2


def test_speech_has_active_speakers_and_silence_has_none(network):
    speech = torch.from_numpy(decode(named("minute").path)[:WINDOW_SAMPLES])
    classes = network(speech[None]).argmax(dim=-1)[0]
    assert 0.5 < classes.bool().float().mean() < 0.95
    assert not network(torch.from_numpy(silence(10))[None]).argmax(dim=-1).any()


def test_windows_in_a_batch_are_segmented_as_alone(network):
    samples = torch.from_numpy(decode(named("minute").path))
    windows = samples[: 3 * WINDOW_SAMPLES].view(3, -1)
    together = network(windows).exp()
    for row, window in enumerate(windows):
        assert network(window[None]).exp()[0] == pytest.approx(together[row], abs=1e-4)
