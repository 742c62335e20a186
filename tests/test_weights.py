from hashlib import sha1, sha256
from pathlib import Path

import pytest

from parakeet_worker import weights
from parakeet_worker.errors import WeightsMissing
from published import V3_CONFIG
from tiny_model import write_nemo, write_safetensors


def test_demo_is_the_checkpoint_that_comes_with_the_package() -> None:
    found = weights.find("demo")
    assert found.name == "demo.nemo"
    assert found.is_file()


def test_the_path_of_a_nemo_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "tiny.nemo")
    assert weights.find(str(path)) == path


def test_a_folder_is_searched_for_safetensors_first_and_for_nemo_then(tmp_path: Path) -> None:
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
def test_what_is_not_there_is_said_to_be_missing_with_where_it_was_looked_for(name: str) -> None:
    with pytest.raises(WeightsMissing, match=r"nothing|no/where|word") as raised:
        weights.find(name)
    assert raised.value.facts["searched"]


def test_a_folder_without_a_model_is_missing_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"model\.safetensors"):
        weights.find(str(tmp_path))


def test_the_snapshot_that_main_points_at_comes_before_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "models--nvidia--tiny"
    for revision in ("aaa", "bbb"):
        (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb\n")
    found = [snapshot.name for snapshot in weights._snapshots(tmp_path, "nvidia/tiny")]
    assert found[0] == "bbb"
    assert set(found) == {"aaa", "bbb"}


def test_a_cache_without_the_model_has_no_snapshots(tmp_path: Path) -> None:
    assert list(weights._snapshots(tmp_path, "nvidia/tiny")) == []


def cached(tmp_path: Path, name: str, content: bytes, blob: str) -> Path:
    """A file as a Hugging Face cache holds it: a link to a blob that is named by its content."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir(exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    (blobs / blob).write_bytes(content)
    (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_file_outside_a_cache_is_unknown_and_its_digest_told(tmp_path: Path) -> None:
    path = tmp_path / "talk.nemo"
    path.write_bytes(b"hello")
    (check,) = weights.check_files(path)
    assert check.verdict == "unknown"
    assert check.size_bytes == 5
    assert check.digest == sha256(b"hello").hexdigest()


def test_a_cached_file_is_held_to_its_name_large_and_small(tmp_path: Path) -> None:
    large = sha256(b"weights").hexdigest()
    small = sha1(b"blob 2\0{}", usedforsecurity=False).hexdigest()
    cached(tmp_path, "model.safetensors", b"weights", large)
    cached(tmp_path, "config.json", b"{}", small)
    folder = cached(tmp_path, "tokenizer.json", b"half of i", "0" * 40)
    verdicts = {check.path.name: check.verdict for check in weights.check_files(folder)}
    assert verdicts == {
        "model.safetensors": "as the cache names it",
        "config.json": "as the cache names it",
        "tokenizer.json": "corrupt",
    }


def test_the_published_configuration_is_known_by_its_content(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path)
    (folder / "config.json").write_text(V3_CONFIG)
    verdicts = {check.path.name: check.verdict for check in weights.check_files(folder)}
    assert verdicts["config.json"] == "published"
    assert verdicts["tokenizer.json"] == "unknown"
