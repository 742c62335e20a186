"""Checkpoints on disk: search order, snapshots, and digests of files."""

from hashlib import sha1, sha256
from pathlib import Path

import pytest

from parakeet_worker import weights
from parakeet_worker.errors import WeightsMissing
from parakeet_worker.weights import checkpoints
from parakeet_worker.weights.digests import check_files
from published import V3_CONFIG
from tiny_model import write_nemo, write_safetensors


def test_demo_is_the_checkpoint_in_the_package() -> None:
    result = weights.find("demo")
    assert result.name == "demo.nemo"
    assert result.is_file()


def test_the_path_of_a_nemo_file_is_returned_unchanged(tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "tiny.nemo")
    assert weights.find(str(path)) == path


def test_a_folder_is_searched_for_kinds_in_order_of_preference(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "tiny")
    nemo = write_nemo(folder / "tiny.nemo")
    assert weights.find(str(folder)) == folder
    assert weights.find(str(folder), ["nemo"]) == nemo
    (folder / "tokenizer.json").unlink()
    assert weights.find(str(folder)) == nemo
    (folder / "prepacked.safetensors").touch()
    assert weights.find(str(folder)) == folder / "prepacked.safetensors"
    assert weights.find(str(folder), ["nemo"]) == nemo


@pytest.mark.parametrize("name", ["nothing.nemo", "folder/nothing.nemo", "/no/where", "word"])
def test_a_missing_model_is_an_error_with_the_searched_places(name: str) -> None:
    with pytest.raises(WeightsMissing, match=r"nothing|no/where|word") as raised:
        weights.find(name)
    assert raised.value.facts["searched"]


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"model\.safetensors"):
        weights.find(str(tmp_path))


def test_the_snapshot_of_main_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "models--nvidia--tiny"
    for revision in ("aaa", "bbb"):
        (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb\n")
    result = [snapshot.name for snapshot in checkpoints.snapshots(tmp_path, "nvidia/tiny")]
    assert result[0] == "bbb"
    assert set(result) == {"aaa", "bbb"}


def test_a_cache_without_the_model_has_no_snapshots(tmp_path: Path) -> None:
    assert list(checkpoints.snapshots(tmp_path, "nvidia/tiny")) == []


def cached(tmp_path: Path, name: str, content: bytes, blob: str) -> Path:
    """A file in a Hugging Face cache: a link to a blob named by its digest."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir(exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    (blobs / blob).write_bytes(content)
    (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_file_outside_a_cache_is_unknown_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "talk.nemo"
    path.write_bytes(b"hello")
    (check,) = check_files(path)
    assert check.status == "unknown"
    assert check.size_bytes == 5
    assert check.digest == sha256(b"hello").hexdigest()


def test_a_cached_file_is_compared_with_its_name(tmp_path: Path) -> None:
    large = sha256(b"weights").hexdigest()
    small = sha1(b"blob 2\0{}", usedforsecurity=False).hexdigest()
    cached(tmp_path, "model.safetensors", b"weights", large)
    cached(tmp_path, "config.json", b"{}", small)
    folder = cached(tmp_path, "tokenizer.json", b"half of i", "0" * 40)
    statuses = {check.path.name: check.status for check in check_files(folder)}
    assert statuses == {
        "model.safetensors": "as the cache names it",
        "config.json": "as the cache names it",
        "tokenizer.json": "corrupt",
    }


def test_the_published_configuration_is_recognised(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path)
    (folder / "config.json").write_text(V3_CONFIG)
    statuses = {check.path.name: check.status for check in check_files(folder)}
    assert statuses["config.json"] == "published"
    assert statuses["tokenizer.json"] == "unknown"
