import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.recognition.chunks import Segment
from parakeet_worker.recognition.room import AudioMemory, Room


def segment(seconds: float, bridge: Segment | None = None) -> Segment:
    return Segment(0.0, np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32), bridge=bridge)


def test_a_bridge_counts_like_the_segment_that_brings_it() -> None:
    memory = AudioMemory(10**9)
    Room(memory, samples=10**9).take(segment(1.0, bridge=segment(0.5)))
    assert memory.held_bytes == 1.5 * SAMPLE_RATE * 4


def test_a_recording_is_full_at_its_own_limit_or_where_all_together_are_at_theirs() -> None:
    memory = AudioMemory(3 * SAMPLE_RATE * 4)
    one, other = (Room(memory, samples=2 * SAMPLE_RATE) for _ in range(2))
    one.take(segment(1.9))
    assert not one.full
    one.take(segment(0.1))
    assert one.full
    assert not other.full
    other.take(segment(1.0))
    assert other.full, "all together are"
    one.give(segment(0.1))
    assert not one.full


def test_each_recording_has_one_piece_there_however_full_it_is() -> None:
    memory = AudioMemory(1)
    Room(memory, samples=10**9).take(segment(1.0))
    late = Room(memory, samples=10**9)
    assert not late.full
    late.take(segment(1.0))
    assert late.full


def test_what_is_closed_gives_everything_back() -> None:
    memory = AudioMemory(10**9)
    room = Room(memory, samples=10**9)
    room.take(segment(1.0))
    room.take(segment(2.0))
    room.close()
    assert memory.held_bytes == 0
