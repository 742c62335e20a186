"""Links between threads of one process: both ends are real sockets."""

import pickle
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from parakeet_worker.ingest.link import Link, LinkClosed
from parakeet_worker.recognition.chunks import Chunk, Span


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    first, second = map(Link, socket.socketpair())
    yield first, second
    first.close()
    second.close()


def passed(ends: tuple[Link, Link], value: object) -> object:
    """Sent in another thread, since large values exceed the socket's buffer."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(ends[0].send, value)
        received = ends[1].receive()
        sending.result()
    return received


@pytest.mark.parametrize("count", [0, 1, 10_000, 3_000_000])
def test_arrays_of_any_size_arrive_and_can_be_written(ends: tuple[Link, Link], count: int) -> None:
    samples = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    empty = np.zeros(0, dtype=np.float32)
    chunk = Chunk(1.5, samples, (Span(2.0, 3.0),), overlap=Chunk(0.5, empty))
    result = passed(ends, chunk)
    assert isinstance(result, Chunk)
    assert np.array_equal(result.samples, samples)
    assert (result.start_seconds, result.speech) == (1.5, (Span(2.0, 3.0),))
    assert result.overlap is not None
    assert len(result.overlap.samples) == 0
    result.samples[:] = 7.0


def test_columns_of_an_array_arrive_as_a_copy(ends: tuple[Link, Link]) -> None:
    columns = np.arange(12.0).reshape(6, 2)
    assert np.array_equal(passed(ends, columns[:, 1]), columns[:, 1])  # type: ignore[arg-type]


def test_messages_arrive_in_order_in_both_directions(ends: tuple[Link, Link]) -> None:
    first, second = ends
    for number in range(3):
        first.send(number)
    second.send("answer")
    assert [second.receive() for _ in range(3)] == [0, 1, 2]
    assert first.receive() == "answer"


def test_what_cannot_be_pickled_leaves_the_link_usable(ends: tuple[Link, Link]) -> None:
    with pytest.raises(TypeError, match="pickle"):
        ends[0].send(threading.Lock())
    assert passed(ends, "next") == "next"


def test_a_closed_peer_ends_both_directions(ends: tuple[Link, Link]) -> None:
    first, second = ends
    second.close()
    with pytest.raises(LinkClosed):
        first.receive()
    with pytest.raises(LinkClosed):
        first.send(np.zeros(1_000_000))


def test_closing_ends_the_link_although_a_fork_has_the_same_socket() -> None:
    first, second = socket.socketpair()
    inherited = first.dup()
    Link(first).close()
    readable, _, _ = select.select([second], [], [], 10.0)
    assert readable, "the peer still waits"
    with pytest.raises(LinkClosed):
        Link(second).receive()
    inherited.close()
    second.close()


def test_messages_before_the_end_still_arrive(ends: tuple[Link, Link]) -> None:
    first, second = ends
    first.send("last")
    first.close()
    assert second.receive() == "last"
    with pytest.raises(LinkClosed):
        second.receive()


def test_a_message_that_ends_early_is_no_message() -> None:
    first, second = socket.socketpair()
    pickled = pickle.dumps("cut off")
    header = (1).to_bytes(8, "little") + len(pickled).to_bytes(8, "little")
    first.sendall(header + pickled[:-1])
    first.close()
    link = Link(second)
    with pytest.raises(LinkClosed):
        link.receive()
    link.close()


def test_shutting_down_ends_a_pending_receive(ends: tuple[Link, Link]) -> None:
    threading.Timer(0.1, ends[0].shut_down).start()
    with pytest.raises(LinkClosed):
        ends[0].receive()
    ends[0].close()
    ends[0].shut_down()  # of a closed one: no error
