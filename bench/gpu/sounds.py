"""Audio without ffmpeg: half a minute of speech in six languages, cut to any length.

Three samples are WAV files; three are stored decoded in `speech.npz`, which
`python -m bench.gpu.sounds` writes with ffmpeg.
"""

import wave
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench import recording
from bench.harness import ROOT
from parakeet_worker.engine.base import SAMPLE_RATE

Pcm: TypeAlias = npt.NDArray[np.int16]

_SAMPLES = ROOT / "samples"
_WAVES = ("bg.wav", "el.wav", "sl.wav")
_DECODED = ("en.ogg", "de.ogg", "fr.m4a")
_FILE = Path(__file__).with_name("speech.npz")
_FULL_SCALE = 32767


@cache
def clips() -> tuple[Pcm, ...]:
    """The six utterances."""
    with np.load(_FILE) as decoded:
        return (*(_read(_SAMPLES / name) for name in _WAVES), *(decoded[name] for name in _DECODED))


def _read(path: Path) -> Pcm:
    with wave.open(str(path)) as opened:
        assert (opened.getframerate(), opened.getnchannels()) == (SAMPLE_RATE, 1)
        return np.frombuffer(opened.readframes(opened.getnframes()), np.int16).copy()


@cache
def speech() -> Pcm:
    """The utterances, concatenated."""
    return np.concatenate(clips())


def chunks(seconds: float, count: int) -> list[Pcm]:
    """`count` chunks of `seconds`, each from a different position of the repeated speech."""
    return recording.spans_of(speech(), seconds, count)


def mixed(count: int, shortest: float, longest: float) -> list[Pcm]:
    """Chunks of uniformly distributed lengths in seconds, in random order."""
    generator = np.random.default_rng(1)
    return [
        chunk[: round(seconds * SAMPLE_RATE)]
        for seconds, chunk in zip(
            generator.uniform(shortest, longest, count), chunks(longest, count), strict=True
        )
    ]


def utterances(count: int, seed: int = 2) -> list[Pcm]:
    """One to three clips concatenated, with random start, level and noise."""
    generator = np.random.default_rng(seed)
    utterances = []
    for _ in range(count):
        indices = generator.integers(0, len(clips()), generator.integers(1, 4))
        speech = np.concatenate([clips()[index] for index in indices]).astype(np.float32)
        clip = speech[int(generator.uniform(0, 0.3) * len(speech)) :]
        noise = generator.normal(0, np.std(clip) * 10 ** -generator.uniform(1, 2), len(clip))
        noisy = (clip + noise) * generator.uniform(0.2, 0.9)
        utterances.append(np.clip(noisy, -_FULL_SCALE, _FULL_SCALE).astype(np.int16))
    return utterances


def seconds_of(batch: Sequence[npt.NDArray[Any]]) -> float:
    """Total seconds of audio."""
    return sum(map(len, batch)) / SAMPLE_RATE


def main() -> None:
    decoded = {name: recording.decoded(_SAMPLES / name) for name in _DECODED}
    pcm: Any = {
        name: np.round(samples * _FULL_SCALE).astype(np.int16) for name, samples in decoded.items()
    }
    np.savez_compressed(_FILE, **pcm)


if __name__ == "__main__":
    main()
