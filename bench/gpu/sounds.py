"""Audio without ffmpeg: half a minute of speech in six languages, cut to any length.

Three samples are WAV files; three are kept decoded in `speech.npz`, written by
`python -m bench.gpu.sounds` where there is an ffmpeg.
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
_KEPT = ("en.ogg", "de.ogg", "fr.m4a")
_FILE = Path(__file__).with_name("speech.npz")
_FULL_SCALE = 32767


@cache
def clips() -> tuple[Pcm, ...]:
    """The six utterances."""
    with np.load(_FILE) as kept:
        return (*(_read(_SAMPLES / name) for name in _WAVES), *(kept[name] for name in _KEPT))


def _read(path: Path) -> Pcm:
    with wave.open(str(path)) as opened:
        assert (opened.getframerate(), opened.getnchannels()) == (SAMPLE_RATE, 1)
        return np.frombuffer(opened.readframes(opened.getnframes()), np.int16).copy()


@cache
def speech() -> Pcm:
    """All of them, one after the other."""
    return np.concatenate(clips())


def chunks(seconds: float, count: int) -> list[Pcm]:
    """`count` stretches of `seconds` of the speech, which repeats, each from another place."""
    return recording.spans_of(speech(), seconds, count)


def mixed(count: int, shortest: float, longest: float) -> list[Pcm]:
    """Chunks of lengths drawn evenly between both, in seconds, in no order."""
    chance = np.random.default_rng(1)
    return [
        chunk[: round(seconds * SAMPLE_RATE)]
        for seconds, chunk in zip(
            chance.uniform(shortest, longest, count), chunks(longest, count), strict=True
        )
    ]


def utterances(count: int, seed: int = 2) -> list[Pcm]:
    """One to three of the six in a row, cut anywhere, at many levels, in noise: no two alike."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        chosen = chance.integers(0, len(clips()), chance.integers(1, 4))
        whole = np.concatenate([clips()[one] for one in chosen]).astype(np.float32)
        kept = whole[int(chance.uniform(0, 0.3) * len(whole)) :]
        noise = chance.normal(0, np.std(kept) * 10 ** -chance.uniform(1, 2), len(kept))
        loud = (kept + noise) * chance.uniform(0.2, 0.9)
        found.append(np.clip(loud, -_FULL_SCALE, _FULL_SCALE).astype(np.int16))
    return found


def seconds_of(batch: Sequence[npt.NDArray[Any]]) -> float:
    """Of audio, in all chunks together."""
    return sum(map(len, batch)) / SAMPLE_RATE


def main() -> None:
    decoded = {name: recording.decoded(_SAMPLES / name) for name in _KEPT}
    pcm: Any = {
        name: np.round(each * _FULL_SCALE).astype(np.int16) for name, each in decoded.items()
    }
    np.savez_compressed(_FILE, **pcm)


if __name__ == "__main__":
    main()
