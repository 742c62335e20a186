"""A kernel that is incorrect or does not run is replaced by plain PyTorch and reported."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from math import inf, isinf
from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs

from compiled_kernels import HOPPER, compiled_folder
from packed import tiny_modules
from parakeet_worker.engine.kernel_report import NoKernels
from parakeet_worker.engine.native.compilation import Target, missing
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.gpu_engine import GpuEngine
from parakeet_worker.engine.native.kernel_choice import (
    EncoderParts,
    check_encoder,
    check_search,
    compile_missing,
)
from parakeet_worker.engine.native.kernels.kernel_set import OPERATIONS, Kernels
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tiles, tiles_for
from parakeet_worker.engine.native.launches import ModelShape
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import Prepacked, open_prepacked
from parakeet_worker.engine.native.search import SearchKernels
from searching import random_model
from test_native_compilation import needs_compiler
from tiny_model import write_nemo

REFERENCES = replace(Kernels.reference(), reproducible=True)
SEARCH = SearchKernels.reference()
SEARCHED = ("lstm", "joint_hidden", "joint_scores", "search_step")

Change = Callable[[Any, tuple[Any, ...]], Any]
"""Maps a result and the arguments to the result of an incorrect kernel."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore Triton's own cache."""
    yield
    knobs.cache.manager_class = None
    knobs.compilation.store_binary_only = False


def encoder_parts(precision: Precision = Precision.BF16) -> EncoderParts:
    features, encoder = tiny_modules()
    return EncoderParts(features, encoder.config, fold(encoder, precision), precision)


def incorrect(operation: Callable[..., Any], change: Change) -> Callable[..., Any]:
    """`operation` with its result changed."""

    def call(*arguments: Any, **options: Any) -> Any:
        result = operation(*arguments, **options)
        changed = change(result, arguments)
        return result if changed is None else changed

    return call


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.FP32])
def test_references_have_no_error(precision: Precision) -> None:
    """Every operation of the encoder is called, and none is replaced."""
    kernels, reports = check_encoder(encoder_parts(precision), REFERENCES)
    assert kernels == REFERENCES
    assert {report.name for report in reports} == set(OPERATIONS)
    assert [report.error for report in reports] == [0.0] * len(reports)


def test_a_product_of_the_library_is_not_compared() -> None:
    _, reports = check_encoder(encoder_parts(), Kernels.reference())
    assert {report.name for report in reports} == set(OPERATIONS) - {"product"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_incorrect_kernel_of_the_encoder_is_replaced_and_no_other(name: str) -> None:
    """Its result is 5 % too large, as with an incorrect scale."""
    wrong = incorrect(getattr(REFERENCES, name), lambda result, _: result * 1.05)
    kernels, reports = check_encoder(encoder_parts(), replace(REFERENCES, **{name: wrong}))
    assert kernels == REFERENCES
    (report,) = [report for report in reports if report.replaced]
    assert report.name == name
    assert 0.04 < report.error < 0.06
    assert report.tolerance < 0.03


def test_an_error_in_one_of_many_tokens_is_found() -> None:
    def clear_last(result: torch.Tensor, _: tuple[Any, ...]) -> torch.Tensor:
        result[-1] = 0
        return result

    wrong = incorrect(REFERENCES.attention, clear_last)
    _, reports = check_encoder(encoder_parts(), replace(REFERENCES, attention=wrong))
    (report,) = [report for report in reports if report.replaced]
    assert report.name == "attention"


def test_an_error_in_an_argument_updated_in_place_is_found() -> None:
    def clear_row(_: torch.Tensor, arguments: tuple[Any, ...]) -> None:
        arguments[0][3] = 0

    wrong = incorrect(REFERENCES.residual_norm, clear_row)
    _, reports = check_encoder(encoder_parts(), replace(REFERENCES, residual_norm=wrong))
    assert [report.name for report in reports if report.replaced] == ["residual_norm"]


@pytest.mark.parametrize("value", [float("nan"), inf])
def test_a_non_finite_result_is_found(value: float) -> None:
    row = torch.tensor([0])
    wrong = incorrect(REFERENCES.glu, lambda result, _: result.index_fill(0, row, value))
    _, reports = check_encoder(encoder_parts(), replace(REFERENCES, glu=wrong))
    (report,) = [report for report in reports if report.replaced]
    assert report.name == "glu"


def test_a_kernel_that_does_not_run_is_replaced_with_its_reason() -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("ptxas failed")

    kernels, reports = check_encoder(encoder_parts(), replace(REFERENCES, depthwise=broken))
    assert kernels == REFERENCES
    (report,) = [report for report in reports if report.replaced]
    assert isinf(report.error)
    assert report.reason == "RuntimeError: ptxas failed"


def test_a_kernel_that_did_not_compile_is_not_called() -> None:
    def never(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError

    kernels, reports = check_encoder(
        encoder_parts(), replace(REFERENCES, glu=never), {"glu": "it crashed", "lstm": "it crashed"}
    )
    assert kernels == REFERENCES
    (report,) = [report for report in reports if report.replaced]
    assert (report.name, report.reason) == ("glu", "it crashed")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_references_of_the_search_have_no_error(dtype: torch.dtype) -> None:
    kernels, reports = check_search(random_model(0), SEARCH, Tiles(), dtype)
    assert kernels == SEARCH
    assert tuple(report.name for report in reports) == SEARCHED
    assert [report.error for report in reports] == [0.0] * len(reports)


def scaled(name: str) -> Change:
    """A result that is 5 % too large."""

    def change(_: None, arguments: tuple[Any, ...]) -> None:
        if name == "joint_scores":
            arguments[-1].best_score.mul_(1.05)
        else:
            arguments[-1].mul_(1.05)

    return change


def shifted(name: str) -> Change:
    """An incorrect index or frame."""

    def change(_: None, arguments: tuple[Any, ...]) -> None:
        if name == "joint_scores":
            arguments[-1].best_index.add_(1)
        else:
            rows = arguments[0]
            assert isinstance(rows, SearchRows)
            rows.frames.add_((rows.emitted != 0).int())

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lstm", scaled("lstm")),
        ("joint_hidden", scaled("joint_hidden")),
        ("joint_scores", scaled("joint_scores")),
        ("joint_scores", shifted("joint_scores")),
        ("search_step", shifted("search_step")),
    ],
)
def test_an_incorrect_kernel_of_the_search_is_replaced_and_no_other(
    name: str, change: Change
) -> None:
    wrong = incorrect(getattr(SEARCH, name), change)
    kernels, reports = check_search(
        random_model(0), replace(SEARCH, **{name: wrong}), Tiles(), torch.float16
    )
    assert kernels == SEARCH
    assert [report.name for report in reports if report.replaced] == [name]


