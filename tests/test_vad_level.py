"""Levels of frames, sustained levels, and what varies as speech does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES
from parakeet_worker.vad.level import (
    DETECTED_DECIBELS,
    Decibels,
    measured,
    quantiles,
    quiet_frames,
    sustained,
    sustained_at,
)


def noise(seconds: float, decibels: float, seed: int = 0) -> Samples:
    """Whole frames of it."""
    count = round(seconds * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES
    made = np.random.default_rng(seed).standard_normal(count) * 10 ** (decibels / 20)
    return made.astype(np.float32)


def levels(samples: Samples) -> Decibels:
    return measured(samples).decibels


def test_direct_current_is_no_level():
    samples = noise(1, -60)
    assert levels(samples + np.float32(0.1)) == pytest.approx(levels(samples), abs=0.5)


def test_a_click_or_a_dip_changes_no_level_that_holds():
    decibels_of_frames = np.full(100, -60.0)
    expected = sustained(decibels_of_frames, 16)
    decibels_of_frames[[40, 41]] = -10.0
    decibels_of_frames[70:75] = -90.0
    assert np.array_equal(sustained(decibels_of_frames, 16), expected)


def test_on_both_sides_of_a_change_the_level_is_that_of_one_side():
    decibels_of_frames = np.concatenate((np.full(50, -20.0), np.full(50, -50.0)))
    held = sustained(decibels_of_frames, 16)
    assert np.all(held[:45] == -20.0)
    assert np.all(held[50:] == -50.0)


@pytest.mark.parametrize("count", [1, 2, 5, 15])
def test_a_recording_that_is_shorter_than_the_window_has_its_own_level(count):
    assert np.array_equal(sustained(np.full(count, -30.0), 16), np.full(count, -30.0))


# Hypothesis draws short lists of few different numbers, in which windows rarely differ.
ANY_LEVELS = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 80)).map(
    lambda drawn: np.random.default_rng(drawn[0]).choice((-60.0, -50.0, -40.0, -20.0), drawn[1])
)
FRAMES = st.integers(min_value=3, max_value=31)


@given(ANY_LEVELS, st.integers(min_value=3, max_value=8), st.integers(0, 79))
def test_quiet_frames_are_those_below_the_limit_themselves_and_for_a_while(known, frames, first):
    first = min(first, len(known) - 1)
    held = np.maximum(sustained(known, frames), known)
    expected = [place for place in range(first, len(known)) if held[place] < DETECTED_DECIBELS]
    rows, columns = quiet_frames(np.stack((known, np.zeros_like(known), known)), frames, first)
    assert rows.tolist() == [0] * len(expected) + [2] * len(expected)
    assert columns.tolist() == 2 * expected


@given(st.integers(min_value=1, max_value=80), FRAMES)
def test_sustained_levels_of_some_frames_of_blocks_are_those_of_all_of_each(count, frames):
    blocks = np.random.default_rng(count).uniform(-60, 0, (3, count))
    places = np.nonzero(blocks < -20)
    expected = np.stack([sustained(block, frames) for block in blocks])
    assert np.array_equal(sustained_at(blocks, frames, places), expected[places])


@given(ANY_LEVELS, FRAMES)
def test_the_sustained_level_is_the_third_highest_of_the_quieter_or_only_complete_side(
    known, frames
):
    for place, held in enumerate(sustained(known, frames)):
        before = known[max(0, place + 1 - frames) : place + 1]
        after = known[place : place + frames]
        sides = [side for side in (before, after) if len(side) == max(len(before), len(after))]
        complete = len(sides[0]) >= 3
        assert held == (min(np.sort(side)[-3] for side in sides) if complete else known[place])


@given(
    st.lists(st.floats(min_value=-100, max_value=0), min_size=1, max_size=50),
    st.floats(min_value=0, max_value=1),
)
def test_quantiles_are_those_of_numpy(values, share):
    expected = np.quantile(np.array(values), share)
    assert quantiles(np.array(values), share) == [pytest.approx(expected, abs=1e-9)]
