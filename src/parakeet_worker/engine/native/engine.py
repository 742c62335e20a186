"""The native engine: Parakeet TDT in plain PyTorch, on a CPU or a GPU."""

import logging
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
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
from parakeet_worker.engine.native import torch_int8
from parakeet_worker.engine.native.decoder import (
    Emission,
    GreedyDecoder,
    JointConfig,
    Scorer,
)
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.fused import FusedEncoder
from parakeet_worker.engine.native.precision import Precision, fastest
from parakeet_worker.engine.native.prepacked import Prepacked, load_prepacked, open_prepacked
from parakeet_worker.engine.native.ranges import finite_rows
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import InvalidSetting, NotFinite, WeightsUnsupported
from parakeet_worker.language import Script, allowed

log = logging.getLogger(__name__)


class NativeEngine(SynchronousEngine):
    """Features, FastConformer encoder and greedy TDT decoder on one device.

    A CPU encodes chunk by chunk, without padding, so that results do not depend on the batch. A GPU
    encodes the padded batch.
    """

    def __init__(
        self, model: Prepacked, device: torch.device, *, reproducible: bool = False
    ) -> None:
        """`reproducible`: a GPU computes chunk by chunk too; slow, but independent of the batch."""
        self._padded = device.type != "cpu" and not reproducible
        self._device = device
        self._threads = torch.get_num_threads()
        self.precision = model.precision
        self._features = Features.from_config(model.preprocessor)
        config = EncoderConfig.from_nemo(model.encoder)
        self._features.load_state_dict(strip_prefix("preprocessor", model.tensors), assign=True)
        self._features.to(device).eval()
        self._encoder = FusedEncoder(
            strip_prefix("encoder", model.tensors), config, model.precision, device
        )
        # Not as modules, whose random initialisation would take a second.
        scorer = Scorer(
            _to_device(strip_prefix("decoder", model.tensors), device),
            _to_device(strip_prefix("joint", model.tensors), device),
            JointConfig.from_nemo(model.joint).activation,
            model.precision,
        )
        self._decoder = GreedyDecoder(scorer, model.durations, model.max_symbols)
        self._vocabulary = model.vocabulary
        self._script_biases: dict[Script | None, Tensor] = {}
        hop_seconds = self._features.config.hop_samples / self._features.config.sample_rate
        self.frame_seconds = hop_seconds * config.subsampling_factor

        self._description = (
            f"native engine: {config.layers} layers of width {config.width}, "
            f"{len(model.vocabulary.pieces)} tokens, {model.precision} on {device}"
        )

    def __str__(self) -> str:
        """Summary for logs."""
        return self._description

    @classmethod
    def open(
        cls,
        path: Path,
        device: str = "auto",
        precision: str = "auto",
        cache_dir: Path | None = None,
        *,
        reproducible: bool = False,
    ) -> "NativeEngine":
        """`load_model` for the named device; `auto` selects the GPU if available."""
        selected = devices.select(device)
        model = load_model(path, selected, precision, cache_dir)
        return cls(model, selected, reproducible=reproducible)

    @torch.inference_mode()
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One hypothesis per chunk, or `NotFinite` if its encoder states are not finite.

        Raises `OutOfMemory` if the batch does not fit.
        """
        if not batch:
            return []
        if self._device.type != "cpu" and not self._padded and len(batch) > 1:
            return self._transcribe_each(batch, scripts)
        # Per thread: other threads may use another number.
        torch.set_num_threads(self._threads)
        seconds = [len(chunk) / self._sample_rate for chunk in batch]
        with failures.translate_out_of_memory(max(seconds)):
            states, valid = self.encode([as_float(chunk) for chunk in batch])
            finite = finite_rows(states, valid)
            # Rows that are not finite are not decoded.
            outcomes = self._decode(states, valid * finite, scripts)
        rows = zip(outcomes, finite.tolist(), seconds, strict=True)
        return [outcome if is_finite else NotFinite(length) for outcome, is_finite, length in rows]

    def _transcribe_each(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None]
    ) -> list[Outcome]:
        """Chunk by chunk: GPU libraries select kernels, and so summation orders, by batch size."""
        pairs = zip_longest(batch, scripts)
        return [self.transcribe([chunk], [script])[0] for chunk, script in pairs]

    def _decode(
        self, states: Tensor, valid: Tensor, scripts: Sequence[Script | None]
    ) -> list[Outcome]:
        emissions = self._decoder.decode(states.float(), valid, self._token_bias(scripts))
        return [self._hypothesis(row) for row in emissions]

    def encode(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, T, width) padded states and (B,) valid frames."""
        if self._padded:
            return self._encoder(*self._mels(batch))
        rows = [self._encoder(*self._mels([chunk])) for chunk in batch]
        states = pad_sequence([states[0] for states, _ in rows], batch_first=True)
        return states, torch.cat([valid for _, valid in rows])

    def _mels(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, mels, T) features and (B,) valid frames; T is that of the longest chunk."""
        lengths = torch.tensor([len(chunk) for chunk in batch])
        mels, frames = self._features(*_pad(batch, lengths, self._device))
        longest = max(1, int(lengths.max()) // self._features.config.hop_samples)
        return mels[:, :, :longest], frames

    def _token_bias(self, scripts: Sequence[Script | None]) -> Tensor | None:
        """(B, tokens + blank): minus infinity for tokens outside the row's script."""
        if not any(scripts):
            return None
        return torch.stack([self._script_bias(script) for script in scripts])

    def _script_bias(self, script: Script | None) -> Tensor:
        if script not in self._script_biases:
            pieces = self._vocabulary.pieces
            masked = [script is not None and not allowed(piece, script) for piece in pieces]
            scores = [-math.inf if is_masked else 0.0 for is_masked in (*masked, False)]
            self._script_biases[script] = torch.tensor(scores, device=self._device)
        return self._script_biases[script]

    def warm_up(self, chunk_seconds: float) -> None:
        self._encoder.prepare(math.ceil(chunk_seconds / self.frame_seconds))
        # On a CPU the remaining initialisation does not depend on the length.
        self._run(1.0 if self._device.type == "cpu" else chunk_seconds)

    def capacity(self, chunk_seconds: float) -> Capacity:
        return budget.capacity(self._device, lambda: self._run(chunk_seconds), chunk_seconds)

    def _run(self, seconds: float) -> None:
        self.transcribe([budget.noise(seconds, self._sample_rate)] * 2)

    def close(self) -> None:
        devices.empty_cache(self._device)

    def release(self) -> None:
        devices.empty_cache(self._device)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._device

    @property
    def features(self) -> Features:
        """The feature extractor."""
        return self._features

    @property
    def _sample_rate(self) -> int:
        return self._features.config.sample_rate

    def _hypothesis(self, emissions: Sequence[Emission]) -> Hypothesis:
        tokens = tuple(_token(emission, self._vocabulary) for emission in emissions)
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)


