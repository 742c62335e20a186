import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from parakeet_worker.engine.native import checkpoint
from parakeet_worker.errors import WeightsCorrupt, WeightsUnsupported
from tiny_model import PIECES, config, write_nemo, write_safetensors


def test_a_nemo_file_and_a_safetensors_folder_give_equal_checkpoints(tmp_path: Path) -> None:
    nemo = checkpoint.read_checkpoint(write_nemo(tmp_path / "tiny.nemo"))
    folder = checkpoint.read_checkpoint(write_safetensors(tmp_path / "tiny"))
    assert folder.vocabulary == nemo.vocabulary
    assert folder.vocabulary.pieces == PIECES
    assert (folder.durations, folder.max_symbols) == (nemo.durations, nemo.max_symbols)
    folder_names = {name.replace("joint_net.1", "joint_net.2") for name in folder.weights}
    nemo_names = {name for name in nemo.weights if not name.startswith("preprocessor.")}
    assert folder_names == nemo_names
    for name, tensor in folder.weights.items():
        assert torch.equal(tensor, nemo.weights[name.replace("joint_net.1", "joint_net.2")])


def test_added_tokens_are_part_of_the_vocabulary() -> None:
    pieces = checkpoint._pieces(
        {"model": {"vocab": {"▁a": 1, "b": 2}}, "added_tokens": [{"id": 0, "content": "<unk>"}]}, 3
    )
    assert pieces == ("<unk>", "▁a", "b")


def test_a_unigram_vocabulary_is_a_list_of_pairs() -> None:
    assert checkpoint._pieces({"model": {"vocab": [["▁a", -1.0], ["b", -2.0]]}}, 2) == ("▁a", "b")


@pytest.mark.parametrize("content", [b"", b"not a tar", b"PK\x03\x04zip?"])
def test_a_file_of_another_kind_is_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=r"broken\.nemo"):
        checkpoint.read_checkpoint(path)


def test_a_truncated_nemo_file_is_corrupt(tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "tiny.nemo")
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(WeightsCorrupt):
        checkpoint.read_checkpoint(path)


def test_a_nemo_file_without_weights_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "empty.nemo"
    with tarfile.open(path, "w:"):
        pass
    with pytest.raises(WeightsCorrupt, match=r"model_config\.yaml"):
        checkpoint.read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_with_a_broken_file_is_corrupt(tmp_path: Path, name: str) -> None:
    folder = write_safetensors(tmp_path / "tiny")
    (folder / name).write_bytes(b"\x10")
    with pytest.raises(WeightsCorrupt):
        checkpoint.read_checkpoint(folder)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("decoding", {"model_type": "rnnt"}),
        ("decoding", {"strategy": "maes"}),
        ("decoding", {"durations": [0, 1, 2.5]}),
    ],
)
def test_an_unsupported_decoding_is_rejected(
    tmp_path: Path, section: str, change: dict[str, Any]
) -> None:
    sections = config()
    sections[section] |= change
    with pytest.raises(WeightsUnsupported, match=section):
        checkpoint.read_checkpoint(write_nemo(tmp_path / "other.nemo", sections))


@pytest.mark.parametrize("change", [{"convolution_bias": True}, {"hidden_act": "gelu"}])
def test_another_architecture_is_rejected(tmp_path: Path, change: dict[str, Any]) -> None:
    import json

    folder = write_safetensors(tmp_path / "tiny")
    read = json.loads((folder / "config.json").read_text())
    read["encoder_config"] |= change
    (folder / "config.json").write_text(json.dumps(read))
    with pytest.raises(WeightsUnsupported, match=next(iter(change))):
        checkpoint.read_checkpoint(folder)
