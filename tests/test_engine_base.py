"""What travels into an engine and out of it, whatever holds the numbers."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from parakeet_worker.engine.base import (
    Hypothesis,
    LazyTokens,
    SynchronousEngine,
    Token,
    as_float,
)
from parakeet_worker.errors import OutOfMemory

TOKENS = (Token("▁one", 0, 2, -0.1), Token("▁two", 3, 1, -0.2), Token(".", 4, 0, -0.3))


def test_int16_is_scaled_to_full_scale_one():
    samples = as_float(np.array([-32768, -1, 0, 16384, 32767], dtype=np.int16))
    assert samples.dtype == np.float32
    assert samples.tolist() == [-1.0, -1 / 32768, 0.0, 0.5, 32767 / 32768]


def test_float32_is_not_copied():
    samples = np.array([0.5, -2.0], dtype=np.float32)
    assert as_float(samples) is samples


class Arrays:
    """The token arrays of an engine, which count how often tokens are built."""

    def __init__(self) -> None:
        self.built = 0

    def tokens(self) -> tuple[Token, ...]:
        self.built += 1
        return TOKENS


def test_tokens_are_built_once_on_first_access():
    arrays = Arrays()
    lazy = LazyTokens(len(TOKENS), arrays.tokens)
    assert len(lazy) == 3
    assert bool(lazy)
    assert arrays.built == 0, "how many there are is known before"
    assert tuple(lazy) == TOKENS
    assert lazy[1] == TOKENS[1]
    assert lazy[1:] == TOKENS[1:]
    assert lazy[-1].piece == "."
    assert repr(lazy) == repr(TOKENS)
    assert arrays.built == 1


def test_built_tokens_release_the_arrays():
    arrays = Arrays()
    reference = weakref.ref(arrays)
    lazy = LazyTokens(len(TOKENS), arrays.tokens)
    assert list(lazy) == list(TOKENS)
    del arrays
    assert reference() is None


def test_racing_threads_all_read_the_tokens():
    barrier = threading.Barrier(8)

    def read(lazy: LazyTokens) -> tuple[Token, ...]:
        barrier.wait(20)
        return tuple(lazy)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            lazy = LazyTokens(len(TOKENS), Arrays().tokens)
            reads = [threads.submit(read, lazy) for _ in range(8)]
            assert [each.result(20) for each in reads] == [TOKENS] * 8


@pytest.mark.parametrize(
    "kind", [tuple, list, lambda tokens: LazyTokens(len(tokens), lambda: tokens)]
)
def test_hypotheses_with_equal_tokens_are_equal_for_any_sequence_type(kind):
    plain = Hypothesis(TOKENS, 0.08)
    other = Hypothesis(kind(TOKENS), 0.08)
    assert plain == other
    assert other == plain
    assert hash(plain) == hash(other)
    assert other != replace(plain, tokens=TOKENS[:2])
    assert other != replace(plain, frame_seconds=0.04)
    assert other != TOKENS


class Adding(SynchronousEngine):
    """Answers how many samples each chunk has, and fails where there are none."""

    def transcribe(self, batch, scripts=()):  # noqa: ARG002
        if not batch:
            raise OutOfMemory(0.0)
        return [Hypothesis((Token(str(len(chunk)), 0, 0, 0.0),), 0.08) for chunk in batch]


def test_a_synchronous_engine_computes_inside_submit():
    engine = Adding()
    assert engine.depth == 1
    chunks = [np.zeros(length, dtype=np.float32) for length in (3, 5)]
    assert engine.submit(chunks).result() == engine.transcribe(chunks)
    with pytest.raises(OutOfMemory):
        engine.submit([])
    engine.release()
