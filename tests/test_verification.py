from hashlib import sha1
from pathlib import Path

import pytest
from click.testing import CliRunner

from parakeet_worker import verification
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.settings import Settings
from tiny_model import config, weights, write_nemo, write_safetensors


def test_the_demo_checkpoint_hears_every_word_of_the_clip() -> None:
    hearing = verification.hear_clip(Settings(model="demo", precision="fp32"))
    assert hearing.heard == hearing.said != ""
    assert hearing.engine == "native engine: 4 layers of width 128, 893 tokens, fp32 on cpu"
    assert hearing.clip_seconds > 2
    assert hearing.ready_seconds > 0
    assert hearing.hear_seconds > 0


def test_the_command_tells_files_engine_and_words_and_ends_well() -> None:
    done = CliRunner().invoke(main, ["verify", "--model", "demo"])
    assert done.exit_code == 0, done.output
    for part in ("demo.nemo", "unknown", "native engine", "said", "heard", "ready"):
        assert part in done.output


def test_a_corrupt_file_of_a_cache_is_status_1_and_named(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "snapshot")
    (tmp_path / "blobs").mkdir()
    content = (folder / "tokenizer.json").read_bytes()
    right = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    wrong = "0" * 40
    for name in (right, wrong):
        (tmp_path / "blobs" / name).write_bytes(content)
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to(tmp_path / "blobs" / name)
        done = CliRunner().invoke(main, ["verify", "--model", str(folder)])
        assert ("delete it" in done.stderr) == (name == wrong)
    assert done.exit_code == 1


def test_a_model_that_hears_nothing_is_status_1(tmp_path: Path) -> None:
    tensors = weights(config())
    tensors["joint.joint_net.2.bias"][-6] = 1e6  # the blank always wins
    path = write_nemo(tmp_path / "deaf.nemo", tensors=tensors)
    done = CliRunner().invoke(main, ["verify", "--model", str(path)])
    assert done.exit_code == 1
    assert "nothing was heard" in done.stderr


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_model_that_cannot_be_loaded_is_status_2(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(content)
    done = CliRunner().invoke(main, ["verify", "--model", str(path)])
    assert done.exit_code == 2
    assert "weights_corrupt" in done.stderr
    assert str(path) in done.stderr
