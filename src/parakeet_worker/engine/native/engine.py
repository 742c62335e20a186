"""The engine of this project: samples to hypotheses in plain PyTorch."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

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
from parakeet_worker.engine.native.converted import Converted, open_converted, read
from parakeet_worker.engine.native.decoder import (
    Emission,
    GreedyDecoder,
    JointShape,
    Scorer,
)
from parakeet_worker.engine.native.encoder import EncoderShape
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.fused import FusedEncoder
from parakeet_worker.engine.native.precision import Precision, fastest
from parakeet_worker.engine.native.ranges import finite_rows
from parakeet_worker.engine.native.tensors import Tensors, below
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import InvalidSetting, NotFinite, WeightsUnsupported
from parakeet_worker.language import Script, allowed

if TYPE_CHECKING:
    from parakeet_worker.engine.native.search import Emissions, GraphSearch

log = logging.getLogger(__name__)

_SCRIPTS: tuple[Script, ...] = get_args(Script)


class NativeEngine(SynchronousEngine):
    """Features, FastConformer encoder and greedy TDT decoder on one device.

    On a processor pieces are encoded one by one, each at its own length: nothing is gained by
    padding there, and what is heard in a piece cannot depend on its neighbours. On a GPU the
    batch is padded and encoded at once.
    """

    def __init__(self, model: Converted, device: torch.device, *, graph: bool = False) -> None:
        self._device = device
        self._threads = torch.get_num_threads()
        self.precision = model.precision
        self._features = Features.from_config(model.preprocessor)
        shape = EncoderShape.read(model.encoder)
        self._features.load_state_dict(below("preprocessor", model.tensors), assign=True)
        self._features.to(device).eval()
        self._encoder = FusedEncoder(
            below("encoder", model.tensors), shape, model.precision, device
        )
        # Without the modules: their initial values would take a second to make up.
        networks = (
            _moved(below("decoder", model.tensors), device),
            _moved(below("joint", model.tensors), device),
            JointShape.read(model.joint).activation,
        )
        scorer = Scorer(*networks, model.precision)
        self._decoder = GreedyDecoder(scorer, model.durations, model.max_symbols)
        self._vocabulary = model.vocabulary
        self._outside: dict[Script | None, Tensor] = {}
        self._search = self._graph_search(model, networks) if graph else None
        hop_seconds = self._features.shape.hop_samples / self._features.shape.sample_rate
        self.frame_seconds = hop_seconds * shape.subsampling_factor

        self._description = (
            f"native engine: {shape.layers} layers of width {shape.width}, "
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
        decoder: str = "auto",
        converted: Path | None = None,
    ) -> "NativeEngine":
        """Load a `.nemo` file, a `safetensors` folder, or what was converted from one of them.

        Raises `SetupError`s.

        `device` is torch's name of one, or `auto` for the GPU where there is one; `precision` is
        a `Precision`, or `auto` for the fastest of the device; `decoder` is `plain`, `graph` or
        `auto` for CUDA graphs where the GPU has kernels for them; `converted` is a folder where
        the model is kept as it is served, for the next start.
        """
        where = devices.choose(device)
        if path.suffix == ".safetensors":
            model = read(path)
            if precision not in ("auto", model.precision):
                reason = f"{path} was converted to {model.precision}"
                raise InvalidSetting("PARAKEET_PRECISION", reason)
        else:
            model = _opened(path, where, precision, converted)
        _check_precision(model.precision, where)
        graph = decoder == "graph" or (decoder == "auto" and devices.supports_kernels(where))
        return cls(model, where, graph=graph)

    @torch.inference_mode()
    def transcribe(
        self, batch: Sequence[Waveform], scripts: Sequence[Script | None] = ()
    ) -> list[Outcome]:
        """One hypothesis per piece, or `NotFinite` for a piece that has states like that.

        Raises `OutOfMemory` if the batch is too large.
        """
        if not batch:
            return []
        # Counts for the thread that this is: others compute with as many as suit them.
        torch.set_num_threads(self._threads)
        seconds = [len(piece) / self._sample_rate for piece in batch]
        with failures.translated(max(seconds)):
            states, valid = self.encode([as_float(piece) for piece in batch])
            finite = finite_rows(states, valid)
            # What is not finite would be searched like speech, and at its length.
            outcomes = self._decoded(states, valid * finite, scripts)
        rows = zip(outcomes, finite.tolist(), seconds, strict=True)
        return [outcome if sound else NotFinite(length) for outcome, sound, length in rows]

    def _decoded(
        self, states: Tensor, valid: Tensor, scripts: Sequence[Script | None]
    ) -> list[Outcome]:
        if self._search is not None:
            return self._searched(self._search, states, valid, scripts)
        emissions = self._decoder.decode(states.float(), valid, self._added(scripts))
        return [self._hypothesis(row) for row in emissions]

    def encode(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, T, width) states, padded, and (B,) valid frames."""
        if self._device.type != "cpu":
            return self._encoder(*self._mels(batch))
        rows = [self._encoder(*self._mels([piece])) for piece in batch]
        states = pad_sequence([states[0] for states, _ in rows], batch_first=True)
        return states, torch.cat([valid for _, valid in rows])

    def _mels(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, mels, T) frames up to the longest, and (B,) how many; nothing alone is padded."""
        lengths = torch.tensor([len(piece) for piece in batch])
        mels, frames = self._features(*_padded(batch, lengths, self._device))
        longest = max(1, int(lengths.max()) // self._features.shape.hop_samples)
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

    def _graph_search(
        self, model: Converted, networks: tuple[Tensors, Tensors, str]
    ) -> "GraphSearch":
        from parakeet_worker.engine.native.kernels.tiles import tiles_for
        from parakeet_worker.engine.native.search import GraphSearch, SearchModel

        on_gpu = self._device.type == "cuda"
        search = GraphSearch(
            SearchModel(*networks, model.durations, model.max_symbols),
            self._device,
            dtype=torch.float32 if model.precision is Precision.FP32 else torch.float16,
            tiles=tiles_for(torch.cuda.get_device_capability(self._device)) if on_gpu else None,
        )
        for slot, script in enumerate(_SCRIPTS, start=1):
            search.set_slot(slot, self._outside_of(script))
        return search

    def _searched(
        self,
        search: "GraphSearch",
        states: Tensor,
        valid: Tensor,
        scripts: Sequence[Script | None],
    ) -> list[Outcome]:
        lengths = valid.tolist()
        packed = torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])
        slots = [0 if script is None else 1 + _SCRIPTS.index(script) for script in scripts]
        found = search.decode(packed, lengths, slots)
        return [
            self._heard(row) if finite else NotFinite(length * self.frame_seconds)
            for row, finite, length in zip(found.rows, found.finite, lengths, strict=True)
        ]

    def warm_up(self, chunk_seconds: float) -> None:
        self._encoder.prepare(math.ceil(chunk_seconds / self.frame_seconds))
        if self._search is not None:
            self._search.prepare()
        # On a CPU a second is enough: there, nothing depends on the length any more.
        self._run(1.0 if self._device.type == "cpu" else chunk_seconds)

    def capacity(self, chunk_seconds: float) -> Capacity:
        return budget.padded(self._device, lambda: self._run(chunk_seconds), chunk_seconds)

    def _run(self, seconds: float) -> None:
        self.transcribe([budget.noise(seconds, self._sample_rate)] * 2)

    def close(self) -> None:
        devices.release_cache(self._device)

    def release(self) -> None:
        devices.release_cache(self._device)

    @property
    def features(self) -> Features:
        """Samples to log-mel frames."""
        return self._features

    @property
    def _sample_rate(self) -> int:
        return self._features.shape.sample_rate

    def _heard(self, emissions: "Emissions") -> Hypothesis:
        columns = (emissions.tokens, emissions.frames, emissions.durations, emissions.logprobs)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return self._hypothesis([Emission(*row) for row in rows])

    def _hypothesis(self, emissions: Sequence[Emission]) -> Hypothesis:
        tokens = tuple(_token(emission, self._vocabulary) for emission in emissions)
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)


def _opened(path: Path, device: torch.device, precision: str, converted: Path | None) -> Converted:
    """In the precision of that name, or in the fastest that the weights have the range for."""
    if precision != "auto":
        chosen = Precision(precision)
        _check_precision(chosen, device)
        return open_converted(path, chosen, converted)
    chosen = fastest(device)
    try:
        return open_converted(path, chosen, converted)
    except WeightsUnsupported as failure:
        if chosen is not Precision.FP16:
            raise
        log.warning("computing in fp32, half as fast as fp16 or slower: %s", failure)
    return open_converted(path, Precision.FP32, converted)


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
