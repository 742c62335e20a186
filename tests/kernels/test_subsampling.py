"""The subsampling's kernels equal plain PyTorch, for all rows at once and in groups."""

import pytest
import torch
from comparing import DTYPES, assert_close
from layouts import SAMPLES, layout

from parakeet_worker.engine.native.kernels import subsampling_first, subsampling_next
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Rows

TILE = Tile(rows=128)


def affine(channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(9, channels).to(dtype), torch.randn(channels).to(dtype)


def of_rows(
    planes: torch.Tensor, rows: Rows, first: int, tokens: int, per_token: int
) -> torch.Tensor:
    """Those places of `planes` that a row has: the others mean nothing."""
    kept = []
    for offset, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        places = -(-frames * per_token // 8)
        at = (offset - first) * per_token
        if 0 <= at < tokens * per_token:
            kept.append(planes[at : at + places])
    return torch.cat(kept) if kept else planes[:0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(("bands", "channels"), [(24, 8), (13, 5)])
def test_first_convolutions_equal_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], bands: int, channels: int
) -> None:
    """Rows of every length; bands that do not halve evenly."""
    torch.manual_seed(bands)
    for group_tokens in (1 << 30, 4):
        rows = layout(samples, group_tokens)
        mels = torch.randn(rows.tokens * 8, bands).to(dtype)
        convolutions = affine(channels, dtype), affine(channels, dtype)
        for group in rows.groups:
            given = (mels, *convolutions, rows, group)
            result = subsampling_first.launch(*given, tile=TILE)
            expected = subsampling_first.reference(*given)
            assert result.shape == expected.shape
            part = (rows, group.first, group.tokens, 2)
            assert_close(of_rows(result, *part), of_rows(expected, *part))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(("bands", "channels"), [(20, 8), (3, 5)])
def test_next_convolution_equals_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], bands: int, channels: int
) -> None:
    """What lies in places that no row has is never read."""
    torch.manual_seed(bands)
    for group_tokens in (1 << 30, 4):
        rows = layout(samples, group_tokens)
        weight, bias = affine(channels, dtype)
        for group in rows.groups:
            planes = torch.randn(group.tokens * 2, bands, channels).to(dtype)
            given = (planes, weight, bias, rows, group)
            result = subsampling_next.launch(*given, tile=TILE)
            assert_close(result, subsampling_next.reference(*given))
