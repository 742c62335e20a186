"""`parakeet verify`: files of a model, a transcript of the clip, and measurements."""

from hashlib import sha1
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from parakeet_worker.checks import verify
from parakeet_worker.engine.base import Hypothesis, SynchronousEngine, Token
from parakeet_worker.entrypoints.cli import main, operate
from parakeet_worker.settings import Settings
from programs import logging_ffmpeg
from tiny_model import config, weights, write_nemo, write_safetensors


def test_the_demo_model_transcribes_the_clip_exactly() -> None:
    clip = verify.transcribe_clip(Settings(model="demo", precision="fp32"))
    assert clip.text == clip.expected != ""
    assert clip.engine == "native engine: 4 layers of width 128, 893 tokens, fp32 on cpu"
    assert clip.clip_seconds > 2
    assert clip.ready_seconds > 0
    assert clip.transcribe_seconds > 0


def test_the_command_prints_files_engine_and_transcript() -> None:
    done = CliRunner().invoke(main, ["verify", "--model", "demo"])
    assert done.exit_code == 0, done.output
    for part in ("demo.nemo", "unknown", "native engine", "spoken", "text", "ready"):
        assert part in done.output


def test_a_cpu_is_measured_on_request() -> None:
    """Plain PyTorch is used; in float32 the text of a chunk is the same in a batch."""
    workload = verify.Workload(compared=3, batch=1, repeats=2, seconds=1.0)
    settings = Settings(model="demo", precision="fp32", device="cpu")
    measured = verify.measure(settings, workload)
    assert measured.engine == "native engine: 4 layers of width 128, 893 tokens, fp32 on cpu"
    assert measured.comparisons == ()
    assert measured.replaced == 0
    assert (measured.compared, measured.different) == (3, 0)
    assert 0 < measured.alone_seconds <= measured.alone_p95_seconds
    assert measured.audio_seconds_per_second > 0
    assert measured.peak_mebibytes > 100


def test_the_clip_is_decoded_in_the_precision_of_the_settings(tmp_path: Path) -> None:
    ffmpeg, log = logging_ffmpeg(tmp_path)
    single = Settings(model="demo", device="cpu", ffmpeg=ffmpeg, resampling_precision="single")
    verify.measure(single, verify.Workload(compared=1, batch=1, repeats=1, seconds=0.1))
    assert "-internal_sample_fmt fltp " in log.read_text()


def test_texts_that_differ_in_a_batch_are_counted() -> None:
    clip = np.ones(16_000, np.float32)
    assert verify._different(Fickle(fickle=False), clip, 5) == 0
    assert verify._different(Fickle(fickle=True), clip, 5) == 5


class Fickle(SynchronousEngine):
    """An engine whose text depends on the size of the batch."""

    def __init__(self, *, fickle: bool) -> None:
        self._fickle = fickle

    def transcribe(self, batch, scripts=()):  # noqa: ARG002
        piece = str(len(batch)) if self._fickle else "same"
        return [Hypothesis((Token(piece, 0, 1, 0.0),), 0.08) for _ in batch]


def test_the_command_measures_a_device_and_rejects_a_missing_one() -> None:
    done = CliRunner().invoke(main, ["verify", "--model", "demo", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    for part in ("there are no kernels", "0 of 12 chunks", "95th percentile", "2 x 30 s", "MiB"):
        assert part in done.output
    if not torch.cuda.is_available():
        done = CliRunner().invoke(main, ["verify", "--model", "demo", "--device", "cuda"])
        assert done.exit_code == 2
        assert "device_missing" in done.stderr


def test_a_kernel_that_was_replaced_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    """With a result as on a GPU; the other figures are arbitrary."""
    line = "attention: replaced by plain PyTorch (relative error 0.4, at most 0.02)"
    clip = verify.transcribe_clip(Settings(model="demo"))
    figures = (1, 0, 0.008, 0.009, 32, 20_000.0, 7.0)
    assert operate._report([], clip, verify.Performance("engine", (), 0, *figures)) == 0
    assert capsys.readouterr().err == ""
    assert operate._report([], clip, verify.Performance("engine", (line,), 1, *figures)) == 1
    printed = capsys.readouterr()
    assert line in printed.out
    assert "plain PyTorch serves" in printed.err


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


def test_a_model_that_emits_nothing_is_status_1(tmp_path: Path) -> None:
    tensors = weights(config())
    tensors["joint.joint_net.2.bias"][-6] = 1e6  # the blank always wins
    path = write_nemo(tmp_path / "silent.nemo", tensors=tensors)
    done = CliRunner().invoke(main, ["verify", "--model", str(path)])
    assert done.exit_code == 1
    assert "no words in a clip of clear speech" in done.stderr


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_model_that_cannot_be_loaded_is_status_2(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(content)
    done = CliRunner().invoke(main, ["verify", "--model", str(path)])
    assert done.exit_code == 2
    assert "weights_corrupt" in done.stderr
    assert str(path) in done.stderr
