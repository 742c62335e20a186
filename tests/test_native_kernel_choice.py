"""A kernel that is wrong, or does not run, is replaced by plain PyTorch, named and measured."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from math import inf, isinf
from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs

from packed import parts
from parakeet_worker.engine.kernel_report import NoKernels
from parakeet_worker.engine.native.compilation import Target, missing
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.gpu_engine import GpuEngine
from parakeet_worker.engine.native.kernel_choice import (
    EncoderParts,
    checked_encoder,
    checked_search,
    prepared,
)
from parakeet_worker.engine.native.kernels.kernel_set import OPERATIONS, Kernels
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tiles, tiles_for
from parakeet_worker.engine.native.launches import ModelShape
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import Prepacked, open_prepacked
from parakeet_worker.engine.native.search import SearchKernels
from searching import tiny
from test_native_compilation import needs_compiler
from tiny_model import write_nemo

REFERENCES = replace(Kernels.reference(), reproducible=True)
SEARCH = SearchKernels.reference()
SEARCHED = ("lstm", "joint_hidden", "joint_scores", "search_step")

Change = Callable[[Any, tuple[Any, ...]], Any]
"""A result and the arguments to what a wrong kernel leaves behind."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Triton's own cache is the process's again."""
    yield
    knobs.cache.manager_class = None
    knobs.compilation.store_binary_only = False


def encoder_parts(precision: Precision = Precision.BF16) -> EncoderParts:
    features, encoder = parts()
    return EncoderParts(features, encoder.config, fold(encoder, precision), precision)


def spoiled(right: Callable[..., Any], change: Change) -> Callable[..., Any]:
    """As `right`, but for what `change` makes of what it gives."""

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        changed = change(result, arguments)
        return result if changed is None else changed

    return wrong


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.FP32])
def test_the_references_differ_from_themselves_in_nothing(precision: Precision) -> None:
    """Every operation of the encoder is called, and none is replaced."""
    kernels, reports = checked_encoder(encoder_parts(precision), REFERENCES)
    assert kernels == REFERENCES
    assert {report.name for report in reports} == set(OPERATIONS)
    assert [report.error for report in reports] == [0.0] * len(reports)


def test_a_product_of_the_library_is_no_kernel() -> None:
    _, reports = checked_encoder(encoder_parts(), Kernels.reference())
    assert {report.name for report in reports} == set(OPERATIONS) - {"product"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_kernel_of_the_encoder_is_replaced_and_no_other(name: str) -> None:
    """One that is five percent too large, as a wrong scale would be."""
    wrong = spoiled(getattr(REFERENCES, name), lambda result, _: result * 1.05)
    kernels, reports = checked_encoder(encoder_parts(), replace(REFERENCES, **{name: wrong}))
    assert kernels == REFERENCES
    (report,) = [one for one in reports if one.replaced]
    assert report.name == name
    assert 0.04 < report.error < 0.06
    assert report.tolerance < 0.03


def test_what_is_wrong_in_one_token_of_many_is_found() -> None:
    def forget(result: torch.Tensor, _: tuple[Any, ...]) -> torch.Tensor:
        result[-1] = 0
        return result

    wrong = spoiled(REFERENCES.attention, forget)
    _, reports = checked_encoder(encoder_parts(), replace(REFERENCES, attention=wrong))
    (report,) = [one for one in reports if one.replaced]
    assert report.name == "attention"


def test_what_is_wrong_in_place_is_found() -> None:
    def forget(_: torch.Tensor, arguments: tuple[Any, ...]) -> None:
        arguments[0][3] = 0

    wrong = spoiled(REFERENCES.residual_norm, forget)
    _, reports = checked_encoder(encoder_parts(), replace(REFERENCES, residual_norm=wrong))
    assert [one.name for one in reports if one.replaced] == ["residual_norm"]


@pytest.mark.parametrize("bad", [float("nan"), inf])
def test_what_is_no_number_is_found(bad: float) -> None:
    wrong = spoiled(REFERENCES.glu, lambda result, _: result.index_fill(0, torch.tensor([0]), bad))
    _, reports = checked_encoder(encoder_parts(), replace(REFERENCES, glu=wrong))
    (report,) = [one for one in reports if one.replaced]
    assert report.name == "glu"


def test_a_kernel_that_does_not_run_is_replaced_with_its_reason() -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("ptxas failed")

    kernels, reports = checked_encoder(encoder_parts(), replace(REFERENCES, depthwise=broken))
    assert kernels == REFERENCES
    (report,) = [one for one in reports if one.replaced]
    assert isinf(report.error)
    assert report.reason == "RuntimeError: ptxas failed"


def test_a_kernel_that_did_not_compile_is_not_tried() -> None:
    def never(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError

    kernels, reports = checked_encoder(
        encoder_parts(), replace(REFERENCES, glu=never), {"glu": "it crashed", "lstm": "too"}
    )
    assert kernels == REFERENCES
    (report,) = [one for one in reports if one.replaced]
    assert (report.name, report.reason) == ("glu", "it crashed")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_search_agrees_with_itself(dtype: torch.dtype) -> None:
    kernels, reports = checked_search(tiny(0), SEARCH, Tiles(), dtype)
    assert kernels == SEARCH
    assert tuple(report.name for report in reports) == SEARCHED
    assert [report.error for report in reports] == [0.0] * len(reports)


def louder(name: str) -> Change:
    def change(_: None, arguments: tuple[Any, ...]) -> None:
        if name == "joint_scores":
            arguments[-1].best.mul_(1.05)
        else:
            arguments[-1].mul_(1.05)

    return change


def elsewhere(name: str) -> Change:
    """Something that is no number but an index, a place or a count."""

    def change(_: None, arguments: tuple[Any, ...]) -> None:
        if name == "joint_scores":
            arguments[-1].indices.add_(1)
        else:
            rows = arguments[0]
            assert isinstance(rows, SearchRows)
            rows.frames.add_((rows.emitted != 0).int())

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lstm", louder("lstm")),
        ("joint_hidden", louder("joint_hidden")),
        ("joint_scores", louder("joint_scores")),
        ("joint_scores", elsewhere("joint_scores")),
        ("search_step", elsewhere("search_step")),
    ],
)
def test_a_wrong_kernel_of_the_search_is_replaced_and_no_other(name: str, change: Change) -> None:
    wrong = spoiled(getattr(SEARCH, name), change)
    kernels, reports = checked_search(
        tiny(0), replace(SEARCH, **{name: wrong}), Tiles(), torch.float16
    )
    assert kernels == SEARCH
    assert [one.name for one in reports if one.replaced] == [name]


