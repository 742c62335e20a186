"""Speech that one inference misses is detected by another; other sound is not."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad import silero
from parakeet_worker.vad.backends import PerThreadVad
from parakeet_worker.vad.base import (
    BLOCK_SAMPLES,
    CONTEXT_SAMPLES,
    FRAME_SAMPLES,
    SPEECH_BEGINS,
    Inference,
    NetworkState,
    Probabilities,
    VadBackend,
    speech_spans,
)
from parakeet_worker.vad.level import Decibels, Mask, measured
from parakeet_worker.vad.missed import renditions, sounds_like_speech, without_detected
from parakeet_worker.vad.periodicity import periodicity
from parakeet_worker.vad.silero_detector import SileroDetector
from recordings import decode
from speech import crowd, named
from test_vad_level import levels, noise

WORDS = 12
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


def probabilities(network: VadBackend, samples: Samples) -> Probabilities:
    detector = SileroDetector(network)
    return np.concatenate((detector.feed(samples), detector.finish()))


def speaks(network: VadBackend, samples: Samples) -> Mask:
    return probabilities(network, samples) >= SPEECH_BEGINS


def pink(count: int, seed: int = 1) -> Samples:
    """Noise with a power of 1 and equal power in each octave."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    shaped = np.fft.irfft(spectrum, count)
    return (shaped / np.sqrt(np.mean(shaped**2))).astype(np.float32)


def apart(words: list[Samples]) -> tuple[Samples, list[slice]]:
    """Each word after 4 to 7 s of silence, and the frames of each."""
    chance, parts, places, at = np.random.default_rng(2), list[Samples](), list[slice](), 0
    for word in words:
        pause = int(chance.integers(4 * SAMPLE_RATE, 7 * SAMPLE_RATE))
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


def tone(count: int, *hertz: float) -> Samples:
    """Sines of equal power, together with a power of 1."""
    at = np.arange(count) / SAMPLE_RATE
    waves = sum(np.sin(2 * np.pi * each * at + each) for each in hertz)
    return (waves * np.sqrt(2 / len(hertz))).astype(np.float32)


@pytest.mark.parametrize("level_decibels", [0, -30])
@pytest.mark.parametrize(
    ("hertz", "power"),
    [
        pytest.param([440], 1, id="440 Hz"),
        pytest.param([1000], 10, id="1000 Hz"),
        pytest.param([3000], 10, id="3000 Hz"),
        pytest.param([7500], 10, id="7500 Hz"),
        pytest.param(range(100, 3000, 100), 1, id="buzz"),
        pytest.param([350, 440], 1, id="dial tone"),
    ],
)
def test_single_words_are_detected_above_a_constant_sound(
    network, words, hertz, power, level_decibels
):
    samples, places = apart(words)
    samples = samples + tone(len(samples), *hertz) * np.float32(SPEECH_RMS * np.sqrt(power))
    samples *= np.float32(10 ** (level_decibels / 20))
    assert detected_words(network, samples, places) >= 0.9 * WORDS


def gusts(count: int) -> Samples:
    """Noise from 20 to 300 Hz whose level changes, with a power of 1."""
    spectrum, hertz = np.fft.rfft(pink(count, seed=5)), np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum[(hertz < 20) | (hertz > 300)] = 0
    noise = np.fft.irfft(spectrum, count)
    levels = np.random.default_rng(6).uniform(0, 1, count // SAMPLE_RATE * 2) ** 2
    noise *= np.interp(np.arange(count), np.linspace(0, count, len(levels)), levels)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


@pytest.mark.parametrize(("power", "level_decibels"), [(10, 0), (30, -30), (100, -20)])
def test_single_words_are_detected_below_gusts_of_wind(network, words, power, level_decibels):
    samples, places = apart(words)
    samples = samples + gusts(len(samples)) * np.float32(SPEECH_RMS * np.sqrt(power))
    detected = speaks(network, samples * np.float32(10 ** (level_decibels / 20)))
    assert sum(bool(detected[place].any()) for place in places) >= 0.9 * WORDS


@pytest.mark.parametrize("band_hertz", [(300, 3400), (500, 2000), (100, 800)])
def test_single_words_are_detected_in_a_part_of_their_frequencies(network, words, band_hertz):
    samples, places = apart(words)
    spectrum, hertz = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(hertz < band_hertz[0]) | (hertz > band_hertz[1])] = 0
    narrow = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    assert detected_words(network, narrow, places) >= 0.9 * WORDS


