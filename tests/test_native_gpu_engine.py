"""The GPU engine on a CPU: results, limits, and fallbacks after failed comparisons.

`test_engine_contract.py` tests it against the contract of all engines.
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
    generator = np.random.default_rng(round(seconds * 100))
    return (generator.standard_normal(round(seconds * 16_000)) * 0.1).astype(np.float32)


def tokens(outcome: object) -> list[tuple[str, int, int]]:
    assert isinstance(outcome, Hypothesis)
    return [(token.piece, token.frame, token.duration) for token in outcome.tokens]


def test_tokens_equal_those_of_the_plain_engine(engine: GpuEngine, path: Path) -> None:
    """With a graph's buffers, without them, and with a chunk that is too long to be packed."""
    plain = NativeEngine.open(path, "cpu", "fp32")
    for lengths in ((3.0, 0.7), (2.0,) * 17, (9.0, 8.0, 0.001), (90.0,)):
        batch: list[Waveform] = [noise(seconds) for seconds in lengths]
        actual = [tokens(outcome) for outcome in engine.transcribe(batch)]
        assert actual == [tokens(outcome) for outcome in plain.transcribe(batch)]
        assert any(actual)


def test_two_batches_are_in_flight(engine: GpuEngine) -> None:
    """The second is submitted before the first is collected; neither changes the other."""
    assert engine.depth == 2
    batches: list[list[Waveform]] = [[noise(2.0)], [noise(3.0), noise(1.0)]]
    alone = [engine.transcribe(batch) for batch in batches]
    first, second = (engine.submit(batch) for batch in batches)
    assert second.result() == alone[1]
    assert first.result() == alone[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_chunk_fails_alone(engine: GpuEngine, value: float) -> None:
    """The other chunks have the same results as without it."""
    bad = noise(1.5)
    bad[1000] = value
    good: list[Waveform] = [noise(1.0), noise(2.0)]
    expected = engine.transcribe(good)
    first, failed, second = engine.transcribe([good[0], bad, good[1]])
    assert isinstance(failed, NotFinite)
    assert [tokens(first), tokens(second)] == [tokens(outcome) for outcome in expected]


def test_non_finite_states_fail_their_chunk(path: Path) -> None:
    """An overflow inside the encoder is detected in the states."""
    reference = Kernels.reference()

    def overflowing(*arguments: Any, **options: Any) -> torch.Tensor:
        states = reference.depthwise(*arguments, **options)
        states[:3] = torch.inf  # includes the tokens of the first chunk
        return states

    broken = gpu_engine(path, kernels=replace(reference, depthwise=overflowing))
    first, second = broken.transcribe([noise(0.24), noise(1.0)])
    broken.close()
    assert isinstance(first, NotFinite)
    assert tokens(second)


def test_a_batch_beyond_the_buffers_is_out_of_memory(engine: GpuEngine) -> None:
    """The batcher then halves it."""
    with pytest.raises(OutOfMemory):
        engine.submit([noise(0.01)] * 513)
    with pytest.raises(OutOfMemory):
        engine.submit([noise(10.0)] * 130)


def test_nothing_is_replaced_if_all_comparisons_agree(engine: GpuEngine) -> None:
    """The chain without and with a graph, and the search."""
    assert [report.name for report in engine.reports] == ["chain", "chain in a graph", "search"]
    assert not any(report.replaced for report in engine.reports)
    assert max(report.error for report in engine.reports) < 1e-3


def test_an_incorrect_kernel_makes_the_plain_encoder_serve(
    path: Path, engine: GpuEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that contains the error, and with the correct tokens."""
    reference = Kernels.reference()

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        return reference.depthwise(*arguments, **options).roll(1, dims=0)

    broken = gpu_engine(path, kernels=replace(reference, depthwise=wrong))
    batch: list[Waveform] = [noise(3.0), noise(1.0)]
    assert broken.transcribe(batch) != engine.transcribe(batch)
    broken.warm_up(10.0)
    actual = [tokens(outcome) for outcome in broken.transcribe(batch)]
    broken.close()
    assert actual == [tokens(outcome) for outcome in engine.transcribe(batch)]
    assert {report.name: report.replaced for report in broken.reports} == {
        "chain": True,
        "chain in a graph": True,
        "search": False,
    }
    assert "chain: replaced by plain PyTorch (relative error" in caplog.text


def test_an_incorrect_search_is_replaced_by_the_reference(path: Path, engine: GpuEngine) -> None:
    """The packed encoder still serves."""
    references = SearchKernels.reference()

    def wrong(*arguments: Any, **options: Any) -> None:
        references.joint_hidden(*arguments, **options)
        output = arguments[5]
        output.copy_(output.flip(1))

    broken = gpu_engine(path, search_kernels=replace(references, joint_hidden=wrong))
    batch: list[Waveform] = [noise(3.0), noise(1.0)]
    assert broken.transcribe(batch) != engine.transcribe(batch)
    broken.warm_up(10.0)
    actual = [tokens(outcome) for outcome in broken.transcribe(batch)]
    broken.close()
    assert actual == [tokens(outcome) for outcome in engine.transcribe(batch)]
    assert [report.name for report in broken.reports if report.replaced] == ["search"]


def test_single_kernels_are_compared_before_serving(path: Path, engine: GpuEngine) -> None:
    """Only the incorrect kernel is replaced: the packed chain serves the correct tokens."""
    model = open_prepacked(path, Precision.FP32, None)
    reference = Kernels.reference()

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        return reference.glu(*arguments, **options) * 1.1

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


def test_a_failed_capture_is_reported_and_batches_run_without_graphs(path: Path) -> None:
    """For batches of any size."""
    reference = Kernels.reference()
    failing = True

    def refused(*arguments: Any, **options: Any) -> torch.Tensor:
        if failing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return reference.glu(*arguments, **options)

    broken = gpu_engine(path, kernels=replace(reference, glu=refused))
    (report,) = broken._capture_graphs()
    failing = False
    assert (report.name, report.replaced) == ("graphs", True)
    assert str(report).endswith("operation not permitted when stream is capturing)")
    assert tokens(broken.transcribe([noise(1.0)])[0])
    broken.close()
