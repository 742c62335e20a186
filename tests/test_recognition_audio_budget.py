import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.recognition.audio_budget import AudioBudget, AudioShare
from parakeet_worker.recognition.chunks import Chunk


def chunk(seconds: float, overlap: Chunk | None = None) -> Chunk:
    return Chunk(0.0, np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32), overlap=overlap)


def test_an_overlap_counts_with_its_chunk() -> None:
    budget = AudioBudget(10**9)
    AudioShare(budget, samples=10**9).acquire(chunk(1.0, overlap=chunk(0.5)))
    assert budget.held_bytes == 1.5 * SAMPLE_RATE * 4


def test_a_recording_is_full_at_its_own_limit_or_at_the_common_limit() -> None:
    budget = AudioBudget(3 * SAMPLE_RATE * 4)
    one, other = (AudioShare(budget, samples=2 * SAMPLE_RATE) for _ in range(2))
    one.acquire(chunk(1.9))
    assert not one.full
    one.acquire(chunk(0.1))
    assert one.full
    assert not other.full
    other.acquire(chunk(1.0))
    assert other.full, "all together are"
    one.release(chunk(0.1))
    assert not one.full


def test_each_recording_has_one_piece_there_however_full_it_is() -> None:
    budget = AudioBudget(1)
    AudioShare(budget, samples=10**9).acquire(chunk(1.0))
    late = AudioShare(budget, samples=10**9)
    assert not late.full
    late.acquire(chunk(1.0))
    assert late.full


def test_closing_releases_everything() -> None:
    budget = AudioBudget(10**9)
    share = AudioShare(budget, samples=10**9)
    share.acquire(chunk(1.0))
    share.acquire(chunk(2.0))
    share.close()
    assert budget.held_bytes == 0
