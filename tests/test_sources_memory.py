from pathlib import Path

import numpy as np
import pytest

from parakeet_worker.audio.decoding import Decoding
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.request import SamplesSource
from parakeet_worker.sources import memory
from recordings import RATE, pitch, tone


async def decoded(path: Path, ffmpeg: Path) -> Samples:
    decoding = Decoding(path, ffmpeg=ffmpeg, max_seconds=60, timeout_seconds=60)
    return np.concatenate([block async for block in decoding.samples()])


async def test_samples_at_the_rate_of_the_model_come_back_bit_for_bit(
    ffmpeg: Path, tmp_path: Path
) -> None:
    samples = np.concatenate(([0.0, 1.0, -1.0, 1.7, 1e-9], tone(440, 1)), dtype=np.float32)
    memory.write(SamplesSource(samples, RATE), tmp_path / "audio")
    np.testing.assert_array_equal(await decoded(tmp_path / "audio", ffmpeg), samples)


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000, 96_000])
async def test_another_sample_rate_is_passed_to_ffmpeg(
    rate: int, ffmpeg: Path, tmp_path: Path
) -> None:
    memory.write(SamplesSource(tone(440, 1, rate), rate), tmp_path / "audio")
    samples = await decoded(tmp_path / "audio", ffmpeg)
    assert len(samples) == pytest.approx(RATE, abs=RATE // 100)
    assert pitch(samples) == pytest.approx(440, abs=3)


@pytest.mark.parametrize(
    "samples",
    [
        tone(440, 1).astype(np.float64),
        tone(440, 1).astype(">f4"),
        np.repeat(tone(440, 1), 2)[::2],
    ],
    ids=["double", "big-endian", "strided"],
)
async def test_any_layout_of_floats_is_understood(
    samples: Samples, ffmpeg: Path, tmp_path: Path
) -> None:
    memory.write(SamplesSource(samples, RATE), tmp_path / "audio")
    np.testing.assert_array_equal(await decoded(tmp_path / "audio", ffmpeg), tone(440, 1))


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, RATE), np.float32), np.zeros(RATE, np.int16), np.float32(0)],
    ids=["stereo", "integers", "a number"],
)
def test_samples_must_be_mono_and_float(samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="mono"):
        memory.write(SamplesSource(samples, RATE), tmp_path / "audio")
    assert list(tmp_path.iterdir()) == []


def test_the_sizes_in_the_header_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "audio"
    memory.write(SamplesSource(tone(440, 1), RATE), path)
    content = path.read_bytes()
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    assert content[36:40] == b"data"
    assert int.from_bytes(content[40:44], "little") == len(content) - 44
