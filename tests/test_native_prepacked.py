import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.native import checkpoint as checkpoints
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import (
    load_prepacked,
    open_prepacked,
    prepack,
    prepack_file,
    save_prepacked,
)
from parakeet_worker.engine.native.tensors import ALIGNMENT
from parakeet_worker.errors import InvalidSetting, WeightsCorrupt, WeightsUnsupported
from recordings import noise
from tiny_model import config, weights, write_nemo, write_safetensors

CPU = torch.device("cpu")
PRECISIONS = (Precision.FP32, Precision.BF16, Precision.INT8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loaded_model_equals_the_saved_one(tmp_path: Path, precision: Precision) -> None:
    model = prepack(checkpoints.read_checkpoint(write_nemo(tmp_path / "tiny.nemo")), precision)
    save_prepacked(model, tmp_path / "loaded.safetensors")
    again = load_prepacked(tmp_path / "loaded.safetensors")
    assert (tmp_path / "loaded.safetensors").stat().st_mode & 0o777 == 0o644
    assert again.precision is precision
    assert again.vocabulary == model.vocabulary
    assert again.durations == model.durations
    assert again.tensors.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
        assert again.tensors[name].dtype == tensor.dtype, name
    clips = [noise(2.0, level=0.1), noise(0.7, level=0.1)]
    made, loaded = (NativeEngine(one, CPU) for one in (model, again))
    for batch in (clips, clips[:1], clips[1:]):
        hypotheses = made.transcribe(batch)
        assert loaded.transcribe(batch) == hypotheses
        assert any(hypothesis.tokens for hypothesis in hypotheses)


def test_a_loaded_model_is_mapped_and_aligned(tmp_path: Path) -> None:
    model = prepack(checkpoints.read_checkpoint(write_nemo(tmp_path / "tiny.nemo")), Precision.INT8)
    save_prepacked(model, tmp_path / "loaded.safetensors")
    tensors = load_prepacked(tmp_path / "loaded.safetensors").tensors
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors.values())
    whole = [tensor for tensor in tensors.values() if tensor.nbytes % ALIGNMENT == 0]
    assert sum(tensor.nbytes for tensor in whole) > 0.9 * sum(
        tensor.nbytes for tensor in tensors.values()
    )
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in maps if "loaded.safetensors" in line]
    mapped = [range(int(first, 16), int(after, 16)) for first, after in spans]
    assert all(any(tensor.data_ptr() in span for span in mapped) for tensor in whole)


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import torch
from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.native.prepacked import prepack_file
from parakeet_worker.engine.native.precision import Precision
from recordings import noise

def states(path):
    engine = NativeEngine.open(Path(path), "cpu")
    return engine._encoder(*engine._mels([noise(2.0, level=0.1)]))[0]

nemo, exact, mine, of_another = sys.argv[1:]
prepack_file(Path(nemo), Precision.INT8, Path(mine))
expected = states(exact)
for path in (mine, of_another):
    print(((states(path) - expected).norm() / expected.norm()).item())
