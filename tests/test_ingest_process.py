"""Errors, imports and limits of an ingest process; its recordings are in test_ingest_processes."""

import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from parakeet_worker.container import Container
from parakeet_worker.errors import AudioTooLong
from parakeet_worker.ingest.link import Link, LinkClosed
from parakeet_worker.ingest.messages import Infer, Next
from parakeet_worker.ingest.process import _portable, _Worker
from parakeet_worker.vad.base import CONTEXT_SAMPLES, FRAME_SAMPLES

PROCESSORS = Container.read().threads


class TwoFacts(Exception):
    """Unpickling calls it with its message alone."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_an_error_of_the_project_is_sent_as_it_is():
    failure = AudioTooLong(60.0)
    assert _portable(failure) is failure
    assert not hasattr(failure, "__notes__")


def of_a_bug() -> None:
    raise ZeroDivisionError("of a bug")


def as_sent(failure: Exception) -> Exception:
    sent: Exception = pickle.loads(pickle.dumps(_portable(failure)))  # noqa: S301
    return sent


def test_an_unexpected_exception_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError) as raised:
        of_a_bug()
    sent = as_sent(raised.value)
    assert isinstance(sent, ZeroDivisionError)
    assert str(sent) == "of a bug"
    (note,) = sent.__notes__
    assert "in an ingest process" in note
    assert "in of_a_bug" in note


@pytest.mark.parametrize("failure", [TwoFacts(1, 2), ValueError(threading.Lock())])
def test_an_exception_that_cannot_be_pickled_is_sent_by_name(failure: Exception) -> None:
    sent = as_sent(failure)
    assert isinstance(sent, RuntimeError)
    assert str(sent).startswith(type(failure).__name__)
    assert "in an ingest process" in sent.__notes__[0]


def test_a_request_during_an_inference_is_not_lost():
    """Without a request, waiting for one ends with the link."""
    own, others = map(Link, socket.socketpair())
    worker, block = _Worker(own), np.zeros(CONTEXT_SAMPLES + FRAME_SAMPLES, dtype=np.float32)
    expected = np.ones(1, dtype=np.float32)
    state = np.zeros((1, 1, 128), dtype=np.float32)
    others.send(Next())
    others.send((expected, (state, state)))
    probabilities, _ = worker.probabilities(block, None)
    assert np.array_equal(probabilities, expected)
    assert isinstance(others.receive(), Infer)
    others.close()
    worker.wait_for_request()
    with pytest.raises(LinkClosed):
        worker.wait_for_request()
    own.close()


def after(statements: Sequence[str]) -> object:
    """What a new Python prints, as JSON; limits are for a whole process."""
    program = "\n".join(("import json, sys", *statements))
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return json.loads(ran.stdout)


def test_it_loads_no_heavy_library():
    loaded = after(
        ["import parakeet_worker.ingest.process", "print(json.dumps(list(sys.modules)))"]
    )
    assert isinstance(loaded, list)
    assert "parakeet_worker.recognition.chunks" in loaded
    assert not {"torch", "scipy", "aiohttp", "starlette", "boto3"} & set(loaded)


def test_it_keeps_freed_memory():
    faults = after(
        [
            "import resource",
            "import numpy as np",
            "from parakeet_worker.ingest import process",
            "process._limit_resources(1)",
            "def use(): arrays = [np.ones(1 << 20) for _ in range(8)]",
            "use()",
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
            "for _ in range(10): use()",
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)",
        ]
    )
    assert isinstance(faults, int)
    assert faults < 100


@pytest.mark.parametrize(("count", "megabytes"), [(1, 512), (2, 256), (8, 192)])
def test_processes_share_the_memory_of_sections_and_the_processors(
    count: int, megabytes: int
) -> None:
    limits = after(
        [
            "from parakeet_worker import threads",
            "from parakeet_worker.audio.sections import CORES",
            "from parakeet_worker.ingest import process",
            f"process._limit_resources({count})",
            "print(json.dumps([CORES.count, CORES._left_bytes, threads.SLOTS.free]))",
        ]
    )
    cores = min(PROCESSORS, max(4, 2 * PROCESSORS // count))
    assert limits == [cores, megabytes << 20, 2]
