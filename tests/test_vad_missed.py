"""Speech in noise and above hum is detected by a second inference; other sound is not."""

import numpy as np
import pytest
import torch

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad import silero
from parakeet_worker.vad.backends import PerThreadVad, SileroDetector, VadBackend
from parakeet_worker.vad.base import BLOCK_SAMPLES, FRAME_SAMPLES, SPEECH_BEGINS, Probabilities
from parakeet_worker.vad.level import Mask, measured
from parakeet_worker.vad.missed import candidate, sounds_like_speech
from parakeet_worker.vad.silero import CONTEXT_SAMPLES, State
from recordings import decode
from speech import named
from test_vad_level import levels, noise

WORDS = 20
WORD_SECONDS = 0.4
SPEECH_RMS = 0.1


@pytest.fixture(scope="module")
def network() -> VadBackend:
    return PerThreadVad(silero.load())


@pytest.fixture(scope="module")
def talk() -> Samples:
    return decode(named("minute").path)


@pytest.fixture(scope="module")
def words(network: VadBackend, talk: Samples) -> list[Samples]:
    """Parts of speech of 0.4 s, without pauses and at one level."""
    detected = speaks(network, talk)
    frames = round(WORD_SECONDS * SAMPLE_RATE) // FRAME_SAMPLES
    pieces, place = list[Samples](), 0
    while len(pieces) < WORDS and place + frames < len(detected):
        if detected[place : place + frames].all():
            piece = talk[place * FRAME_SAMPLES : (place + frames) * FRAME_SAMPLES]
            pieces.append(piece * np.float32(SPEECH_RMS / np.sqrt(np.mean(piece**2))))
            place += frames
        place += 1
    return pieces


def speaks(network: VadBackend, samples: Samples) -> Mask:
    detector = SileroDetector(network)
    return np.concatenate((detector.feed(samples), detector.finish())) >= SPEECH_BEGINS


