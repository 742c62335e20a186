"""Two readers of a sample: a conversation, and other parts of it as references of their voices."""

from functools import cache

import numpy as np

from parakeet_worker.engine.base import Samples
from recordings import RATE, decode, wav
from speech import named


@cache
def _minute() -> Samples:
    return decode(named("minute").path)


def part(start_seconds: float, end_seconds: float) -> Samples:
    """A part of the sample: one reader until 8.5 s and from 47 to 57.5 s, another from 17 to 24."""
    return _minute()[round(start_seconds * RATE) : round(end_seconds * RATE)]


def conversation() -> Samples:
    """8.6 s of Ada, then 4.1 s of Ben."""
    return np.concatenate((part(0, 8.6), part(17, 21.1)))


def ada() -> bytes:
    """10 s of Ada's voice."""
    return wav(part(47.3, 57.3))


def ben() -> bytes:
    """3.3 s of Ben's voice."""
    return wav(part(20.9, 24.2))


def carla() -> bytes:
    """6 s of a voice that is not in the conversation."""
    return wav(decode(named("en").path))
