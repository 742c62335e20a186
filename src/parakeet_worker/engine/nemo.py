"""NVIDIA NeMo as an engine: the reference for the native engine, and a fallback.

NeMo's `transcribe` is not used: it writes a manifest to disk, pads short chunks on both sides, and
rebuilds its decoder when timestamps are requested. Neither is `change_attention_model`, which
initialises biases at random. The decoder is configured once. Without CUDA graphs it decodes one
chunk per call, because it otherwise mixes up the durations of a batch (NeMo 3.0).
"""

import copy
import math
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

from parakeet_worker.engine import budget, failures
from parakeet_worker.engine import device as devices
from parakeet_worker.engine.base import (
    Capacity,
    Hypothesis,
    Outcome,
    Samples,
    SynchronousEngine,
    Token,
    Waveform,
    as_float,
)
from parakeet_worker.engine.native.ranges import finite_rows
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import (
    EngineError,
    InvalidSetting,
    NotFinite,
    WeightsCorrupt,
    WeightsUnsupported,
)
from parakeet_worker.language import Script, allowed

# One frame has no standard deviation: on a GPU, NeMo raises instead of normalising.
_MIN_FRAMES = 2


class NemoEngine(SynchronousEngine):
    """A NeMo TDT model in float32 with greedy decoding."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._device = device
        self._model = model.to(device).eval()
        model.preprocessor.featurizer.dither = 0.0
        model.preprocessor.featurizer.pad_to = 0
        model.change_decoding_strategy(_decoding(model, device), verbose=False)
        self._computer = model.decoding.decoding.decoding_computer
        pieces = model.tokenizer.ids_to_tokens(list(range(model.decoding.blank_id)))
        self._vocabulary = Vocabulary(tuple(pieces))
        features = model.cfg.preprocessor
        self._sample_rate = int(features.sample_rate)
        self._min_samples = _MIN_FRAMES * round(features.window_stride * self._sample_rate)
        self.frame_seconds = float(features.window_stride) * model.encoder.subsampling_factor

    def __str__(self) -> str:
        """Summary for logs."""
        return f"NeMo engine: {len(self._vocabulary.pieces)} tokens, fp32 on {self._device}"

    @classmethod
    def open(cls, path: Path, device: str = "auto", precision: str = "auto") -> "NemoEngine":
        """Load a `.nemo` file; raises `SetupError`.

        `device` is a torch device, or `auto` for the GPU if available; `precision` is `fp32` or
        `auto`, which means the same.
        """
        if precision not in ("auto", "fp32"):
            raise InvalidSetting(
                "PARAKEET_PRECISION", f"the NeMo engine supports fp32 only, not {precision}"
            )
        if path.is_dir():
            raise WeightsCorrupt(
                str(path), "the NeMo engine requires a .nemo file; this is a folder"
            )
        return cls(_restore(path), devices.select(device))

    @torch.inference_mode()
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One outcome per chunk; raises `OutOfMemory` if the batch does not fit.

        NeMo's decoder has no token mask, so tokens outside a chunk's script are removed afterwards.
        """
        empty = Hypothesis(tokens=(), frame_seconds=self.frame_seconds)
        outcomes: list[Outcome] = [empty for _ in batch]
        rows = [row for row, chunk in enumerate(batch) if len(chunk) >= self._min_samples]
        groups = [rows] if rows and self._uses_graphs else [[row] for row in rows]
        longest = max((len(chunk) for chunk in batch), default=0)
        with failures.translate_out_of_memory(longest / self._sample_rate):
            for group in groups:
                decoded = self._decode([as_float(batch[row]) for row in group])
                for row, outcome in zip(group, decoded, strict=True):
                    outcomes[row] = outcome
        return [
            outcome if script is None else _in_script(outcome, script)
            for outcome, script in zip_longest(outcomes, scripts)
        ]

    def warm_up(self, chunk_seconds: float) -> None:
        # Longest first: NeMo recaptures its graphs for every input longer than any before.
        lengths = (chunk_seconds, 1.0)
        self.transcribe([budget.noise(seconds, self._sample_rate) for seconds in lengths])

    def capacity(self, chunk_seconds: float) -> Capacity:
        full = [budget.noise(chunk_seconds, self._sample_rate)] * 2
        return budget.capacity(self._device, lambda: self.transcribe(full), chunk_seconds)

    def close(self) -> None:
        # In this order: emptying the cache breaks live CUDA graphs.
        with suppress(RuntimeError):  # after a device failure
            self._computer.reset_cuda_graphs_state()
        devices.empty_cache(self._device)

    @property
    def _uses_graphs(self) -> bool:
        return self._device.type == "cuda" and self._computer.cuda_graphs_mode is not None

    def _decode(self, chunks: Sequence[Samples]) -> list[Outcome]:
        states, valid = self._model.forward(
            input_signal=pad_sequence(
                [torch.from_numpy(chunk) for chunk in chunks], batch_first=True
            ).to(self._device),
            input_signal_length=torch.tensor([len(chunk) for chunk in chunks]).to(self._device),
        )
        hypotheses = self._model.decoding.rnnt_decoder_predictions_tensor(
            states, valid, return_hypotheses=True
        )
        finite = finite_rows(states.transpose(1, 2), valid).tolist()
        return [
            self._hypothesis(hypothesis) if is_finite else NotFinite(len(chunk) / self._sample_rate)
            for hypothesis, is_finite, chunk in zip(hypotheses, finite, chunks, strict=True)
        ]

    def _hypothesis(self, decoded: Any) -> Hypothesis:
        emissions = zip(
            decoded.y_sequence.tolist(),
            decoded.timestamp.tolist(),
            decoded.token_duration.tolist(),
            decoded.token_confidence,
            strict=True,
        )
        tokens = tuple(
            Token(self._vocabulary.text(token), frame, duration, self._logprob(confidence), token)
            for token, frame, duration, confidence in emissions
        )
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)

    def _logprob(self, confidence: float) -> float:
        """Invert NeMo's `max_prob` confidence, which rescales the uniform probability to 0."""
        classes = self._vocabulary.blank + 1
        probability = (confidence * (classes - 1) + 1) / classes
        return math.log(min(probability, 1.0))