def pink(count: int, seed: int = 1) -> Samples:
    """Noise with a power of 1 and equal power in each octave."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    shaped = np.fft.irfft(spectrum, count)
    return (shaped / np.sqrt(np.mean(shaped**2))).astype(np.float32)


def apart(words: list[Samples]) -> tuple[Samples, list[slice]]:
    """Each word after 5 to 10 s of silence, and the frames of each."""
    chance, parts, places, at = np.random.default_rng(2), list[Samples](), list[slice](), 0
    for word in words:
        pause = int(chance.integers(5 * SAMPLE_RATE, 10 * SAMPLE_RATE))
        parts += [np.zeros(pause, dtype=np.float32), word]
        begin = at + pause
        at = begin + len(word)
        places.append(slice(begin // FRAME_SAMPLES, at // FRAME_SAMPLES + 1))
    return np.concatenate((*parts, np.zeros(SAMPLE_RATE, dtype=np.float32))), places


def detected_words(network: VadBackend, samples: Samples, places: list[slice]) -> int:
    """How many of the words are detected; asserts that almost nothing else is."""
    detected = speaks(network, samples)
    other = detected.copy()
    for place in places:
        other[max(0, place.start - 8) : place.stop + 8] = False
    assert other.sum() < 10
    return sum(bool(detected[place].any()) for place in places)


@pytest.mark.parametrize("ratio_decibels", [10, 15])
@pytest.mark.parametrize("level_decibels", [0, -20, -30, -40])
def test_single_words_in_noise_are_detected_at_any_level(
    network, words, level_decibels, ratio_decibels
):
    samples, places = apart(words)
    samples = samples + pink(len(samples)) * SPEECH_RMS * 10 ** (-ratio_decibels / 20)
    samples = (samples * 10 ** (level_decibels / 20)).astype(np.float32)
    assert detected_words(network, samples, places) >= 0.9 * WORDS


@pytest.mark.parametrize("hertz", [0, 17, 50])
def test_single_words_are_detected_above_hum_of_ten_times_their_power(network, words, hertz):
    samples, places = apart(words)
    at = np.arange(len(samples)) / SAMPLE_RATE
    hum = np.cos(2 * np.pi * hertz * at) * (np.sqrt(2) if hertz else 1) * np.sqrt(10) * SPEECH_RMS
    quiet = (samples + hum + pink(len(samples)) * SPEECH_RMS * 0.03) * 0.1
    assert detected_words(network, quiet.astype(np.float32), places) >= 0.9 * WORDS


def test_frames_of_speech_may_be_15_decibels_below_its_loudest(talk):
    known = levels(talk[: 5 * BLOCK_SAMPLES])
    loudest = np.sort(known)[-3]
    for level in (-85, -44, -10):
        sounding = sounds_like_speech(known - loudest + level)
        assert np.array_equal(sounding, known >= loudest - 15)
    assert not sounds_like_speech(known - loudest - 87).any()
    assert not sounds_like_speech(np.array([-20.0, -40.0])).any()


def test_a_single_word_in_a_block_of_noise_sounds_like_speech_and_the_noise_alone_does_not(words):
    block = pink(BLOCK_SAMPLES) * np.float32(0.03)
    assert not sounds_like_speech(measured(block).decibels).any()
    block[20_000 : 20_000 + len(words[0])] += words[0]
    sounding = sounds_like_speech(measured(block).decibels)
    assert sounding[39:52].sum() >= 8
    assert not sounds_like_speech(levels(noise(9, -30))).any()
    assert not sounds_like_speech(levels(np.zeros(5000, dtype=np.float32))).any()


def test_a_candidate_is_the_whole_block_at_one_gain(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES] * np.float32(0.02)
    decibels = measured(block[CONTEXT_SAMPLES:]).decibels
    result = candidate(block, CONTEXT_SAMPLES, decibels, np.ones(128, dtype=bool))
    assert result is not None
    factor = np.abs(result.block).max() / np.abs(block).max()
    assert result.block == pytest.approx(block * factor, rel=1e-5)
    loudest = np.sort(measured(result.block[CONTEXT_SAMPLES:]).decibels)[-3]
    assert loudest == pytest.approx(-26, abs=0.1)
    assert np.abs(result.block).max() < 0.9


def test_loud_blocks_keep_their_level_and_peaks_do_not_clip(talk):
    loud = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES] / np.abs(talk).max()
    decibels = measured(loud[CONTEXT_SAMPLES:]).decibels
    every = np.ones(128, dtype=bool)
    kept = candidate(loud, CONTEXT_SAMPLES, decibels, every)
    assert kept is not None
    assert np.array_equal(kept.block, loud)
    clicked = loud * np.float32(0.01)
    clicked[CONTEXT_SAMPLES + 100] = 0.5
    decibels = measured(clicked[CONTEXT_SAMPLES:]).decibels
    limited = candidate(clicked, CONTEXT_SAMPLES, decibels, every)
    assert limited is not None
    assert np.abs(limited.block).max() == pytest.approx(0.9, abs=1e-3)


def test_frames_with_detected_speech_are_no_candidates(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES]
    decibels = measured(block[CONTEXT_SAMPLES:]).decibels
    silent = np.zeros(128, dtype=bool)
    silent[np.argsort(decibels)[-4:]] = True
    assert candidate(block, CONTEXT_SAMPLES, decibels, silent) is None
    silent[np.argsort(decibels)[-5]] = True
    result = candidate(block, CONTEXT_SAMPLES, decibels, silent)
    assert result is not None
    assert np.array_equal(result.frames, silent)


class Twice:
    """Has one answer for the first inference, and another for the second."""

    def __init__(self, first: Probabilities, second: Probabilities) -> None:
        self._answers = [first, second]

    def probabilities(self, block: Samples, state: State | None) -> tuple[Probabilities, State]:
        assert len(block) == CONTEXT_SAMPLES + BLOCK_SAMPLES
        assert state is None
        return self._answers.pop(0).copy(), (torch.zeros(1), torch.zeros(1))


def test_the_second_inference_adds_speech_where_none_was_detected_and_removes_none(talk):
    block = talk[:BLOCK_SAMPLES]
    loud = np.argsort(measured(block).decibels)[-20:]
    first, second = np.zeros((2, 128), dtype=np.float32)
    first[loud[:10]] = 0.9
    second[loud[10:]] = 0.8
    result = SileroDetector(Twice(first, second)).feed(block)
    assert np.array_equal(result, np.maximum(first, second))
    second[loud[14:]] = 0.0
    second[loud[:10]] = 1.0
    result = SileroDetector(Twice(first, second)).feed(block)
    assert np.array_equal(result, first), "four frames of missed speech are too few"


def test_voices_keep_their_frequencies_when_hum_is_removed(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES]
    hum = np.sin(2 * np.pi * 50 * np.arange(len(block)) / SAMPLE_RATE).astype(np.float32)
    humming = block + hum * np.float32(0.3)
    every = np.ones(128, dtype=bool)
    decibels = measured(humming[CONTEXT_SAMPLES:]).decibels
    result = candidate(humming, CONTEXT_SAMPLES, decibels, every)
    assert result is not None
    spectra = [np.abs(np.fft.rfft(each)) for each in (result.block, block)]
    hertz = np.fft.rfftfreq(len(block), 1 / SAMPLE_RATE)
    voices = hertz > 95
    factor = np.sum(spectra[0][voices]) / np.sum(spectra[1][voices])
    assert spectra[0][voices] == pytest.approx(spectra[1][voices] * factor, rel=0.05, abs=0.5)
    assert spectra[0][np.abs(hertz - 50) < 2].max() < 1e-3 * np.abs(np.fft.rfft(hum)).max()
