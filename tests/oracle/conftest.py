"""The compared models, loaded once, and their hypotheses of every utterance."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# Both raise deprecation warnings about their dependencies during import.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nemo.collections.asr  # noqa: F401
    import transformers  # noqa: F401

import nemo_models

from parakeet_worker import weights
from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native import NativeEngine
from utterances import Utterance, utterances


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return weights.find("demo")


@pytest.fixture(scope="session")
def nemo_demo(demo_path: Path) -> Any:
    """The demo checkpoint in NeMo, configured for timestamps and confidence."""
    return nemo_models.restored(demo_path)


@pytest.fixture(scope="session")
def native_demo(demo_path: Path) -> NativeEngine:
    return NativeEngine.open(demo_path, "cpu", precision="fp32")


@pytest.fixture(scope="session")
def spoken() -> tuple[Utterance, ...]:
    return utterances()


@pytest.fixture(scope="session")
def nemo_hypotheses(nemo_demo: Any, spoken: Sequence[Utterance]) -> list[Any]:
    """NeMo's hypothesis of every utterance, decoded separately."""
    return [nemo_models.transcribed(nemo_demo, utterance.samples) for utterance in spoken]


@pytest.fixture(scope="session")
def native_hypotheses(native_demo: NativeEngine, spoken: Sequence[Utterance]) -> list[Hypothesis]:
    return native_demo.transcribe([utterance.samples for utterance in spoken])


@pytest.fixture(scope="session")
def tiny_nemo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny NeMo model, whose weights `nemo_models.randomise` sets."""
    return nemo_models.tiny(tmp_path_factory.mktemp("tokenizer"))