def test_what_ended_rows_hold_has_no_meaning() -> None:
    """The kernels skip them where the references do not."""

    def skip(_: None, arguments: tuple[Any, ...]) -> None:
        rows, joined = arguments[0], arguments[-1]
        joined[rows.frames >= rows.lengths] = 7

    wrong = spoiled(SEARCH.joint_hidden, skip)
    _, reports = checked_search(
        tiny(0), replace(SEARCH, joint_hidden=wrong), Tiles(), torch.float16
    )
    assert [one.name for one in reports if one.replaced] == []


@pytest.fixture
def model(tmp_path: Path) -> Prepacked:
    return open_prepacked(write_nemo(tmp_path / "tiny.nemo"), Precision.BF16, None)


def test_where_no_kernel_runs_all_are_replaced(
    model: Prepacked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton has no driver for a CPU. The engine says it, in a file for the doctor too."""
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    tiles = tiles_for((9, 0))
    engine = GpuEngine.checked(
        model,
        torch.device("cpu"),
        Kernels.triton(tiles, reproducible=True),
        SearchKernels.triton(tiles, reproducible=True),
        tiles,
        broken={"glu": "it crashed"},
        chunk_seconds=2.0,
        bucket_tokens=(64,),
        remembered=tmp_path / "compared.json",
    )
    with closing(engine):
        assert sorted(one.name for one in engine.reports) == sorted([*OPERATIONS, *SEARCHED])
        assert all(one.replaced and one.reason for one in engine.reports)
        engine.warm_up(2.0)
    remembered = json.loads((tmp_path / "compared.json").read_text())
    assert remembered == [one.document() for one in engine.reports]
    assert {"chain", "search", "glu"} < {one["name"] for one in remembered}
    assert "glu: replaced by plain PyTorch (it crashed)" in caplog.messages


def target(model: Prepacked) -> Target:
    return Target(ModelShape.of(model), Precision.BF16, (9, 0))


@needs_compiler
def test_kernels_are_compiled_once_and_found_after(
    model: Prepacked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what a cold cache cost, and where it is kept."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "kernels"
    assert prepared(target(model), [tmp_path / "none", folder]) == {}
    (first,) = caplog.messages
    assert re.fullmatch(
        rf"compiled \d+ kernels for sm_90 in bf16 within [\d.]+ s, \d at a time; kept in {folder}",
        first,
    )
    assert prepared(target(model), [folder, tmp_path / "other"]) == {}
    assert caplog.messages[1:] == ["the kernels for sm_90 in bf16 are compiled"]


def test_without_a_compiler_and_a_cache_there_are_no_kernels(
    model: Prepacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoKernels, match="no gcc and no clang"):
        prepared(target(model), [tmp_path / "kernels"])
    assert missing([target(model)], [tmp_path / "kernels"]) == [target(model)]
