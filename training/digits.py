"""Recorded English digits: the Free Spoken Digit Dataset as sessions, one per speaker."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from training.clips import SAMPLE_RATE, Clip, Session, trimmed
from training.words import lexicons

LEFT_OUT_SPEAKER = "jackson"
"""Used for evaluation only."""
DEFAULT_FOLDER = Path("../shared/data/human-digits")


def read_clip(path: Path, word: str) -> Clip | None:
    """One recording `{digit}_{speaker}_{take}.wav`, upsampled to 16 kHz and trimmed."""
    wave, rate = soundfile.read(path, dtype="float32")
    shared = int(np.gcd(SAMPLE_RATE, rate))
    wave = resample_poly(wave, SAMPLE_RATE // shared, rate // shared)
    loudest = float(np.abs(wave).max(initial=1e-4))
    samples = np.round(wave * (20_000 / loudest)).astype(np.int16)
    return trimmed(samples, (word,), (0.0,))


def read_speakers(folder: Path) -> dict[str, Session]:
    """Load every speaker's session, by name."""
    digits = lexicons()["en"].words[:10]
    clips: dict[str, list[Clip]] = defaultdict(list)
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, _ = path.stem.split("_")
        clip = read_clip(path, digits[int(digit)])
        if clip:
            clips[speaker].append(clip)
    return {speaker: Session("en", tuple(own), ()) for speaker, own in clips.items()}
