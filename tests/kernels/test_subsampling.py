"""The subsampling's kernels equal plain PyTorch, for all rows together and in groups."""

import pytest
import torch
from comparing import DTYPES, assert_close
from layouts import SAMPLES, layout

from parakeet_worker.engine.native.kernels import subsampling_first, subsampling_next
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Rows

TILE = Tile(rows=512)


def affine(channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(9, channels).to(dtype), torch.randn(channels).to(dtype)


def valid_steps(
    planes: torch.Tensor, rows: Rows, first: int, tokens: int, steps_per_token: int
) -> torch.Tensor:
    """The time steps of `planes` that belong to a row; the others are undefined."""
    parts = []
    for offset, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        steps = -(-frames * steps_per_token // 8)
        start = (offset - first) * steps_per_token
        if 0 <= start < tokens * steps_per_token:
            parts.append(planes[start : start + steps])
    return torch.cat(parts) if parts else planes[:0]


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(
    ("dtype", "bands", "channels"),
    [*((dtype, 24, 8) for dtype in DTYPES), (torch.float32, 13, 5)],
)
def test_first_convolutions_equal_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], bands: int, channels: int
) -> None:
    """Rows of every length; numbers of bands that are not divisible by four."""
    torch.manual_seed(bands)
    for group_tokens in (1 << 30, 4):
        rows = layout(samples, group_tokens)
        mels = torch.randn(rows.tokens * 8, bands).to(dtype)
        convolutions = affine(channels, dtype), affine(channels, dtype)
        for group in rows.groups:
            arguments = (mels, *convolutions, rows, group)
            actual = subsampling_first.launch(*arguments, tile=TILE)
            expected = subsampling_first.reference(*arguments)
            assert actual.shape == expected.shape
            part = (rows, group.first, group.tokens, 2)
            assert_close(valid_steps(actual, *part), valid_steps(expected, *part))


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(
    ("dtype", "bands", "channels"),
    [*((dtype, 20, 8) for dtype in DTYPES), (torch.float32, 3, 5)],
)
def test_next_convolution_equals_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], bands: int, channels: int
) -> None:
    """Undefined time steps are never read."""
    torch.manual_seed(bands)
    for group_tokens in (1 << 30, 4):
        rows = layout(samples, group_tokens)
        weight, bias = affine(channels, dtype)
        for group in rows.groups:
            planes = torch.randn(group.tokens * 2, bands, channels).to(dtype)
            arguments = (planes, weight, bias, rows, group)
            actual = subsampling_next.launch(*arguments, tile=TILE)
            assert_close(actual, subsampling_next.reference(*arguments))
