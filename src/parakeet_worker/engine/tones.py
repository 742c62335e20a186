"""An engine without a model: transcribes pure tones to their frequency in Hz.

For tests, demonstrations and load tests. The output depends only on the audio, so that mixed-up
results of concurrent requests are detected.
"""

import math
from collections.abc import Sequence

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import (
    Capacity,
    Hypothesis,
    Outcome,
    Samples,
    SynchronousEngine,
    Token,
    Waveform,
    as_float,
)
from parakeet_worker.language import Script

_FRAME_SAMPLES = 1280
_SILENCE_RMS = 0.003
_PITCH_STEP_HZ = 10
_FULL_CHUNKS_PER_BATCH = 8
_MAX_CHUNKS = 512


class ToneEngine(SynchronousEngine):
    """Emits `▁440.` for every uninterrupted 440 Hz tone, in steps of 10 Hz."""

    frame_seconds = _FRAME_SAMPLES / SAMPLE_RATE

    def __str__(self) -> str:
        """Summary for logs."""
        return "tones engine: transcribes pure tones"

    def transcribe(
        self,
        batch: Sequence[Waveform],
        scripts: Sequence[Script | None] = (),  # noqa: ARG002  # digits belong to every script
    ) -> list[Outcome]:
        return [Hypothesis(_tokens(as_float(samples)), self.frame_seconds) for samples in batch]

    def warm_up(self, chunk_seconds: float) -> None:
        """No-op."""

    def capacity(self, chunk_seconds: float) -> Capacity:
        return Capacity(_FULL_CHUNKS_PER_BATCH * chunk_seconds, _MAX_CHUNKS, packed=False)

    def close(self) -> None:
        """No-op."""


def _tokens(samples: Samples) -> tuple[Token, ...]:
    tokens: list[Token] = []
    for first, end in _audible_spans(samples):
        span = samples[first * _FRAME_SAMPLES : end * _FRAME_SAMPLES]
        hertz, purity = _pitch(span)
        logprob = math.log(max(purity, 1e-6))
        tokens.append(Token(f"▁{hertz}", first, end - first, logprob))
        tokens.append(Token(".", end, 0, logprob))
    return tuple(tokens)


def _audible_spans(samples: Samples) -> list[tuple[int, int]]:
    """Spans of frames above the silence threshold, as (first, end)."""
    frames = len(samples) // _FRAME_SAMPLES
    levels = samples[: frames * _FRAME_SAMPLES].reshape(frames, _FRAME_SAMPLES)
    loud = np.sqrt(np.mean(np.square(levels, dtype=np.float64), axis=1)) > _SILENCE_RMS
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(np.int8), [0]))))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _pitch(samples: Samples) -> tuple[int, float]:
    """The peak frequency in Hz, and the share of the power around the peak."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    peak = int(np.argmax(power))
    hertz = peak * SAMPLE_RATE / len(samples)
    around = power[max(0, peak - 3) : peak + 4].sum() / max(power.sum(), 1e-12)
    return round(hertz / _PITCH_STEP_HZ) * _PITCH_STEP_HZ, float(around)
