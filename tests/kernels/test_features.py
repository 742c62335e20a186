"""The kernels for frames, power and normalised mels equal their references."""

from dataclasses import replace

import pytest
import torch
from comparing import DTYPES, assert_close
from layouts import HOP, SAMPLES, layout

from parakeet_worker.engine.native.kernels import frames, mel_norm, power
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

TILES = replace(Tiles(), frames=Tile(rows=64))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("samples", SAMPLES)
def test_frames_equal_the_reference(dtype: torch.dtype, samples: tuple[int, ...]) -> None:
    """All frames in one call, and a part of them, of int16 and float32 samples."""
    torch.manual_seed(len(samples))
    rows = layout(samples)
    audio = (1000 * torch.randn(sum(samples))).to(dtype)
    window = torch.hann_window(512, periodic=False)
    total = rows.tokens * 8
    options = {"hop_samples": HOP, "preemphasis": 0.97}
    for first, count in ((0, total), (total // 3, total - total // 3)):
        actual = frames.launch(audio, window, rows, first, count, **options, tile=TILES.frames)
        assert_close(actual, frames.reference(audio, window, rows, first, count, **options))


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(("bins", "columns"), [(257, 264), (5, 5)])
def test_power_equals_the_reference(count: int, bins: int, columns: int) -> None:
    """Columns beyond the bins are zero."""
    spectrum = torch.randn(count, bins, 2)
    actual = power.launch(spectrum, columns, tile=TILES.power)
    assert_close(actual, power.reference(spectrum, columns))


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(
    ("dtype", "mels"), [*((dtype, 128) for dtype in DTYPES), (torch.float32, 80)]
)
def test_mels_equal_the_reference(dtype: torch.dtype, samples: tuple[int, ...], mels: int) -> None:
    """Including rows with one frame and with none."""
    torch.manual_seed(mels)
    rows = layout(samples)
    powers = torch.rand(rows.tokens * 8, mels) ** 8
    options = {"log_guard": 2**-24, "dtype": dtype}
    actual = mel_norm.launch(powers, rows, **options, tile=TILES.mel_norm)
    assert_close(actual, mel_norm.reference(powers, rows, **options))