@pytest.mark.parametrize("gain_decibels", [20, 30])
def test_single_words_are_detected_if_they_are_clipped(network, words, gain_decibels):
    samples, places = apart(words)
    clipped = np.clip(samples * np.float32(10 ** (gain_decibels / 20)), -1, 1)
    assert detected_words(network, clipped, places) >= 0.9 * WORDS


def between(loud: list[Samples], quiet: list[Samples]) -> tuple[Samples, list[slice]]:
    """Turns of three and of one word, a fifth of a second apart; the frames of the quiet ones."""
    parts, places, at = list[Samples](), list[slice](), 0
    for number, word in enumerate(quiet):
        turn = [loud[(3 * number + each) % len(loud)] for each in range(3)]
        pause = np.zeros(SAMPLE_RATE // 8, dtype=np.float32)
        parts += [*turn, pause, word, pause]
        begin = at + sum(map(len, turn)) + len(pause)
        at = begin + len(word) + len(pause)
        places.append(slice(begin // FRAME_SAMPLES, (begin + len(word)) // FRAME_SAMPLES + 1))
    return np.concatenate(parts), places


@pytest.mark.parametrize(
    ("decibels_below", "noise_decibels"), [(15, -54), (20, -54), (26, -54), (26, -60), (30, -66)]
)
def test_a_voice_far_below_another_one_is_detected(network, words, decibels_below, noise_decibels):
    quiet = [word * np.float32(10 ** (-decibels_below / 20)) for word in words]
    samples, places = between(words, quiet)
    samples = samples + pink(len(samples)) * np.float32(10 ** (noise_decibels / 20))
    detected = speaks(network, samples)
    assert sum(bool(detected[place].any()) for place in places) >= 0.8 * WORDS


@pytest.mark.parametrize("decibels_below", [20, 25])
def test_a_crowd_far_below_a_voice_is_no_speech(network, words, decibels_below):
    """Twelve readers at a time, in pauses of another one."""
    pause = np.zeros(8 * SAMPLE_RATE // 10, dtype=np.float32)
    turns = [[*words[first : first + 3], pause] for first in range(0, WORDS, 3)] * 3
    samples = np.concatenate([part for turn in turns for part in turn])
    samples = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES]
    sounds = np.abs(samples).reshape(-1, FRAME_SAMPLES).max(axis=1) > 0
    silent = np.convolve(sounds, np.ones(7), mode="same") == 0  # 0.1 s away from words
    quiet = crowd(12, len(samples)) * np.float32(SPEECH_RMS * 10 ** (-decibels_below / 20))
    detected = speaks(network, samples + quiet)[: len(silent)]
    assert detected[silent].mean() < 0.05


def test_reverberation_is_part_of_the_word_before_it(network, words):
    samples, places = apart(words)
    at = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    room = np.random.default_rng(4).standard_normal(SAMPLE_RATE) * 10 ** (-3 * at / 0.8)
    room *= 0.5 / np.sqrt(np.sum(room**2))
    wet = samples + scipy.signal.fftconvolve(samples, room)[: len(samples)].astype(np.float32)
    assert len(speech_spans(probabilities(network, wet))) == len(places)


def bursts(*hertz: float, seconds: float, every: float) -> Samples:
    samples = tone(30 * SAMPLE_RATE, *hertz) * np.float32(0.1)
    samples[np.arange(len(samples)) / SAMPLE_RATE % every >= seconds] = 0
    return samples


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(tone(30 * SAMPLE_RATE, *range(100, 3000, 100)) * 0.1, id="buzz"),
        pytest.param(tone(30 * SAMPLE_RATE, 440) * 0.1, id="tone"),
        pytest.param(pink(30 * SAMPLE_RATE) * 0.03, id="noise"),
        pytest.param(bursts(440, 480, seconds=2, every=6), id="ringing"),
        pytest.param(bursts(480, 620, seconds=0.5, every=1), id="busy"),
        pytest.param(bursts(770, 1336, seconds=0.2, every=0.4), id="digits dialled"),
        pytest.param(bursts(1000, seconds=0.15, every=1), id="beeps"),
    ],
)
@pytest.mark.parametrize("level_decibels", [0, -25])
def test_tones_and_noise_are_no_speech(network, sound, level_decibels):
    samples = sound.astype(np.float32) * np.float32(10 ** (level_decibels / 20))
    assert not speaks(network, samples).any()


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


EVERY = np.ones(BLOCK_SAMPLES // FRAME_SAMPLES, dtype=bool)


def rendered(block: Samples, silent: Mask = EVERY) -> list[Samples]:
    return [*renditions(block, CONTEXT_SAMPLES, decibels(block), silent)]


def decibels(block: Samples) -> Decibels:
    return measured(block[CONTEXT_SAMPLES:]).decibels


def test_the_first_rendition_is_the_whole_block_at_one_gain(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES] * np.float32(0.02)
    first, second = rendered(block)
    factor = np.abs(first).max() / np.abs(block).max()
    assert first == pytest.approx(block * factor, rel=1e-5)
    for rendition in (first, second):
        assert np.sort(decibels(rendition))[-3] == pytest.approx(-26, abs=0.1)
        assert np.abs(rendition).max() < 0.9


def test_the_first_rendition_keeps_the_level_of_loud_blocks_and_the_second_lowers_it(talk):
    loud = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES] / np.abs(talk).max()
    first, second = rendered(loud)
    assert np.array_equal(first, loud)
    assert np.sort(decibels(second))[-3] == pytest.approx(-26, abs=0.1)


def test_peaks_do_not_clip(talk):
    clicked = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES] / np.abs(talk).max() * np.float32(0.01)
    clicked[CONTEXT_SAMPLES + 100] = 0.5
    for rendition in rendered(clicked):
        assert np.abs(rendition).max() == pytest.approx(0.9, abs=1e-3)


