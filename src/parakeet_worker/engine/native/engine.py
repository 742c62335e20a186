"""The engine of this project: samples to hypotheses in plain PyTorch."""

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

    On a processor pieces are encoded one by one, each at its own length: nothing is gained by
    padding there, and what is heard in a piece cannot depend on its neighbours. On a GPU the
    batch is padded and encoded at once.
    """

    def __init__(
        self, model: Prepacked, device: torch.device, *, reproducible: bool = False
    ) -> None:
        """With `reproducible` a GPU computes chunk by chunk too: slow, and never another text."""
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
        # Without the modules: their initial values would take a second to make up.
        scorer = Scorer(
            _moved(strip_prefix("decoder", model.tensors), device),
            _moved(strip_prefix("joint", model.tensors), device),
            JointConfig.from_nemo(model.joint).activation,
            model.precision,
        )
        self._decoder = GreedyDecoder(scorer, model.durations, model.max_symbols)
        self._vocabulary = model.vocabulary
        self._outside: dict[Script | None, Tensor] = {}
        hop_seconds = self._features.config.hop_samples / self._features.config.sample_rate
        self.frame_seconds = hop_seconds * config.subsampling_factor

        self._description = (
            f"native engine: {config.layers} layers of width {config.width}, "
            f"{len(model.vocabulary.pieces)} tokens, {model.precision} on {device}"
        )

    def __str__(self) -> str:
        """What it is, for logs and people."""
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
        """`load` a model for the device of that name; `auto` is the GPU where there is one."""
        where = devices.select(device)
        model = load(path, where, precision, cache_dir)
        return cls(model, where, reproducible=reproducible)

    @torch.inference_mode()
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One hypothesis per piece, or `NotFinite` for a piece that has states like that.

        Raises `OutOfMemory` if the batch is too large.
        """
        if not batch:
            return []
        if self._device.type != "cpu" and not self._padded and len(batch) > 1:
            return self._one_by_one(batch, scripts)
        # Counts for the thread that this is: others compute with as many as suit them.
        torch.set_num_threads(self._threads)
        seconds = [len(piece) / self._sample_rate for piece in batch]
        with failures.translate_out_of_memory(max(seconds)):
            states, valid = self.encode([as_float(piece) for piece in batch])
            finite = finite_rows(states, valid)
            # What is not finite would be searched like speech, and at its length.
            outcomes = self._decoded(states, valid * finite, scripts)
        rows = zip(outcomes, finite.tolist(), seconds, strict=True)
        return [outcome if sound else NotFinite(length) for outcome, sound, length in rows]

    def _one_by_one(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None]
    ) -> list[Outcome]:
        """Libraries on a GPU choose their kernels, and orders of sums, by the number of rows."""
        pairs = zip_longest(batch, scripts)
        return [self.transcribe([chunk], [script])[0] for chunk, script in pairs]

    def _decoded(
        self, states: Tensor, valid: Tensor, scripts: Sequence[Script | None]
    ) -> list[Outcome]:
        emissions = self._decoder.decode(states.float(), valid, self._added(scripts))
        return [self._hypothesis(row) for row in emissions]

    def encode(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, T, width) states, padded, and (B,) valid frames."""
        if self._padded:
            return self._encoder(*self._mels(batch))
        rows = [self._encoder(*self._mels([piece])) for piece in batch]
        states = pad_sequence([states[0] for states, _ in rows], batch_first=True)
        return states, torch.cat([valid for _, valid in rows])

    def _mels(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, mels, T) frames up to the longest, and (B,) how many; nothing alone is padded."""
        lengths = torch.tensor([len(piece) for piece in batch])
        mels, frames = self._features(*_padded(batch, lengths, self._device))
        longest = max(1, int(lengths.max()) // self._features.config.hop_samples)
        return mels[:, :, :longest], frames

    def _added(self, scripts: Sequence[Script | None]) -> Tensor | None:
        """(B, tokens + blank): minus infinity for tokens that are not in the script of a row."""
        if not any(scripts):
            return None
        return torch.stack([self._outside_of(script) for script in scripts])

    def _outside_of(self, script: Script | None) -> Tensor:
        if script not in self._outside:
            pieces = self._vocabulary.pieces
            outside = [script is not None and not allowed(piece, script) for piece in pieces]
            scores = [-math.inf if each else 0.0 for each in (*outside, False)]
            self._outside[script] = torch.tensor(scores, device=self._device)
        return self._outside[script]

    def warm_up(self, chunk_seconds: float) -> None:
        self._encoder.prepare(math.ceil(chunk_seconds / self.frame_seconds))
        # On a CPU a second is enough: there, nothing depends on the length any more.
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
        """Where it computes."""
        return self._device

    @property
    def features(self) -> Features:
        """Samples to log-mel frames."""
        return self._features

    @property
    def _sample_rate(self) -> int:
        return self._features.config.sample_rate

    def _hypothesis(self, emissions: Sequence[Emission]) -> Hypothesis:
        tokens = tuple(_token(emission, self._vocabulary) for emission in emissions)
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)


def load(
    path: Path, device: torch.device, precision: str = "auto", cache_dir: Path | None = None
) -> Prepacked:
    """The model in a `.nemo` file, a `safetensors` folder, or what was converted from them.

    `precision` is a `Precision`, or `auto` for the fastest of the device; `cache_dir` is a folder
    where the model is kept as it is served, for the next start. Raises `SetupError`s.
    """
    if path.suffix == ".safetensors":
        model = load_prepacked(path)
        if precision not in ("auto", model.precision):
            reason = f"{path} was converted to {model.precision}"
            raise InvalidSetting("PARAKEET_PRECISION", reason)
    else:
        model = _opened(path, device, precision, cache_dir)
    _check_precision(model.precision, device)
    return model


def _opened(path: Path, device: torch.device, precision: str, cache_dir: Path | None) -> Prepacked:
    """In the precision of that name, or in the fastest that the weights have the range for."""
    if precision != "auto":
        chosen = Precision(precision)
        _check_precision(chosen, device)
        return open_prepacked(path, chosen, cache_dir)
    chosen = fastest(device)
    try:
        return open_prepacked(path, chosen, cache_dir)
    except WeightsUnsupported as failure:
        if chosen is not Precision.FP16:
            raise
        log.warning("computing in fp32, half as fast as fp16 or slower: %s", failure)
    return open_prepacked(path, Precision.FP32, cache_dir)


def _check_precision(precision: Precision, device: torch.device) -> None:
    if precision is Precision.INT8 and device.type != "cpu":
        raise InvalidSetting("PARAKEET_PRECISION", "int8 is for processors, not for a GPU")


def _moved(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _padded(
    batch: Sequence[Samples], lengths: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, N) samples with silence behind the shorter ones, and their (B,) lengths."""
    samples = torch.zeros(len(batch), max(1, int(lengths.max())))
    for row, piece in enumerate(batch):
        samples[row, : len(piece)] = torch.from_numpy(piece)
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
    )
