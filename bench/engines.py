"""The measured engines behind one interface: native, NeMo, transformers, onnx-asr.

An engine is named for its library and its arithmetic: `native-int8`, `nemo-fp32`. Each is used
as documented, with audio in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from bench.random_model import Files

# `Samples` of `engine.base`, which is not imported: the import would add to the start time.
Batch = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how an engine is to run."""

    files: Files
    precision: str
    device: str
    threads: int
    settings: Mapping[str, str]


class Engine(Protocol):
    """One engine in its three steps."""

    def import_libraries(self) -> None:
        """All code that it needs, without a model."""

    def load(self) -> None:
        """Load the model onto its device."""

    def transcribe(self, batch: Batch) -> list[int]:
        """Number of tokens per chunk."""


def kinds(names: Sequence[str]) -> tuple[str, ...]:
    """The formats of the model that engines of these names read."""
    read = {"transformers": "transformers", "onnx": "onnx"}
    return tuple({read.get(name.split("-")[0], "nemo") for name in names})


def named(name: str, place: Place) -> Engine:
    """The engine of that name; its precision is the name's last part."""
    return _ENGINES[name.rsplit("-", 1)[0]](place)


class Torch:
    """Nothing but torch: what every engine on it must wait for."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def import_libraries(self) -> None:
        import torch

        torch.set_num_threads(self._place.threads)

    def load(self) -> None:
        if self._place.device == "cuda":
            import torch

            torch.zeros(1, device="cuda")

    def transcribe(self, batch: Batch) -> list[int]:
        return [0 for _ in batch]


class Native:
    """The project's own engine."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def import_libraries(self) -> None:
        import torch

        import parakeet_worker.engine.native
        import parakeet_worker.worker  # noqa: F401

        torch.set_num_threads(self._place.threads)

    def _settings(self) -> Any:
        from parakeet_worker.settings import Settings

        return Settings.of(
            {
                "model": str(self._place.files.nemo),
                "device": self._place.device,
                "precision": self._place.precision,
                "converted": str(self._place.files.converted),
                **self._place.settings,
            }
        )

    def load(self) -> None:
        from parakeet_worker.worker import open_engine

        self._engine = open_engine(self._settings())

    def transcribe(self, batch: Batch) -> list[int]:
        return [len(hypothesis.tokens) for hypothesis in self._engine.transcribe(batch)]

    def stages(self, batch: Batch) -> dict[str, float]:
        """Seconds in features, encoder and decoder of one batch, and in what is around them."""
        from bench.stages import seconds

        return seconds(self._engine, batch, self._place.device)


class Worker(Native):
    """The engine as a worker opens it: behind its batcher, and warm."""

    def load(self) -> None:
        from parakeet_worker.worker import open_pipeline

        self._open = ExitStack()
        self._pipeline = self._open.enter_context(open_pipeline(self._settings()))

    def transcribe(self, batch: Batch) -> list[int]:
        answers = self._pipeline.batcher.submit(batch)
        return [len(answer.result().tokens) for answer in answers]


class Nemo:
    """NVIDIA's toolkit, through its own `transcribe`."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def import_libraries(self) -> None:
        import torch
        from nemo.collections.asr.models import ASRModel  # noqa: F401
        from nemo.utils import logging

        logging.setLevel(logging.ERROR)
        torch.set_num_threads(self._place.threads)

    def load(self) -> None:
        import torch
        from nemo.collections.asr.models import ASRModel

        device = torch.device(self._place.device)
        model = ASRModel.restore_from(str(self._place.files.nemo), map_location=device)
        self._model = model.to(device).eval()

    def transcribe(self, batch: Batch) -> list[int]:
        with self._arithmetic():
            hypotheses = self._model.transcribe(list(batch), batch_size=len(batch), verbose=False)
        return [len(hypothesis.y_sequence) for hypothesis in hypotheses]

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Less than float32 by autocast, which leaves the features alone."""
        import torch

        if self._place.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._place.device, _dtype(self._place.precision))


class Transformers:
    """Hugging Face's library, by its feature extractor and `generate`."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def import_libraries(self) -> None:
        import torch
        from transformers import AutoFeatureExtractor, AutoModelForTDT  # noqa: F401

        torch.set_num_threads(self._place.threads)

    def load(self) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForTDT

        folder, self._dtype = self._place.files.transformers, _dtype(self._place.precision)
        self._extractor = AutoFeatureExtractor.from_pretrained(folder)
        model = AutoModelForTDT.from_pretrained(folder, dtype=self._dtype)
        self._model = model.to(self._place.device).eval()

    def transcribe(self, batch: Batch) -> list[int]:
        import torch

        inputs = self._extractor(list(batch), sampling_rate=16_000)
        inputs = inputs.to(self._place.device, dtype=self._dtype)
        with torch.inference_mode():
            hypotheses = self._model.generate(
                input_features=inputs.input_features, attention_mask=inputs.attention_mask
            )
        silent = {self._model.config.blank_token_id, self._model.config.pad_token_id}
        rows = hypotheses.sequences[:, 1:].tolist()
        return [sum(token not in silent for token in row) for row in rows]


class OnnxAsr:
    """onnx-asr on onnxruntime, without torch."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def import_libraries(self) -> None:
        import onnx_asr  # noqa: F401
        import onnxruntime  # noqa: F401

    def load(self) -> None:
        import onnx_asr
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._place.threads
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        self._model = onnx_asr.load_model(
            "nemo-conformer-tdt",
            self._place.files.onnx,
            quantization=self._place.precision,
            sess_options=options,
            providers=[provider[self._place.device]],
        ).with_timestamps()

    def transcribe(self, batch: Batch) -> list[int]:
        return [len(result.tokens or ()) for result in self._model.recognize(list(batch))]


def _dtype(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


_ENGINES: Mapping[str, Callable[[Place], Engine]] = {
    "torch": Torch,
    "native": Native,
    "worker": Worker,
    "nemo": Nemo,
    "transformers": Transformers,
    "onnx-asr": OnnxAsr,
}
