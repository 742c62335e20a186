"""The network against Silero's own, which is called frame by frame as its authors do."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import WeightsCorrupt, WeightsMissing
from parakeet_worker.vad import silero
from parakeet_worker.vad.backends import PerThreadVad
from parakeet_worker.vad.base import (
    CONTEXT_SAMPLES,
    FRAME_SAMPLES,
    SPEECH_BEGINS,
    Probabilities,
    speech_spans,
)
from parakeet_worker.vad.level import Decibels
from parakeet_worker.vad.silero import Silero
from parakeet_worker.vad.silero_detector import SileroDetector
from recordings import decode, noise, silence, tone
from speech import SAMPLES, all_samples, named
from test_vad_gain import Unamplified

RATE = 16_000

MADE = {
    "nothing": silence(3),
    "quiet noise": noise(5, 0.01),
    "noise": noise(5, 0.3),
    "far beyond full scale": noise(3, 5.0),
    "a tone": tone(440, 3),
}


@pytest.fixture(scope="module")
def network() -> Silero:
    return silero.load()


@pytest.fixture(scope="module")
def package() -> Any:
    threads = torch.get_num_threads()
    import silero_vad

    torch.set_num_threads(threads)  # the import has set it
    return silero_vad.load_silero_vad()


@cache
def recording(name: str) -> Samples:
    return decode(SAMPLES / name)[: 6 * RATE]


class Once(Unamplified):
    """With one inference, as the package."""

    def _with_missed(
        self, block: Samples, detected: Probabilities, decibels: Decibels
    ) -> Probabilities:
        del block, decibels
        return detected


def probabilities_of(
    network: Silero, samples: Samples, kind: type[SileroDetector] = Once
) -> Probabilities:
    detector = kind(PerThreadVad(network))
    return np.concatenate((detector.feed(samples), detector.finish()))


def reference(package: Any, samples: Samples) -> Probabilities:
    package.reset_states()
    frames = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES)).reshape(-1, 1, FRAME_SAMPLES)
    with torch.no_grad():
        return np.array([package(torch.from_numpy(frame), RATE).item() for frame in frames])


@pytest.mark.parametrize("name", [each.file for each in all_samples()])
def test_probabilities_are_those_of_the_package(network, package, name):
    assert probabilities_of(network, recording(name)) == pytest.approx(
        reference(package, recording(name)), abs=1e-4
    )


@pytest.mark.parametrize("name", MADE)
def test_probabilities_without_speech_are_those_of_the_package(network, package, name):
    assert probabilities_of(network, MADE[name]) == pytest.approx(
        reference(package, MADE[name]), abs=1e-4
    )


@pytest.mark.parametrize("length", [1, 63, 64, 65, 511, 512, 513, 577, 5000, 65_537])
def test_probabilities_of_any_length_are_those_of_the_package(network, package, length):
    whole = recording("pause.mp3")
    loudest = int(np.abs(whole[:RATE]).argmax())  # what is very quiet is raised, and differs
    samples = whole[loudest : loudest + length]
    assert probabilities_of(network, samples) == pytest.approx(
        reference(package, samples), abs=1e-4
    )


def test_the_numbers_compared_are_those_of_speech_and_of_pauses(network):
    result = np.concatenate(
        [probabilities_of(network, recording(each.file)) for each in all_samples()]
    )
    assert np.mean(result > 0.9) > 0.3
    assert np.mean(result < 0.1) > 0.2


def test_noise_without_words_is_no_speech(network):
    assert speech_spans(probabilities_of(network, decode(named("noise").path))) == []


@pytest.mark.parametrize("level", [0.1, 0.01, 0.001])
def test_a_quiet_recording_gets_the_spans_of_a_loud_one(network, level):
    samples = decode(named("minute").path)
    speaks = probabilities_of(network, samples) >= SPEECH_BEGINS
    quiet = probabilities_of(network, samples * np.float32(level), SileroDetector)
    assert np.mean((quiet >= SPEECH_BEGINS) == speaks) > 0.95


def test_recordings_interleaved_through_one_network_do_not_affect_each_other(network):
    recordings = [decode(named(name).path) for name in ("minute", "pause")]
    detectors = [SileroDetector(PerThreadVad(network)) for _ in recordings]
    turns = [np.array_split(samples, 40) for samples in recordings]
    result: list[list[Probabilities]] = [[], []]
    for parts_of_turn in zip(*turns, strict=True):
        for detector, part, probabilities in zip(detectors, parts_of_turn, result, strict=True):
            probabilities.append(detector.feed(part))
    for detector, samples, probabilities in zip(detectors, recordings, result, strict=True):
        together = np.concatenate([*probabilities, detector.finish()])
        assert np.array_equal(together, probabilities_of(network, samples, SileroDetector))


def test_rows_of_a_batch_have_their_own_state(network):
    length = CONTEXT_SAMPLES + 200 * FRAME_SAMPLES
    rows = torch.from_numpy(
        np.stack([decode(named("minute").path)[at : at + length] for at in (0, 90_000, 700_000)])
    )
    with torch.inference_mode():
        together, (hidden, cell) = network(rows, network.initial_state(3))
        for row, samples in enumerate(rows):
            alone, (its_hidden, its_cell) = network(samples[None], network.initial_state())
            assert together[row] == pytest.approx(alone[0], abs=1e-5)
            assert hidden[:, row] == pytest.approx(its_hidden[:, 0], abs=1e-5)
            assert cell[:, row] == pytest.approx(its_cell[:, 0], abs=1e-4)


def test_the_weights_are_named_as_missing_where_the_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(WeightsMissing, match="silero-vad"):
        silero.load()


def test_the_weights_are_named_as_missing_where_the_file_is_not(tmp_path):
    with pytest.raises(WeightsMissing, match=r"lost\.jit"):
        silero.load(path=tmp_path / "lost.jit")


def test_a_file_that_is_cut_off_is_named_as_corrupt(tmp_path):
    path = tmp_path / "cut.jit"
    path.write_bytes(silero._packaged().read_bytes()[:1_000_000])
    with pytest.raises(WeightsCorrupt, match=r"cut\.jit"):
        silero.load(path=path)


def test_another_network_is_named_as_corrupt(tmp_path):
    path: Path = tmp_path / "other.jit"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(WeightsCorrupt, match="KeyError"):
        silero.load(path=path)
