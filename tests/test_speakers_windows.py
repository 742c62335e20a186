"""Spans of windows: pieces of one local speaker, and steps of all speech."""

import numpy as np
import pytest

from parakeet_worker.speakers.windows import (
    HOP_FRAMES,
    MARGIN_FRAMES,
    STEP_FRAMES,
    STEPS,
    WINDOW_FRAMES,
    slide,
    step_centre,
)


def speech(*spans):
    active = np.zeros((WINDOW_FRAMES, 3), dtype=bool)
    for number, (first, after) in enumerate(spans):
        active[first:after, number % 3] = True
    return active


def test_steps_cover_all_speech_of_all_speakers():
    steps = slide(speech((0, 400), (300, WINDOW_FRAMES)))
    assert [step.number for step in steps] == list(range(steps[0].number, 18))
    assert steps[0].first == 0
    assert steps[-1].after == WINDOW_FRAMES
    assert {round(step.seconds, 2) for step in steps} == {0.61}
    inner = [step for step in steps if step.first > 0 and step.after < WINDOW_FRAMES]
    assert all(step.centre == pytest.approx(step_centre(step.number), abs=0.51) for step in inner)


def test_steps_without_speech_are_left_out():
    assert slide(speech()) == ()
    steps = slide(speech((200, 210)))
    assert steps
    assert all(step.first < 210 and step.after > 200 for step in steps)


def test_steps_of_used_frames_continue_in_the_next_window():
    middle = (MARGIN_FRAMES, MARGIN_FRAMES + HOP_FRAMES)
    steps = slide(speech((0, WINDOW_FRAMES)), middle)
    assert [step.number for step in steps] == list(range(STEPS))
    assert step_centre(0) + HOP_FRAMES == pytest.approx(step_centre(STEPS - 1) + STEP_FRAMES)
    before = slide(speech((0, WINDOW_FRAMES)), (0, middle[1]))
    after = slide(speech((0, WINDOW_FRAMES)), (middle[0], WINDOW_FRAMES))
    assert before[-STEPS:] == steps == after[:STEPS]
