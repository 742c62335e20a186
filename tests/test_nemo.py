"""Inputs that `NemoEngine` rejects before it imports NeMo; `tests/oracle` tests its results."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from parakeet_worker.engine.nemo import NemoEngine
from parakeet_worker.errors import InvalidSetting, WeightsCorrupt
from tiny_model import write_nemo, write_safetensors


def test_a_safetensors_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsCorrupt, match=r"requires a \.nemo file"):
        NemoEngine.open(write_safetensors(tmp_path / "tiny"), "cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_an_unsupported_precision_is_rejected(tmp_path: Path, precision: str) -> None:
    with pytest.raises(InvalidSetting, match=f"PARAKEET_PRECISION.*{precision}"):
        NemoEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu", precision)


@pytest.mark.skipif(find_spec("nemo") is not None, reason="NeMo is in this environment")
def test_without_nemo_the_error_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="extra `nemo`"):
        NemoEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu")
