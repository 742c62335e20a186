import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from observed import arguments_of
from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.native.decoder import GreedyDecoder
from parakeet_worker.engine.native.engine import open_within_range
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.errors import (
    NotFinite,
    OutOfMemory,
    WeightsCorrupt,
    WeightsUnsupported,
)
from tiny_model import config, weights, write_nemo, write_safetensors


def noise(seconds: float, seed: int) -> Samples:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture
def batch() -> list[Samples]:
    return [noise(seconds, seed) for seed, seconds in enumerate((3.0, 0.5, 1.7, 0.1, 4.2))]


def emissions(hypothesis: Hypothesis) -> list[tuple[str, int, int]]:
    return [(token.piece, token.frame, token.duration) for token in hypothesis.tokens]


def test_results_do_not_depend_on_the_batch_or_its_order(
    tmp_path: Path, batch: list[Samples]
) -> None:
    tokens = 0
    for seed in range(2):
        path = write_nemo(tmp_path / f"{seed}.nemo", tensors=weights(config(), seed))
        engine = NativeEngine.open(path, "cpu")
        together = [emissions(hypothesis) for hypothesis in engine.transcribe(batch)]
        backwards = [emissions(hypothesis) for hypothesis in engine.transcribe(batch[::-1])][::-1]
        alone = [emissions(engine.transcribe([chunk])[0]) for chunk in batch]
        assert together == alone == backwards
        tokens += sum(len(hypothesis) for hypothesis in together)
    assert tokens > 25, "the models must emit tokens"


def test_a_nemo_file_and_a_safetensors_folder_give_equal_results(
    tmp_path: Path, batch: list[Samples]
) -> None:
    nemo = NativeEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu").transcribe(batch)
    folder = NativeEngine.open(write_safetensors(tmp_path / "tiny"), "cpu").transcribe(batch)
    assert nemo == folder
    assert any(hypothesis.tokens for hypothesis in nemo)


def test_every_chunk_has_a_result_even_without_a_single_frame(tmp_path: Path) -> None:
    engine = NativeEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu")
    chunks = [noise(1.0, 0), np.zeros(10, dtype=np.float32), np.zeros(0, dtype=np.float32)]
    hypotheses = engine.transcribe(chunks)
    assert len(hypotheses) == 3
    assert hypotheses[2].tokens == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_chunk_whose_states_are_not_finite_fails_alone(
    tmp_path: Path, batch: list[Samples], bad: float
) -> None:
    engine = NativeEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu", "fp32")
    expected = engine.transcribe(batch)
    broken = batch[2].copy()
    broken[len(broken) // 2] = bad
    with arguments_of(GreedyDecoder.decode) as decoded:
        outcomes = engine.transcribe([*batch[:2], broken, *batch[3:]])
    (searched,) = decoded
    assert (searched["lengths"] > 0).tolist() == [True, True, False, True, True]
    assert isinstance(outcomes[2], NotFinite)
    assert outcomes[2].facts == {"seconds": 1.7}
    assert [*outcomes[:2], *outcomes[3:]] == [*expected[:2], *expected[3:]]
    assert engine.transcribe(batch) == expected, "the next batch is unaffected"


def test_out_of_memory_has_the_length_of_the_longest_chunk(
    tmp_path: Path, batch: list[Samples]
) -> None:
    engine = NativeEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu", "fp32")
    # One sample of memory, and an exabyte for the copy.
    endless = np.broadcast_to(np.float32(0), 1 << 58)
    with pytest.raises(OutOfMemory) as raised:
        engine.transcribe([*batch, endless])
    assert raised.value.facts == {"seconds": round((1 << 58) / 16_000, 1)}
    assert "DefaultCPUAllocator" in str(raised.value.__cause__)


def test_weights_beyond_the_range_of_fp16_are_rejected_or_served_in_fp32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = weights(config())
    name = "encoder.layers.0.feed_forward1.linear1.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = 70_000.0
    path = write_nemo(tmp_path / "tiny.nemo", tensors=tensors)
    with pytest.raises(
        WeightsUnsupported, match=r"layers\.0\.feed_forward1\.linear1\.weight.*fp16"
    ):
        NativeEngine.open(path, "cpu", "fp16")
    # The default on a GPU without bfloat16.
    with caplog.at_level(logging.WARNING):
        model = open_within_range(path, Precision.FP16, tmp_path / "cache")
    assert model.precision is Precision.FP32
    assert "falling back to fp32" in caplog.text
    assert "layers.0.feed_forward1.linear1.weight" in caplog.text
    assert [each.name.split("-")[1] for each in (tmp_path / "cache").iterdir()] == ["fp32"]


def test_log_probabilities_are_over_the_tokens_and_differ(
    tmp_path: Path, batch: list[Samples]
) -> None:
    engine = NativeEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu")
    logprobs = [
        token.logprob for hypothesis in engine.transcribe(batch) for token in hypothesis.tokens
    ]
    assert len(set(logprobs)) > 5
    # The winner among 13 is never less likely than a thirteenth.
    assert all(-np.log(13) - 1e-4 <= logprob <= 0 for logprob in logprobs)


def test_weights_that_do_not_fit_are_a_corrupt_checkpoint(tmp_path: Path) -> None:
    tensors = weights(config())
    del tensors["encoder.layers.1.self_attn.linear_q.weight"]
    path = write_nemo(tmp_path / "holey.nemo", tensors=tensors)
    with pytest.raises(WeightsCorrupt, match="linear_q"):
        NativeEngine.open(path, "cpu")


def test_a_voice_activity_head_is_ignored_with_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = weights(config()) | {"vad_head.weight": torch.zeros(1, 32)}
    with caplog.at_level("INFO"):
        NativeEngine.open(write_nemo(tmp_path / "ultra.nemo", tensors=tensors), "cpu")
    assert "vad_head.weight" in caplog.text


def test_a_part_that_the_engine_does_not_have_is_refused(tmp_path: Path) -> None:
    tensors = weights(config()) | {"adapter.weight": torch.zeros(1)}
    with pytest.raises(WeightsUnsupported, match=r"adapter\.weight"):
        NativeEngine.open(write_nemo(tmp_path / "adapted.nemo", tensors=tensors), "cpu")


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    sections = config()
    sections["joint"]["vocabulary"] = sections["joint"]["vocabulary"][:-1]
    with pytest.raises(WeightsUnsupported, match="num_classes"):
        NativeEngine.open(write_nemo(tmp_path / "short.nemo", sections), "cpu")


def test_a_piece_whose_states_are_not_finite_fails_alone(
    tmp_path: Path, batch: list[Samples]
) -> None:
    engine = NativeEngine.open(write_nemo(tmp_path / "tiny.nemo"), "cpu", "fp32")
    broken = [*batch[:2], np.full(16_000, np.nan, np.float32)]
    outcomes = engine.transcribe(broken)
    assert [isinstance(each, NotFinite) for each in outcomes] == [False, False, True]
    assert outcomes[:2] == engine.transcribe(batch[:2])
