"""Speech detection by Silero's network, wherever that is computed."""

import numpy as np

from parakeet_worker import threads
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import (
    BLOCK_SAMPLES,
    CONTEXT_SAMPLES,
    FRAME_SAMPLES,
    SPEECH_BEGINS,
    SPEECH_ENDS,
    Detector,
    Inference,
    NetworkState,
    Probabilities,
    VadBackend,
)
from parakeet_worker.vad.gain import QuietSpeechGain
from parakeet_worker.vad.level import Decibels, measured
from parakeet_worker.vad.missed import MISSED_FRAMES, renditions, without_detected
from parakeet_worker.vad.periodicity import is_one_voice

MAX_BLOCKS = 8
"""Blocks of one recording per inference: 33 s."""

_BLOCK_FRAMES = BLOCK_SAMPLES // FRAME_SAMPLES


class SileroDetector(Detector):
    """Detects speech in one recording, with gain applied to very quiet speech.

    Blocks with sound that may be missed speech are evaluated again (`missed`).
    """

    trusts_silence = True
    max_blocks = MAX_BLOCKS

    def __init__(self, backend: VadBackend) -> None:
        super().__init__(CONTEXT_SAMPLES)
        self._backend = backend
        self._state: NetworkState | None = None
        self._gain = QuietSpeechGain(CONTEXT_SAMPLES, BLOCK_SAMPLES)

    def _detect(self, blocks: Samples) -> Probabilities:
        levels = measured(blocks[CONTEXT_SAMPLES:])
        raised = self._gain.apply(blocks, levels)
        result, self._state = self._inferred(raised, self._state)
        for begin in range(0, len(result), _BLOCK_FRAMES):
            part = slice(begin, begin + _BLOCK_FRAMES)
            block = _block(blocks, begin)
            result[part] = self._with_missed(block, result[part], levels.decibels[part])
        return result

    def _with_missed(
        self, block: Samples, detected: Probabilities, decibels: Decibels
    ) -> Probabilities:
        """The highest probabilities of all inferences, of those that detect missed speech."""
        silent = detected < SPEECH_ENDS
        for rendition in renditions(block, CONTEXT_SAMPLES, decibels, silent):
            again, _ = self._inferred(rendition, None)
            if (silent & (again >= SPEECH_BEGINS)).sum() >= MISSED_FRAMES:
                detected = np.maximum(detected, again)
        return self._with_quieter_voices(block, detected, decibels)

    def _with_quieter_voices(
        self, block: Samples, detected: Probabilities, decibels: Decibels
    ) -> Probabilities:
        rest = without_detected(block, CONTEXT_SAMPLES, decibels, detected >= SPEECH_ENDS)
        if rest is None:
            return detected
        samples, left = rest
        again, _ = self._inferred(samples, None)
        quieter = left & (again >= SPEECH_BEGINS)
        if quieter.sum() < MISSED_FRAMES or not is_one_voice(block[CONTEXT_SAMPLES:], quieter):
            return detected
        return np.where(left, np.maximum(detected, again), detected)

    def _inferred(self, block: Samples, state: NetworkState | None) -> Inference:
        with threads.COMPUTING.released():
            return self._backend.probabilities(block, state)


def _block(blocks: Samples, first_frame: int) -> Samples:
    """The one from this frame on, with its context."""
    begin = first_frame * FRAME_SAMPLES
    return blocks[begin : begin + CONTEXT_SAMPLES + BLOCK_SAMPLES]
