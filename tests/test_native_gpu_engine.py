"""The GPU's engine, on a CPU: what it serves, what it refuses, and what it finds out about itself.

`test_engine_contract.py` holds it to what every engine promises.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_on_cpu import gpu_engine
from parakeet_worker.engine.base import Hypothesis, Waveform
from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.native.gpu_engine import GpuEngine
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import open_prepacked
from parakeet_worker.engine.native.search import SearchKernels
from parakeet_worker.errors import NotFinite, OutOfMemory
from tiny_model import config, weights, write_nemo


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_nemo(folder / "tiny.nemo", tensors=weights(config(), seed=3))


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[GpuEngine]:
    engine = gpu_engine(path)
    engine.warm_up(10.0)
    yield engine
    engine.close()


def noise(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    chance = np.random.default_rng(round(seconds * 100))
    return (chance.standard_normal(round(seconds * 16_000)) * 0.1).astype(np.float32)


def tokens(outcome: object) -> list[tuple[str, int, int]]:
    assert isinstance(outcome, Hypothesis)
    return [(token.piece, token.frame, token.duration) for token in outcome.tokens]


def test_it_answers_as_the_plain_engine_does(engine: GpuEngine, path: Path) -> None:
    """In a graph's buffers, without them, and where a chunk is too long to be packed."""
    plain = NativeEngine.open(path, "cpu", "fp32")
    for lengths in ((3.0, 0.7), (2.0,) * 17, (9.0, 8.0, 0.001), (90.0,)):
        batch: list[Waveform] = [noise(seconds) for seconds in lengths]
        found, expected = engine.transcribe(batch), plain.transcribe(batch)
        assert [tokens(one) for one in found] == [tokens(one) for one in expected]
        assert any(tokens(one) for one in found)


def test_two_batches_are_in_flight(engine: GpuEngine) -> None:
    """The second is begun before the first is collected, and neither changes the other."""
    assert engine.depth == 2
    batches: list[list[Waveform]] = [[noise(2.0)], [noise(3.0), noise(1.0)]]
    alone = [engine.transcribe(batch) for batch in batches]
    first, second = (engine.submit(batch) for batch in batches)
    assert second.result() == alone[1]
    assert first.result() == alone[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_chunk_that_is_not_finite_fails_alone(engine: GpuEngine, value: float) -> None:
    """Its neighbours have the answers that they have without it."""
    bad = noise(1.5)
    bad[1000] = value
    good: list[Waveform] = [noise(1.0), noise(2.0)]
    expected = engine.transcribe(good)
    first, failed, second = engine.transcribe([good[0], bad, good[1]])
    assert isinstance(failed, NotFinite)
    assert [tokens(first), tokens(second)] == [tokens(one) for one in expected]


def test_states_that_are_not_finite_fail_their_chunk(path: Path) -> None:
    """An overflow inside the encoder is found in the states."""
    reference = Kernels.reference()

    def overflowing(*given: Any, **named: Any) -> torch.Tensor:
        mixed = reference.depthwise(*given, **named)
        mixed[:3] = torch.inf  # the tokens of the first chunk among them
        return mixed

    broken = gpu_engine(path, kernels=replace(reference, depthwise=overflowing))
    first, second = broken.transcribe([noise(0.24), noise(1.0)])
    broken.close()
    assert isinstance(first, NotFinite)
    assert tokens(second)


def test_a_batch_beyond_its_buffers_is_out_of_memory(engine: GpuEngine) -> None:
    """The batcher halves it then."""
    with pytest.raises(OutOfMemory):
        engine.submit([noise(0.01)] * 513)
    with pytest.raises(OutOfMemory):
        engine.submit([noise(10.0)] * 130)


def test_everything_is_in_use_where_it_agrees(engine: GpuEngine) -> None:
    """The chain by itself, the chain in a graph, and the search."""
    assert [report.name for report in engine.reports] == ["chain", "chain in a graph", "search"]
    assert not any(report.replaced for report in engine.reports)
    assert max(report.error for report in engine.reports) < 1e-3


def test_a_wrong_kernel_makes_the_plain_path_serve(
    path: Path, engine: GpuEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that says by how much it was wrong, and with the right words."""
    reference = Kernels.reference()

    def wrong(*given: Any, **named: Any) -> torch.Tensor:
        return reference.depthwise(*given, **named).roll(1, dims=0)

    broken = gpu_engine(path, kernels=replace(reference, depthwise=wrong))
    batch: list[Waveform] = [noise(3.0), noise(1.0)]
    assert broken.transcribe(batch) != engine.transcribe(batch)
    broken.warm_up(10.0)
    found = broken.transcribe(batch)
    broken.close()
    assert [tokens(one) for one in found] == [tokens(one) for one in engine.transcribe(batch)]
    assert {report.name: report.replaced for report in broken.reports} == {
        "chain": True,
        "chain in a graph": True,
        "search": False,
    }
    assert "chain: replaced by plain PyTorch (relative error" in caplog.text


def test_a_wrong_search_is_replaced_by_the_plain_one(path: Path, engine: GpuEngine) -> None:
    """The packed encoder still serves."""
    references = SearchKernels.reference()

    def wrong(*given: Any, **named: Any) -> None:
        references.joint_hidden(*given, **named)
        joined = given[5]
        joined.copy_(joined.flip(1))

    broken = gpu_engine(path, search_kernels=replace(references, joint_hidden=wrong))
    batch: list[Waveform] = [noise(3.0), noise(1.0)]
    assert broken.transcribe(batch) != engine.transcribe(batch)
    broken.warm_up(10.0)
    found = broken.transcribe(batch)
    broken.close()
    assert [tokens(one) for one in found] == [tokens(one) for one in engine.transcribe(batch)]
    assert [report.name for report in broken.reports if report.replaced] == ["search"]


def test_kernels_are_checked_before_they_serve(path: Path, engine: GpuEngine) -> None:
    """A wrong one is replaced by itself: the packed chain still serves, with the right words."""
    model = open_prepacked(path, Precision.FP32, None)
    reference = Kernels.reference()

    def wrong(*given: Any, **named: Any) -> torch.Tensor:
        return reference.glu(*given, **named) * 1.1

    checked = GpuEngine.checked(
        model,
        torch.device("cpu"),
        replace(reference, glu=wrong),
        SearchKernels.reference(),
        Tiles(),
        chunk_seconds=10.0,
        bucket_tokens=(64, 192),
    )
    checked.warm_up(10.0)
    batch: list[Waveform] = [noise(3.0), noise(1.0)]
    assert checked.transcribe(batch) == engine.transcribe(batch)
    checked.close()
    assert [report.name for report in checked.reports if report.replaced] == ["glu"]
    assert [report.name for report in checked.reports][-1] == "search"


def test_graphs_that_cannot_be_captured_are_done_without(path: Path) -> None:
    """Named among the reports; batches of any size are computed one kernel after another."""
    reference = Kernels.reference()
    failing = True

    def refused(*given: Any, **named: Any) -> torch.Tensor:
        if failing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return reference.glu(*given, **named)

    broken = gpu_engine(path, kernels=replace(reference, glu=refused))
    (report,) = broken._captured()
    failing = False
    assert (report.name, report.replaced) == ("graphs", True)
    assert str(report).endswith("operation not permitted when stream is capturing)")
    assert tokens(broken.transcribe([noise(1.0)])[0])
    broken.close()
