"""Recordings made on the spot: pure tones, put into any container by the packaged ffmpeg."""

import io
import subprocess
import wave
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from parakeet_worker.engine.base import Samples

RATE = 16_000


def tone(hertz: float, seconds: float, rate: int = RATE, level: float = 0.3) -> Samples:
    """A pure tone, which the tones engine transcribes as its pitch."""
    clock = np.arange(round(seconds * rate), dtype=np.float64) / rate
    return (level * np.sin(2 * np.pi * hertz * clock)).astype(np.float32)


def silence(seconds: float, rate: int = RATE) -> Samples:
    """Digital silence."""
    return np.zeros(round(seconds * rate), dtype=np.float32)


def noise(seconds: float, level: float = 0.001, rate: int = RATE) -> Samples:
    """Noise of a quiet room, reproducible."""
    samples = np.random.default_rng(0).normal(scale=level, size=round(seconds * rate))
    return samples.astype(np.float32)


def wav(samples: Samples, rate: int = RATE) -> bytes:
    """A plain WAV file of 16 bit."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return content.getvalue()


def encode(
    target: Path, *options: str, samples: Samples, rate: int = RATE, channels: int = 1
) -> Path:
    """Encode interleaved `samples` to `target` by its suffix and ffmpeg's `options`."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-hide_banner", "-loglevel", "error", "-y"),
        *("-f", "f32le", "-ar", str(rate), "-ac", str(channels), "-i", "pipe:0"),
        *options,
        f"file:{target}",
    ]
    subprocess.run(command, input=samples.astype("<f4").tobytes(), check=True)
    return target


def headerless(samples: Samples) -> bytes:
    """The content of a file of 16-bit samples without a header."""
    return (np.clip(samples, -1.0, 1.0) * 32_767).astype("<i2").tobytes()


def repeat(path: Path, target: Path, times: int) -> Path:
    """Repeat the recording without encoding it again."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-hide_banner", "-loglevel", "error", "-y", "-stream_loop", str(times - 1)),
        *("-i", f"file:{path}", "-c", "copy", f"file:{target}"),
    ]
    subprocess.run(command, check=True)
    return target


def decode(path: Path, rate: int = RATE) -> Samples:
    """Decode a file to one channel at `rate` with ffmpeg."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-hide_banner", "-loglevel", "error", "-i", f"file:{path}"),
        *("-f", "f32le", "-ar", str(rate), "-ac", "1", "pipe:1"),
    ]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(content, dtype="<f4").astype(np.float32)


def pitch(samples: Samples, rate: int = RATE) -> float:
    """The strongest frequency in Hz in the middle of the recording."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return float(np.argmax(power)) * rate / len(middle)


def cut(path: Path, target: Path, share: float = 0.6) -> Path:
    """Write the first part of a file, as a broken upload does."""
    content = path.read_bytes()
    target.write_bytes(content[: round(len(content) * share)])
    return target