def test_speech_far_above_the_noise_of_its_pauses_is_not_rendered_if_it_is_detected(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES]
    levels = decibels(block)
    quiet = levels < np.sort(levels)[-3] - 15
    assert quiet.sum() > 20
    assert rendered(block, silent=quiet) == []
    silent = quiet.copy()
    silent[np.argsort(levels)[-2:]] = True
    assert rendered(block, silent=silent) == [], "a click spans two frames"
    silent[np.argsort(levels)[-3:]] = True
    assert len(rendered(block, silent=silent)) == 2


def test_speech_below_a_constant_sound_is_rendered_without_it(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES]
    loud = tone(len(block), 1000) * np.float32(0.5)
    (rendition,) = rendered(block + loud)
    assert share_of_tone(block + loud, 1000) > 0.9
    assert share_of_tone(rendition, 1000) < 0.2
    assert rendered(loud) == []


def test_both_renditions_of_speech_above_hum_are_without_it(talk):
    humming = (
        talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES] + tone(CONTEXT_SAMPLES + BLOCK_SAMPLES, 50) * 0.3
    )
    assert share_of_tone(humming, 50) > 0.9
    first, second = rendered(humming.astype(np.float32))
    assert share_of_tone(first, 50) < 0.01
    assert share_of_tone(second, 50) < 0.01


def share_of_tone(samples: Samples, hertz: float) -> float:
    power = np.square(np.abs(np.fft.rfft(samples)))
    near = np.abs(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) - hertz) < 10
    return float(power[near].sum() / power.sum())


class Repeated:
    """Has one answer for the first inference, and others for those that follow."""

    def __init__(self, *answers: Probabilities) -> None:
        self._answers = [*answers]

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        assert len(block) == CONTEXT_SAMPLES + BLOCK_SAMPLES
        assert state is None
        return self._answers.pop(0).copy(), (torch.zeros(1), torch.zeros(1))


