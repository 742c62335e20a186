"""Chunks arrive on the device as they were, in one int16 buffer with their layout."""

import numpy as np
import pytest
import torch

from parakeet_worker.engine.base import Waveform
from parakeet_worker.engine.native.rows import Plan
from parakeet_worker.engine.native.staging import Shape, Staged, Staging

CPU = torch.device("cpu")


def staged(ring: Staging, batch: list[Waveform], rows: int = 4, tokens: int = 40) -> Staged:
    plan = Plan(tuple(len(chunk) for chunk in batch), 160)
    return ring.stage(batch, plan, Shape(rows, tokens, 20), 1 << 30)


@pytest.fixture
def ring() -> Staging:
    return Staging(CPU, samples=60_000, rows=4, tokens=40)


def values(batch: Staged, row: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    first, count = int(batch.rows.sample_offsets[row]), int(batch.rows.samples[row])
    samples = batch.samples[first : first + count].float() * batch.rows.scales[row]
    return samples.numpy()


def test_chunks_lie_end_to_end_with_their_scales(ring: Staging) -> None:
    """int16 exactly, float32 with 15 bits below its own peak, however quiet or loud it is."""
    chance = np.random.default_rng(0)
    exact = chance.integers(-32768, 32767, 5_000).astype(np.int16)
    batch: list[Waveform] = [exact]
    batch += [(chance.normal(0, level, 3_000)).astype(np.float32) for level in (1e-6, 0.1, 40.0)]
    result = staged(ring, batch)
    assert np.array_equal(values(result, 0), exact / np.float32(32768))
    for row, chunk in enumerate(batch[1:], start=1):
        error = np.abs(values(result, row) - chunk).max()
        assert error <= np.abs(chunk).max() / 32768 * 1.01
    assert not result.broken


@pytest.mark.parametrize("limits", [(-32768, 32767), (-32768, 9), (-9, 32767), (-120, 97)])
def test_what_was_int16_before_is_as_it_was(ring: Staging, limits: tuple[int, int]) -> None:
    """A decoder gives float32: no bit of 16-bit audio is lost on the way, at any level."""
    chunk = np.random.default_rng(0).integers(*limits, 4_000, endpoint=True)
    chunk[:2] = limits
    floats = chunk.astype(np.float32) / 32768
    assert np.array_equal(values(staged(ring, [floats]), 0), floats)


def test_silence_stays_silence(ring: Staging) -> None:
    """Zeros, an empty chunk, and what is too quiet to be scaled."""
    quiet = np.full(400, 1e-40, np.float32)
    result = staged(ring, [np.zeros(300, np.float32), np.zeros(0, np.float32), quiet])
    assert not values(result, 0).any()
    assert np.abs(values(result, 2)).max() < 1e-15
    assert not result.broken


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_chunk_that_is_not_finite_is_named_and_replaced_by_silence(
    ring: Staging, value: float
) -> None:
    """The others are not touched."""
    good = np.linspace(-1, 1, 500, dtype=np.float32)
    bad = good.copy()
    bad[77] = value
    result = staged(ring, [good, bad, good])
    assert result.broken == {1}
    assert not values(result, 1).any()
    assert np.allclose(values(result, 2), good, atol=4e-5)


def test_buffers_are_used_in_turn(ring: Staging) -> None:
    """A batch stays as it is while the next one is staged, and is overwritten by the one after."""
    batches = [staged(ring, [np.full(100, value, np.int16)]) for value in (1, 2, 3)]
    assert [int(batch.samples[0]) for batch in batches] == [3, 2, 3]