def _decoding(model: Any, device: torch.device) -> Any:
    """The model's decoding section, changed to greedy with durations and confidences."""
    from omegaconf import open_dict

    section = copy.deepcopy(model.cfg.decoding)
    with open_dict(section):
        section.strategy = "greedy_batch"
        section.tdt_include_token_duration = True
        section.compute_timestamps = False  # `transcript` builds the words
        section.preserve_alignments = False
        section.confidence_cfg = {
            "preserve_token_confidence": True,
            "exclude_blank": True,
            "tdt_include_duration": False,
            "method_cfg": {"name": "max_prob", "alpha": 1.0},
        }
        section.greedy = section.get("greedy") or {}
        section.greedy.use_cuda_graph_decoder = device.type == "cuda"
    return section


def _in_script(outcome: Outcome, script: Script) -> Outcome:
    if isinstance(outcome, EngineError):
        return outcome
    kept = tuple(token for token in outcome.tokens if allowed(token.piece, script))
    return replace(outcome, tokens=kept)


def _restore(path: Path) -> Any:
    """Load the model at `path` onto the CPU; raises `WeightsUnsupported` unless it is TDT."""
    try:
        from nemo.collections.asr.models import ASRModel
        from nemo.utils import logging
    except ModuleNotFoundError as failure:
        reason = f"NeMo is not installed; install the extra `nemo`: {failure}"
        raise InvalidSetting("PARAKEET_ENGINE", reason) from failure
    logging.setLevel(logging.ERROR)
    with _translate_errors(path):
        model = ASRModel.restore_from(str(path), map_location=torch.device("cpu"))
        section = model.cfg.get("decoding")
    durations = section.get("durations") if section is not None else None
    if not durations:
        raise WeightsUnsupported("decoding", "durations", durations)
    return model


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, EOFError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
    except (AttributeError, ImportError, AssertionError, HydraException) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
    except (tarfile.TarError, UnpicklingError, yaml.YAMLError, OmegaConfBaseException) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