def test_values_of_finished_rows_are_not_compared() -> None:
    """The kernels skip these rows, the references do not."""

    def skip(_: None, arguments: tuple[Any, ...]) -> None:
        rows, output = arguments[0], arguments[-1]
        output[rows.frames >= rows.lengths] = 7

    wrong = incorrect(SEARCH.joint_hidden, skip)
    _, reports = check_search(
        random_model(0), replace(SEARCH, joint_hidden=wrong), Tiles(), torch.float16
    )
    assert [report.name for report in reports if report.replaced] == []


@pytest.fixture
def model(tmp_path: Path) -> Prepacked:
    return open_prepacked(write_nemo(tmp_path / "tiny.nemo"), Precision.BF16, None)


def test_all_kernels_are_replaced_if_none_runs(
    model: Prepacked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton has no driver for a CPU. The reports are also written to a file for the doctor."""
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    tiles = tiles_for((9, 0))
    engine = GpuEngine.checked(
        model,
        torch.device("cpu"),
        Kernels.triton(tiles, reproducible=True),
        SearchKernels.triton(tiles, reproducible=True),
        tiles,
        compile_failures={"glu": "it crashed"},
        chunk_seconds=2.0,
        bucket_tokens=(64,),
        report_path=tmp_path / "compared.json",
    )
    with closing(engine):
        assert sorted(report.name for report in engine.reports) == sorted([*OPERATIONS, *SEARCHED])
        assert all(report.replaced and report.reason for report in engine.reports)
        engine.warm_up(2.0)
    documents = json.loads((tmp_path / "compared.json").read_text())
    assert documents == [report.document() for report in engine.reports]
    assert {"chain", "search", "glu"} < {document["name"] for document in documents}
    assert "glu: replaced by plain PyTorch (it crashed)" in caplog.messages


def test_the_target_of_the_model_is_the_compiled_one(model: Prepacked) -> None:
    assert Target(ModelShape.of(model), model.precision, (9, 0)) == HOPPER


def partial_cache(folder: Path, remove: Callable[[Path], bool]) -> Path:
    """A copy of the compiled kernels without the entries that `remove` selects."""
    shutil.copytree(compiled_folder(), folder)
    for path in list(folder.iterdir()):
        if path.is_dir() and remove(path):
            shutil.rmtree(path)
    return folder


@needs_compiler
def test_missing_kernels_are_compiled_once_and_found_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the number of kernels, the time and the folder."""
    caplog.set_level(logging.INFO)
    folder = partial_cache(tmp_path / "kernels", lambda entry: bool(list(entry.glob("_glu.*"))))
    assert missing([HOPPER], [folder]) == [HOPPER]
    assert compile_missing(HOPPER, [tmp_path / "none", folder]) == {}
    (first,) = caplog.messages
    assert re.fullmatch(
        r"compiled \d+ kernels for sm_90 in bf16 within [\d.]+ s with \d processes; "
        rf"stored in {folder}",
        first,
    )
    assert list(folder.glob("*/_glu.cubin"))
    assert compile_missing(HOPPER, [folder, tmp_path / "other"]) == {}
    assert caplog.messages[1:] == ["the kernels for sm_90 in bf16 are compiled"]


def test_without_a_compiler_and_cached_c_modules_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    folder = partial_cache(tmp_path / "kernels", lambda entry: not list(entry.glob("*.cubin")))
    with pytest.raises(NoKernels, match="no gcc and no clang"):
        compile_missing(HOPPER, [folder])
    assert missing([HOPPER], [folder]) == [HOPPER]
