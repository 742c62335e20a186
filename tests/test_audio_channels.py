"""Cross-talk is left out, a quiet voice of a channel's own is not; tracks are chosen by flags."""

import numpy as np
import pytest

from parakeet_worker.audio.channels import Cleaner, CrossTalk
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