def load_model(
    path: Path, device: torch.device, precision: str = "auto", cache_dir: Path | None = None
) -> Prepacked:
    """Load a `.nemo` file, a `safetensors` folder, or a prepacked file.

    `precision` is a `Precision`, or `auto` for the fastest on `device`. Prepacked models are cached
    in `cache_dir` for the next start. Raises `SetupError`.
    """
    if path.suffix == ".safetensors":
        model = load_prepacked(path)
        if precision not in ("auto", model.precision):
            reason = f"{path} was converted to {model.precision}"
            raise InvalidSetting("PARAKEET_PRECISION", reason)
    else:
        model = _open_model(path, device, precision, cache_dir)
    _check_precision(model.precision, device)
    return model


def _open_model(
    path: Path, device: torch.device, precision: str, cache_dir: Path | None
) -> Prepacked:
    """In the named precision, or in the fastest one whose range covers the weights."""
    if precision != "auto":
        selected = Precision(precision)
        _check_precision(selected, device)
        return open_prepacked(path, selected, cache_dir)
    return open_within_range(path, _fastest(device), cache_dir)


def open_within_range(path: Path, precision: Precision, cache_dir: Path | None) -> Prepacked:
    """`open_prepacked`, with fp32 instead of fp16 if the weights exceed its range."""
    try:
        return open_prepacked(path, precision, cache_dir)
    except WeightsUnsupported as failure:
        if precision is not Precision.FP16:
            raise
        log.warning("falling back to fp32, at most half as fast as fp16: %s", failure)
    return open_prepacked(path, Precision.FP32, cache_dir)


def _fastest(device: torch.device) -> Precision:
    """`fastest`, with fp32 instead of int8 if this torch lacks the functions for it."""
    precision = fastest(device)
    reason = torch_int8.missing() if precision is Precision.INT8 else None
    if reason is None:
        return precision
    log.warning("falling back to fp32, about half as fast as int8: %s", reason)
    return Precision.FP32


def _check_precision(precision: Precision, device: torch.device) -> None:
    if precision is not Precision.INT8:
        return
    if device.type != "cpu":
        raise InvalidSetting("PARAKEET_PRECISION", "int8 is supported on a CPU only")
    if (reason := torch_int8.missing()) is not None:
        raise InvalidSetting("PARAKEET_PRECISION", f"int8 is not available: {reason}")


def _to_device(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _pad(batch: Sequence[Samples], lengths: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad with zeros to (B, N) samples, and move them and their (B,) lengths to `device`."""
    samples = torch.zeros(len(batch), max(1, int(lengths.max())))
    for row, chunk in enumerate(batch):
        samples[row, : len(chunk)] = torch.from_numpy(chunk)
    if device.type == "cpu":
        return samples, lengths
    return (
        samples.pin_memory().to(device, non_blocking=True),
        lengths.pin_memory().to(device, non_blocking=True),
    )


def _token(emission: Emission, vocabulary: Vocabulary) -> Token:
    return Token(
        piece=vocabulary.text(emission.token),
        frame=emission.frame,
        duration=emission.duration,
        logprob=emission.logprob,
        id=emission.token,
    )
