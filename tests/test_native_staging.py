"""Staged chunks equal the batch, in one int16 buffer with its layout."""

import numpy as np
import pytest
import torch

from parakeet_worker.engine.base import Waveform
from parakeet_worker.engine.native.rows import Plan
from parakeet_worker.engine.native.staging import Shape, Staged, Staging

CPU = torch.device("cpu")


def stage(ring: Staging, batch: list[Waveform], rows: int = 4, tokens: int = 40) -> Staged:
    plan = Plan(tuple(len(chunk) for chunk in batch), 160)
    return ring.stage(batch, plan, Shape(rows, tokens, 20), 1 << 30)


@pytest.fixture
def ring() -> Staging:
    return Staging(CPU, samples=60_000, rows=4, tokens=40)


def values(staged: Staged, row: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    first, count = int(staged.rows.sample_offsets[row]), int(staged.rows.samples[row])
    samples = staged.samples[first : first + count].float() * staged.rows.scales[row]
    return samples.numpy()


def test_chunks_are_stored_end_to_end_with_their_scales(ring: Staging) -> None:
    """int16 exactly; float32 with 15 bits below its own peak, at any level."""
    generator = np.random.default_rng(0)
    exact = generator.integers(-32768, 32767, 5_000).astype(np.int16)
    batch: list[Waveform] = [exact]
    batch += [generator.normal(0, level, 3_000).astype(np.float32) for level in (1e-6, 0.1, 40.0)]
    staged = stage(ring, batch)
    assert np.array_equal(values(staged, 0), exact / np.float32(32768))
    for row, chunk in enumerate(batch[1:], start=1):
        error = np.abs(values(staged, row) - chunk).max()
        assert error <= np.abs(chunk).max() / 32768 * 1.01
    assert not staged.non_finite


@pytest.mark.parametrize("limits", [(-32768, 32767), (-32768, 9), (-9, 32767), (-120, 97)])
def test_float32_samples_decoded_from_int16_are_exact(
    ring: Staging, limits: tuple[int, int]
) -> None:
    """A decoder outputs float32: no bit of 16-bit audio is lost, at any level."""
    chunk = np.random.default_rng(0).integers(*limits, 4_000, endpoint=True)
    chunk[:2] = limits
    floats = chunk.astype(np.float32) / 32768
    assert np.array_equal(values(stage(ring, [floats]), 0), floats)


def test_silence_stays_silence(ring: Staging) -> None:
    """Zeros, an empty chunk, and samples below the smallest scale."""
    quiet = np.full(400, 1e-40, np.float32)
    staged = stage(ring, [np.zeros(300, np.float32), np.zeros(0, np.float32), quiet])
    assert not values(staged, 0).any()
    assert np.abs(values(staged, 2)).max() < 1e-15
    assert not staged.non_finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_chunk_is_reported_and_replaced_by_silence(
    ring: Staging, value: float
) -> None:
    """The other chunks are unchanged."""
    good = np.linspace(-1, 1, 500, dtype=np.float32)
    bad = good.copy()
    bad[77] = value
    staged = stage(ring, [good, bad, good])
    assert staged.non_finite == {1}
    assert not values(staged, 1).any()
    assert np.allclose(values(staged, 2), good, atol=4e-5)


def test_the_ring_has_two_slots(ring: Staging) -> None:
    """A staged batch is unchanged by the next one and overwritten by the one after."""
    batches = [stage(ring, [np.full(100, value, np.int16)]) for value in (1, 2, 3)]
    assert [int(staged.samples[0]) for staged in batches] == [3, 2, 3]
