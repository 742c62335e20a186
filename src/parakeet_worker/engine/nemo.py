"""NVIDIA's own toolkit as an engine: what the native one is measured against, and a way back.

NeMo's `transcribe` is not used: it writes a manifest to disk, pads short pieces on both sides,
and rebuilds its decoder when timestamps are asked for. Neither is `change_attention_model`, which
makes up biases. The decoder is configured once, and without CUDA graphs it is given one piece at
a time, because it then mixes up the durations of a batch (NeMo 3.0).
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

# A single frame has no deviation, and NeMo refuses to normalise by it where there is a GPU.
_FEWEST_FRAMES = 2


class NemoEngine(SynchronousEngine):
    """A TDT model of NeMo in float32, decoded greedily."""

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
        self._fewest_samples = _FEWEST_FRAMES * round(features.window_stride * self._sample_rate)
        self.frame_seconds = float(features.window_stride) * model.encoder.subsampling_factor

    def __str__(self) -> str:
        """What it is, for logs and people."""
        return f"NeMo engine: {len(self._vocabulary.pieces)} tokens, fp32 on {self._device}"

    @classmethod
    def open(cls, path: Path, device: str = "auto", precision: str = "auto") -> "NemoEngine":
        """Load a `.nemo` file; raises `SetupError`s.

        `device` is torch's name of one, or `auto` for the GPU where there is one; `precision` is
        `fp32`, or `auto` for that.
        """
        if precision not in ("auto", "fp32"):
            raise InvalidSetting("PARAKEET_PRECISION", f"NeMo is run in fp32, not in {precision}")
        if path.is_dir():
            raise WeightsCorrupt(str(path), "NeMo reads .nemo files only, and this is a folder")
        return cls(_restored(path), devices.select(device))

    @torch.inference_mode()
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One hypothesis per piece; raises `OutOfMemory` if the batch is too large.

        Of a piece with a script, tokens in others are left out: NeMo cannot be kept from them.
        """
        nothing = Hypothesis(tokens=(), frame_seconds=self.frame_seconds)
        heard: list[Outcome] = [nothing for _ in batch]
        rows = [row for row, piece in enumerate(batch) if len(piece) >= self._fewest_samples]
        groups = [rows] if rows and self._in_graphs else [[row] for row in rows]
        longest = max((len(piece) for piece in batch), default=0)
        with failures.translate_out_of_memory(longest / self._sample_rate):
            for group in groups:
                found = self._decoded([as_float(batch[row]) for row in group])
                for row, hypothesis in zip(group, found, strict=True):
                    heard[row] = hypothesis
        return [
            outcome if script is None else _in_script(outcome, script)
            for outcome, script in zip_longest(heard, scripts)
        ]

    def warm_up(self, chunk_seconds: float) -> None:
        # The longest first: NeMo makes its graphs anew for whatever is longer than before.
        lengths = (chunk_seconds, 1.0)
        self.transcribe([budget.noise(seconds, self._sample_rate) for seconds in lengths])

    def capacity(self, chunk_seconds: float) -> Capacity:
        full = [budget.noise(chunk_seconds, self._sample_rate)] * 2
        return budget.capacity(self._device, lambda: self.transcribe(full), chunk_seconds)

    def close(self) -> None:
        # In this order: to empty the cache while NeMo's graphs live breaks them.
        with suppress(RuntimeError):  # where the device has failed
            self._computer.reset_cuda_graphs_state()
        devices.empty_cache(self._device)

    @property
    def _in_graphs(self) -> bool:
        return self._device.type == "cuda" and self._computer.cuda_graphs_mode is not None

    def _decoded(self, pieces: Sequence[Samples]) -> list[Outcome]:
        states, valid = self._model.forward(
            input_signal=pad_sequence(
                [torch.from_numpy(piece) for piece in pieces], batch_first=True
            ).to(self._device),
            input_signal_length=torch.tensor([len(piece) for piece in pieces]).to(self._device),
        )
        found = self._model.decoding.rnnt_decoder_predictions_tensor(
            states, valid, return_hypotheses=True
        )
        finite = finite_rows(states.transpose(1, 2), valid).tolist()
        return [
            self._hypothesis(hypothesis) if sound else NotFinite(len(piece) / self._sample_rate)
            for hypothesis, sound, piece in zip(found, finite, pieces, strict=True)
        ]

    def _hypothesis(self, found: Any) -> Hypothesis:
        said = zip(
            found.y_sequence.tolist(),
            found.timestamp.tolist(),
            found.token_duration.tolist(),
            found.token_confidence,
            strict=True,
        )
        tokens = tuple(
            Token(self._vocabulary.text(token), frame, duration, self._logprob(confidence))
            for token, frame, duration, confidence in said
        )
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)

    def _logprob(self, confidence: float) -> float:
        """Undo NeMo's `max_prob`, the probability stretched so that a blind guess is 0."""
        outcomes = self._vocabulary.blank + 1
        probability = (confidence * (outcomes - 1) + 1) / outcomes
        return math.log(min(probability, 1.0))


def _decoding(model: Any, device: torch.device) -> Any:
    """The model's own decoding section, greedy, with durations and probabilities."""
    from omegaconf import open_dict

    section = copy.deepcopy(model.cfg.decoding)
    with open_dict(section):
        section.strategy = "greedy_batch"
        section.tdt_include_token_duration = True
        section.compute_timestamps = False  # words are made in `transcript`
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


def _restored(path: Path) -> Any:
    """NeMo's model in `path`, on the processor; refused if it is not a TDT transducer."""
    try:
        from nemo.collections.asr.models import ASRModel
        from nemo.utils import logging
    except ModuleNotFoundError as failure:
        reason = f"NeMo is not installed, the extra `nemo` has it: {failure}"
        raise InvalidSetting("PARAKEET_ENGINE", reason) from failure
    logging.setLevel(logging.ERROR)
    with _translated(path):
        model = ASRModel.restore_from(str(path), map_location=torch.device("cpu"))
        section = model.cfg.get("decoding")
    durations = section.get("durations") if section is not None else None
    if not durations:
        raise WeightsUnsupported("decoding", "durations", durations)
    return model


@contextmanager
def _translated(path: Path) -> Iterator[None]:
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
