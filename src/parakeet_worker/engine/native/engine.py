"""The engine of this project: samples to hypotheses in plain PyTorch."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from parakeet_worker.engine.base import Hypothesis, Samples, Token
from parakeet_worker.engine.native import checkpoint as checkpoints
from parakeet_worker.engine.native.captured import CapturedDecoder
from parakeet_worker.engine.native.checkpoint import Checkpoint
from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Joint, Predictor
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.fused import FusedEncoder
from parakeet_worker.engine.native.precision import Precision, fastest
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import OutOfMemory, WeightsCorrupt, WeightsUnsupported

log = logging.getLogger(__name__)

# Weights that relatives of the model carry beside the transducer; they do not change its text.
_LEFT_ASIDE = ("vad_head.", "ctc_decoder.")
_PARTS = ("preprocessor.", "encoder.", "decoder.", "joint.")


class NativeEngine:
    """Features, FastConformer encoder and greedy TDT decoder on one device.

    On a processor pieces are encoded one by one, each at its own length: nothing is gained by
    padding there, and what is heard in a piece cannot depend on its neighbours. On a GPU the
    batch is padded and encoded at once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision | None = None,
        *,
        captured: bool = False,
    ) -> None:
        _check(checkpoint)
        self._device = device
        self.precision = precision or fastest(device)
        self._features = Features.from_config(checkpoint.preprocessor)
        encoder = Encoder.from_config(checkpoint.encoder).eval()
        predictor = Predictor.from_config(checkpoint.decoder)
        joint = Joint.from_config(checkpoint.joint)
        _fill(self._features, checkpoint, "preprocessor", optional=True)
        _fill(encoder, checkpoint, "encoder")
        _fill(predictor, checkpoint, "decoder")
        _fill(joint, checkpoint, "joint")
        nn.ModuleList((self._features, predictor, joint)).to(device).eval()
        self._encoder = FusedEncoder(encoder, self.precision, device)
        networks = (predictor, joint, checkpoint.durations, checkpoint.max_symbols)
        self._decoder: GreedyDecoder | CapturedDecoder = (
            CapturedDecoder(*networks, capture=device.type == "cuda")
            if captured
            else GreedyDecoder(*networks)
        )
        self._vocabulary = checkpoint.vocabulary
        hop_seconds = self._features.shape.hop_samples / self._features.shape.sample_rate
        self.frame_seconds = hop_seconds * encoder.shape.subsampling_factor

    @classmethod
    def open(
        cls, path: Path, device: str = "auto", precision: str = "auto", decoder: str = "plain"
    ) -> "NativeEngine":
        """Load a `.nemo` file or a `safetensors` folder; raises `SetupError`s.

        `device` is torch's name of one, or `auto` for the GPU where there is one; `precision` is
        a `Precision`, or `auto` for the fastest of the device; `decoder` is `plain` or `graph`.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = None if precision == "auto" else Precision(precision)
        captured = decoder == "graph"
        return cls(checkpoints.read(path), torch.device(device), chosen, captured=captured)

    @torch.inference_mode()
    def transcribe(self, batch: Sequence[Samples]) -> list[Hypothesis]:
        """One hypothesis per piece; raises `OutOfMemory` if the batch is too large."""
        if not batch:
            return []
        try:
            states, valid = self._encoded(batch)
            emissions = self._decoder.decode(states.float(), valid)
        except torch.OutOfMemoryError as failure:
            raise OutOfMemory(max(len(piece) for piece in batch) / self._sample_rate) from failure
        return [self._hypothesis(row) for row in emissions]

    def _encoded(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """(B, T, width) states, padded, and (B,) valid frames."""
        if self._device.type != "cpu":
            return self._encoder(*self._features(*_padded(batch, self._device)))
        rows = [self._encoder(*self._features(*_padded([piece], self._device))) for piece in batch]
        states = pad_sequence([states[0] for states, _ in rows], batch_first=True)
        return states, torch.cat([valid for _, valid in rows])

    def close(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _sample_rate(self) -> int:
        return self._features.shape.sample_rate

    def _hypothesis(self, emissions: Sequence[Emission]) -> Hypothesis:
        tokens = tuple(_token(emission, self._vocabulary) for emission in emissions)
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)


def _padded(batch: Sequence[Samples], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, N) samples with silence behind the shorter ones, and their (B,) lengths."""
    lengths = torch.tensor([len(piece) for piece in batch])
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


def _check(checkpoint: Checkpoint) -> None:
    """The sections must agree with each other before a single weight is copied."""
    named = checkpoint.joint.get("num_extra_outputs", 0)
    if named != len(checkpoint.durations):
        raise WeightsUnsupported("joint", "num_extra_outputs", named)
    if len(checkpoint.vocabulary.pieces) != checkpoint.joint.get("num_classes"):
        raise WeightsUnsupported("joint", "num_classes", checkpoint.joint.get("num_classes"))
    aside = [name for name in checkpoint.weights if name.startswith(_LEFT_ASIDE)]
    if aside:
        log.info("left aside %d weights: %s", len(aside), ", ".join(aside))
    for name in checkpoint.weights:
        if not name.startswith((*_PARTS, *_LEFT_ASIDE)):
            raise WeightsUnsupported("weights", name, "a part that the engine does not have")


def _fill(module: nn.Module, checkpoint: Checkpoint, part: str, optional: bool = False) -> None:
    """Copy the weights of `part`; a name or a shape that does not fit is a corrupt checkpoint."""
    weights = checkpoint.weights_of(part)
    if optional and not weights:
        return
    try:
        module.load_state_dict(weights)
    except RuntimeError as failure:
        raise WeightsCorrupt(part, str(failure)) from failure