"""


@pytest.mark.parametrize("limit", ["AVX512_CORE", "AVX2"])
def test_a_model_converted_with_other_cpu_instructions_is_right_on_this_cpu(
    tmp_path: Path, limit: str
) -> None:
    """A volume is shared, and an image is baked, by machines with VNNI and without."""
    nemo = write_nemo(tmp_path / "tiny.nemo")
    here, there, exact = (tmp_path / f"{name}.safetensors" for name in ("here", "there", "exact"))
    prepack_file(nemo, Precision.INT8, here)
    prepack_file(nemo, Precision.FP32, exact)
    completed = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(nemo), str(exact), str(there), str(here)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": limit, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    errors = [float(error) for error in completed.stdout.split()]
    assert len(errors) == 2
    assert all(0 < error < 0.02 for error in errors)
    assert there.read_bytes() == here.read_bytes()


def test_a_prepacked_file_is_loaded_instead_of_its_checkpoint(tmp_path: Path) -> None:
    source, clips = write_nemo(tmp_path / "tiny.nemo"), [noise(2.0, level=0.1)]
    prepack_file(source, Precision.BF16, tmp_path / "model" / "prepacked.safetensors")
    expected = NativeEngine.open(source, device="cpu", precision="bf16")
    served = NativeEngine.open(tmp_path / "model" / "prepacked.safetensors", device="cpu")
    assert str(served) == str(expected)
    assert served.transcribe(clips) == expected.transcribe(clips)
    with pytest.raises(InvalidSetting, match="was converted to bf16"):
        NativeEngine.open(tmp_path / "model" / "prepacked.safetensors", "cpu", precision="fp32")


def test_a_file_of_another_kind_is_not_loaded_as_prepacked(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "tiny")
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors"):
        NativeEngine.open(folder / "model.safetensors", "cpu")


@pytest.mark.parametrize("make", [write_nemo, write_safetensors])
def test_the_second_start_reads_the_cached_file_only(tmp_path: Path, make) -> None:
    source = make(tmp_path / "tiny.nemo")
    first = open_prepacked(source, Precision.FP32, tmp_path / "cache")
    # A mapped tensor would change with the file.
    before = {name: tensor.clone() for name, tensor in first.tensors.items()}
    for file in source.iterdir() if source.is_dir() else [source]:
        was = file.stat()
        file.write_bytes(bytes(was.st_size))
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    second = open_prepacked(source, Precision.FP32, tmp_path / "cache")
    assert all(torch.equal(second.tensors[name], before[name]) for name in before)
    with pytest.raises(WeightsCorrupt):
        open_prepacked(source, Precision.INT8, tmp_path / "cache")


def test_a_changed_checkpoint_is_converted_again(tmp_path: Path) -> None:
    source = write_nemo(tmp_path / "tiny.nemo")
    first = open_prepacked(source, Precision.FP32, tmp_path / "cache")
    write_nemo(source, tensors=weights(config(), seed=1))
    os.utime(source, (1, 1))
    second = open_prepacked(source, Precision.FP32, tmp_path / "cache")
    assert not torch.equal(second.tensors["joint.enc.weight"], first.tensors["joint.enc.weight"])
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("kept_bytes", [0, 7, 5000])
def test_a_truncated_cached_file_is_replaced_with_a_warning(
    tmp_path: Path, kept_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_nemo(tmp_path / "tiny.nemo")
    first = open_prepacked(source, Precision.FP32, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    whole = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(whole[:kept_bytes])
    second = open_prepacked(source, Precision.FP32, tmp_path / "cache")
    assert "converting again" in caplog.text
    assert torch.equal(second.tensors["joint.enc.weight"], first.tensors["joint.enc.weight"])
    assert cached.read_bytes() == whole


def test_a_read_only_cache_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_nemo(tmp_path / "tiny.nemo")
    (tmp_path / "file").write_text("no folder")
    assert open_prepacked(source, Precision.FP32, tmp_path / "file").tensors
    assert "cannot cache the converted model" in caplog.text


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    source = write_nemo(tmp_path / "tiny.nemo")
    script = (
        "import sys; from pathlib import Path; "
        "from parakeet_worker.engine.native import NativeEngine; "
        "NativeEngine.open(Path(sys.argv[1]), 'cpu', 'fp32', cache_dir=Path(sys.argv[2]))"
    )

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "cache")],
        preexec_fn=limited, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot cache the converted model" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_foreign_header_is_corrupt(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "tiny")
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors"):
        load_prepacked(folder / "model.safetensors")


def test_errors_name_missing_unknown_and_misshapen_weights_and_the_file(
    tmp_path: Path,
) -> None:
    name = "encoder.layers.1.self_attn.linear_q.weight"
    for case, change in (
        ("is missing", None),
        ("has the shape", torch.zeros(3, 3)),
        ("is not a weight of this architecture", torch.zeros(3)),
    ):
        tensors = weights(config())
        changed = "encoder.of_tomorrow" if case.startswith("is not") else name
        del tensors[name]
        if change is not None:
            tensors |= {name: weights(config())[name], changed: change}
        path = write_nemo(tmp_path / "odd.nemo", tensors=tensors)
        with pytest.raises(WeightsCorrupt, match=case) as raised:
            NativeEngine.open(path, "cpu")
        assert raised.value.facts == {"path": str(path), "key": changed}


def test_errors_name_unsupported_options_and_modules_and_the_file(
    tmp_path: Path,
) -> None:
    sections = config()
    sections["encoder"]["conv_norm_type"] = "layer_norm"
    path = write_nemo(tmp_path / "odd.nemo", sections)
    with pytest.raises(WeightsUnsupported) as raised:
        NativeEngine.open(path, "cpu")
    assert raised.value.facts == {"path": str(path), "key": "encoder.conv_norm_type"}
    assert str(path) in str(raised.value)


def test_a_checkpoint_in_half_precision_converts_to_any_precision(tmp_path: Path) -> None:
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in weights(config()).items()
    }
    path = write_nemo(tmp_path / "half.nemo", tensors=halves)
    (hypotheses,) = NativeEngine.open(path, "cpu", "fp32").transcribe([noise(2.0, level=0.1)])
    assert hypotheses.tokens
