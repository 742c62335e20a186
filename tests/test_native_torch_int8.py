from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parakeet_worker.engine.native import torch_int8
from parakeet_worker.engine.native.engine import load_model
from parakeet_worker.engine.native.precision import Precision, fastest
from parakeet_worker.engine.native.torch_int8 import TorchChanged
from parakeet_worker.errors import InvalidSetting
from tiny_model import write_nemo

CPU = torch.device("cpu")


@pytest.fixture
def changed_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch whose int8 operator was removed."""
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", None)
    torch_int8.load.cache_clear()
    yield
    torch_int8.load.cache_clear()


def test_the_locked_torch_has_all_functions() -> None:
    assert torch_int8.missing() is None
    assert torch_int8.load_layout() is not None


def test_an_operator_with_other_parameters_is_rejected() -> None:
    with pytest.raises(TorchChanged, match=r"onednn.qlinear_prepack .* does not take \(weight\)"):
        torch_int8._operator("onednn", "qlinear_prepack", ("weight",))


@pytest.mark.usefixtures("changed_torch")
def test_without_the_operator_the_default_falls_back_to_fp32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if fastest(CPU) is not Precision.INT8:
        pytest.skip("int8 is not the default on this CPU")
    model = load_model(write_nemo(tmp_path / "tiny.nemo"), CPU)
    assert model.precision is Precision.FP32
    assert "has no onednn.qlinear_pointwise" in caplog.text


@pytest.mark.usefixtures("changed_torch")
def test_without_the_operator_int8_is_an_invalid_setting(tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "tiny.nemo")
    with pytest.raises(InvalidSetting, match=r"has no onednn\.qlinear_pointwise"):
        load_model(path, CPU, "int8")
