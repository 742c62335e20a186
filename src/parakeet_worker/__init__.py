"""Speech to text with NVIDIA Parakeet TDT 0.6B v3.

from parakeet_worker import open_model

with open_model("demo") as model:
    print(model.transcribe("talk.mp3").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from parakeet_worker.version import __version__

if TYPE_CHECKING:
    from parakeet_worker.client.answer import Answer, Segment
    from parakeet_worker.client.clients import AsyncClient, Client
    from parakeet_worker.errors import ParakeetError
    from parakeet_worker.model import Model, Transcript, open_model
    from parakeet_worker.recognition.transcript import Sentence, TimedToken, Word
    from parakeet_worker.settings import Settings

# Imported lazily, so that importing the package takes milliseconds.
_HOMES = {
    "Answer": "client.answer",
    "AsyncClient": "client.clients",
    "Client": "client.clients",
    "Model": "model",
    "ParakeetError": "errors",
    "Segment": "client.answer",
    "Sentence": "recognition.transcript",
    "Settings": "settings",
    "TimedToken": "recognition.transcript",
    "Transcript": "model",
    "Word": "recognition.transcript",
    "open_model": "model",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Model",
    "ParakeetError",
    "Segment",
    "Sentence",
    "Settings",
    "TimedToken",
    "Transcript",
    "Word",
    "__version__",
    "open_model",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from parakeet_worker.extras import required

    with required("engine"):  # the client has what it needs
        return getattr(import_module(f"parakeet_worker.{home}"), name)