def test_further_inferences_add_speech_where_none_was_detected_and_remove_none(talk):
    block = talk[:BLOCK_SAMPLES]
    known = measured(block).decibels
    loud = np.argsort(known)[-30:]
    first, second, third = np.zeros((3, 128), dtype=np.float32)
    first[loud[:10]] = 0.9
    second[loud[10:20]] = 0.8
    third[loud[20:]] = 0.7
    rest = without_detected(np.pad(block, (CONTEXT_SAMPLES, 0)), CONTEXT_SAMPLES, known, first > 0)
    assert rest is not None
    none = np.zeros(128, dtype=np.float32)
    result = SileroDetector(Repeated(first, second, third, none)).feed(block)
    assert np.array_equal(result, first + second + third)
    second[loud[13:]] = 0.0
    second[loud[:10]] = 1.0
    result = SileroDetector(Repeated(first, second, third, none)).feed(block)
    assert np.array_equal(result, first + third), "three frames of missed speech are too few"


def test_a_last_inference_adds_speech_away_from_detected_speech(talk):
    block = talk[:BLOCK_SAMPLES]
    known = measured(block).decibels
    first, none = np.zeros((2, 128), dtype=np.float32)
    first[np.argsort(known)[-10:]] = 0.9
    rest = without_detected(np.pad(block, (CONTEXT_SAMPLES, 0)), CONTEXT_SAMPLES, known, first > 0)
    assert rest is not None
    _, left = rest
    ordered = np.flatnonzero(left)[np.argsort(periodicity(block, left))]

    def added(places: npt.NDArray[np.intp]) -> bool:
        last = np.full(128, 0.1, dtype=np.float32)
        last[~left] = 1.0
        last[places] = 0.6
        result = SileroDetector(Repeated(first, none, none, last)).feed(block)
        assert np.array_equal(result, first) or np.array_equal(result, np.where(left, last, first))
        return not np.array_equal(result, first)

    assert added(ordered[-4:])
    assert not added(ordered[-3:]), "three frames of missed speech are too few"
    assert not added(ordered[:4]), "no voice is so aperiodic"


def test_the_rest_of_a_block_gets_the_level_of_speech(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES].copy()
    block[CONTEXT_SAMPLES + 64 * FRAME_SAMPLES :] *= np.float32(0.02)
    detected = np.arange(len(EVERY)) < 64
    rest = without_detected(block, CONTEXT_SAMPLES, decibels(block), detected)
    assert rest is not None
    samples, left = rest
    assert np.array_equal(left, np.arange(len(EVERY)) >= 66)
    assert np.sort(decibels(samples)[left])[-3] == pytest.approx(-26, abs=0.1)
    # its first frame fades in from the middle of the frame before it
    assert not samples[: CONTEXT_SAMPLES + 65 * FRAME_SAMPLES + FRAME_SAMPLES // 2].any()
    kept = slice(CONTEXT_SAMPLES + 67 * FRAME_SAMPLES, None)
    factor = np.abs(samples[kept]).max() / np.abs(block[kept]).max()
    assert samples[kept] == pytest.approx(block[kept] * factor, rel=1e-5)


def test_there_is_no_rest_without_detected_speech_or_without_other_sound(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES]
    known = decibels(block)
    assert without_detected(block, CONTEXT_SAMPLES, known, ~EVERY) is None
    assert without_detected(block, CONTEXT_SAMPLES, known, EVERY) is None
    some = np.arange(len(EVERY)) < 64
    silent = block.copy()
    silent[CONTEXT_SAMPLES + 66 * FRAME_SAMPLES :] = 0
    assert without_detected(silent, CONTEXT_SAMPLES, decibels(silent), some) is None
    # of a recording's last frames
    assert without_detected(block[:576], CONTEXT_SAMPLES, known[:1], EVERY[:1]) is None
    assert without_detected(block[:576], CONTEXT_SAMPLES, known[:1], ~EVERY[:1]) is None


def test_the_noise_of_pauses_is_no_rest(talk):
    block = talk[: CONTEXT_SAMPLES + BLOCK_SAMPLES].copy()
    block[CONTEXT_SAMPLES + 64 * FRAME_SAMPLES :] = 0
    block += pink(len(block)) * np.float32(0.001)
    some = np.arange(len(EVERY)) < 64
    assert without_detected(block, CONTEXT_SAMPLES, decibels(block), some) is None
