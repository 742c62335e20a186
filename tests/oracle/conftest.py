"""The models that are compared, loaded once, and what NeMo heard in every utterance."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# Both warn of deprecations in each other and in what they stand on while they are imported.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers  # noqa: F401

import nemo_models

from parakeet_worker import weights
from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native import NativeEngine
from utterances import Utterance, utterances

_FOREIGN_WARNINGS: tuple[str, ...] = ()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What NeMo and transformers warn of while they work is theirs; all else stays an error."""
    for item in items:
        for warning in _FOREIGN_WARNINGS:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{warning}"))


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return weights.find("demo")


@pytest.fixture(scope="session")
def nemo_demo(demo_path: Path) -> Any:
    """The demo checkpoint as NeMo restores it, set to tell times and confidence."""
    return nemo_models.restored(demo_path)


@pytest.fixture(scope="session")
def native_demo(demo_path: Path) -> NativeEngine:
    return NativeEngine.open(demo_path, "cpu", precision="fp32")


@pytest.fixture(scope="session")
def spoken() -> tuple[Utterance, ...]:
    return utterances()


@pytest.fixture(scope="session")
def nemo_heard(nemo_demo: Any, spoken: Sequence[Utterance]) -> list[Any]:
    """NeMo's hypothesis of every utterance, each decoded on its own."""
    return [nemo_models.heard(nemo_demo, utterance.samples) for utterance in spoken]


@pytest.fixture(scope="session")
def native_heard(native_demo: NativeEngine, spoken: Sequence[Utterance]) -> list[Hypothesis]:
    return native_demo.transcribe([utterance.samples for utterance in spoken])


@pytest.fixture(scope="session")
def tiny_nemo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model of NeMo whose weights `nemo_models.randomise` draws."""
    return nemo_models.tiny(tmp_path_factory.mktemp("tokenizer"))
