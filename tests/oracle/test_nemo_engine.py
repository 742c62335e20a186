"""`NemoEngine` compared with the native engine; test_engine_contract.py tests the interface."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nemo_models
import pytest
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf

from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.nemo import NemoEngine
from parakeet_worker.errors import WeightsCorrupt, WeightsUnsupported
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_engine
from utterances import Utterance


@pytest.fixture(scope="module")
def engine(demo_path: Path) -> Iterator[NemoEngine]:
    engine = NemoEngine.open(demo_path, "cpu")
    yield engine
    engine.close()


def test_results_equal_those_of_the_native_engine(
    engine: NemoEngine, spoken: Sequence[Utterance], native_hypotheses: Sequence[Hypothesis]
) -> None:
    some = range(0, len(spoken), 8)
    hypotheses = engine.transcribe([spoken[index].samples for index in some])
    for index, hypothesis in zip(some, hypotheses, strict=True):
        expected = native_hypotheses[index]
        assert hypothesis.frame_seconds == expected.frame_seconds
        assert [(token.piece, token.frame, token.duration) for token in hypothesis.tokens] == [
            (token.piece, token.frame, token.duration) for token in expected.tokens
        ]
        assert [token.logprob for token in hypothesis.tokens] == pytest.approx(
            [token.logprob for token in expected.tokens], abs=1e-4
        )


def test_the_engine_setting_selects_it() -> None:
    engine = open_engine(Settings(engine="nemo", model="demo", device="cpu"))
    assert isinstance(engine, NemoEngine)
    engine.close()


def test_dither_and_dropout_are_off(engine: NemoEngine) -> None:
    featurizer = engine._model.preprocessor.featurizer
    assert (featurizer.dither, featurizer.pad_to) == (0.0, 0)
    assert not engine._model.training
    assert not engine._model.cfg.decoding.greedy.use_cuda_graph_decoder


@pytest.mark.parametrize("content", [b"", b"not a tar"])
def test_a_file_of_another_kind_is_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=r"broken\.nemo"):
        NemoEngine.open(path, "cpu")


def test_a_missing_file_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(WeightsCorrupt, match=r"absent\.nemo"):
        NemoEngine.open(tmp_path / "absent.nemo", "cpu")


def test_a_truncated_file_is_corrupt(tmp_path: Path, demo_path: Path) -> None:
    content = demo_path.read_bytes()
    path = tmp_path / "short.nemo"
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(WeightsCorrupt, match=r"short\.nemo"):
        NemoEngine.open(path, "cpu")


def test_a_file_without_weights_is_corrupt(tmp_path: Path, demo_path: Path) -> None:
    path = tmp_path / "empty.nemo"
    with tarfile.open(demo_path) as whole, tarfile.open(path, "w:") as left:
        for member in whole:
            if "model_weights" not in member.name:
                left.addfile(member, whole.extractfile(member))
    with pytest.raises(WeightsCorrupt, match=r"empty\.nemo"):
        NemoEngine.open(path, "cpu")


def test_a_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsCorrupt, match=r"requires a \.nemo file"):
        NemoEngine.open(tmp_path, "cpu")


def test_a_transducer_without_durations_is_rejected(tmp_path: Path) -> None:
    config = nemo_models.tiny_config(tmp_path)
    del config["decoding"]["durations"], config["joint"]["num_extra_outputs"], config["loss"]
    config["decoding"]["model_type"] = "rnnt"
    path = tmp_path / "plain.nemo"
    EncDecRNNTBPEModel(cfg=OmegaConf.create(config)).save_to(str(path))
    with pytest.raises(WeightsUnsupported, match=r"decoding\.durations"):
        NemoEngine.open(path, "cpu")
