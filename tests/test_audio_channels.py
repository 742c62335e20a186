"""Cross-talk is left out, a quiet voice of a channel's own is not; tracks are chosen by flags."""

import numpy as np
import pytest

from parakeet_worker.audio.channels import Cleaner, CrossTalk, Mixer
from parakeet_worker.audio.tracks import AudioTrack, choose
from parakeet_worker.errors import InvalidRequest
from recordings import decode
from speech import sample


@pytest.mark.parametrize("decibels", [-30, -45, -60])
def test_what_is_another_channel_s_sound_is_left_out(decibels: float) -> None:
    voice = decode(sample("en").path)
    leak = np.roll(voice, 80) * np.float32(10 ** (decibels / 20))
    crosstalk = CrossTalk()
    result = crosstalk.removed(np.stack([voice, leak], axis=1))
    assert np.array_equal(result[:, 0], voice)
    assert np.square(result[:, 1]).sum() < 0.1 * np.square(leak).sum()
    assert crosstalk.seconds > 2


def test_a_quiet_voice_of_the_channel_s_own_stays() -> None:
    voice, other = decode(sample("en").path), decode(sample("de").path)
    size = min(len(voice), len(other))
    quiet = other[:size] * np.float32(10 ** (-30 / 20))
    result = CrossTalk().removed(np.stack([voice[:size], quiet], axis=1))
    assert np.square(result[:, 1]).sum() > 0.9 * np.square(quiet).sum()


def test_samples_that_are_fine_are_the_same_array() -> None:
    voice = decode(sample("en").path)
    assert Cleaner().clean(voice) is voice


def test_float_samples_at_the_scale_of_integers_are_valid() -> None:
    loud = decode(sample("en").path) * np.float32(32_768)
    cleaner = Cleaner()
    assert cleaner.clean(loud) is loud
    assert cleaner.notices() == []


@pytest.mark.parametrize("invalid", [np.nan, np.inf, -np.inf, 1e30, -2e5])
def test_an_invalid_sample_of_one_channel_becomes_silence(invalid: float) -> None:
    samples = np.full((1000, 2), 0.25, dtype=np.float32)
    samples[500, 1] = invalid
    cleaner = Cleaner()
    cleaned = cleaner.clean(samples)
    assert np.flatnonzero(cleaned != samples).tolist() == [1001]
    assert cleaned[500, 1] == 0
    assert [notice.start_seconds for notice in cleaner.notices()] == [500 / 16_000]


@pytest.mark.parametrize("size", [1000, 32_768, 70_000])
def test_a_mix_is_the_same_for_reads_of_any_size(size: int) -> None:
    voice, other = decode(sample("en").path)[:75_000], decode(sample("de").path)[:75_000]
    stereo = np.stack([voice, other * np.float32(0.05) - voice / 2], axis=1)
    whole, mixer = Mixer(), Mixer()
    expected = np.concatenate((whole.mix(stereo), whole.rest()))
    parts = [mixer.mix(stereo[at : at + size]) for at in range(0, len(stereo), size)]
    assert np.array_equal(np.concatenate((*parts, mixer.rest())), expected)
    assert (mixer.opposite, mixer.silent) == ({2}, set())
    assert np.allclose(expected, (stereo[:, 0] - stereo[:, 1]) / 2, atol=1e-7)


def test_a_track_is_chosen_by_request_otherwise_by_its_flags() -> None:
    comment = AudioTrack(1, 1, "aac", "eng", frozenset(("comment", "default")))
    unknown = AudioTrack(2, 2, "none")
    plain, flagged = (
        AudioTrack(3, 3, "aac", "ger"),
        AudioTrack(4, 4, "aac", "fre", frozenset(("default",))),
    )
    assert choose([comment, unknown, plain], None) is plain
    assert choose([comment, plain, flagged], None) is flagged
    assert choose([comment, plain], "de") is plain
    assert choose([comment, plain], 1) is comment
    with pytest.raises(InvalidRequest, match="no such track"):
        choose([comment], 2)
