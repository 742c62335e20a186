"""The engine of this project: samples to hypotheses in plain PyTorch."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from parakeet_worker.engine.base import Hypothesis, Samples, Token
from parakeet_worker.engine.native import checkpoint as checkpoints
from parakeet_worker.engine.native.checkpoint import Checkpoint
from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Joint, Predictor
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import CheckpointCorrupt, OutOfMemory, UnsupportedOption

log = logging.getLogger(__name__)

# Weights that relatives of the model carry beside the transducer; they do not change its text.
_LEFT_ASIDE = ("vad_head.", "ctc_decoder.")
_PARTS = ("preprocessor.", "encoder.", "decoder.", "joint.")


class NativeEngine:
    """Features, FastConformer encoder and greedy TDT decoder on one device, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        _check(checkpoint)
        self._device = device
        self._features = Features.from_config(checkpoint.preprocessor)
        self._encoder = Encoder.from_config(checkpoint.encoder)
        predictor = Predictor.from_config(checkpoint.decoder)
        joint = Joint.from_config(checkpoint.joint)
        _fill(self._features, checkpoint, "preprocessor", optional=True)
        _fill(self._encoder, checkpoint, "encoder")
        _fill(predictor, checkpoint, "decoder")
        _fill(joint, checkpoint, "joint")
        nn.ModuleList((self._features, self._encoder, predictor, joint)).to(device).eval()
        self._decoder = GreedyDecoder(
            predictor, joint, checkpoint.durations, checkpoint.max_symbols
        )
        self._vocabulary = checkpoint.vocabulary
        hop_seconds = self._features.shape.hop_samples / self._features.shape.sample_rate
        self.frame_seconds = hop_seconds * self._encoder.shape.subsampling_factor

    @classmethod
    def open(cls, path: Path, device: str = "auto") -> "NativeEngine":
        """Load a `.nemo` file or a `safetensors` folder; raises `SetupError`s.

        `device` is torch's name of one, or `auto` for the GPU where there is one.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(checkpoints.read(path), torch.device(device))

    @torch.inference_mode()
    def transcribe(self, batch: Sequence[Samples]) -> list[Hypothesis]:
        """One hypothesis per piece; pieces are padded to the longest, which changes no text."""
        samples, lengths = self._padded(batch)
        try:
            mels, frames = self._features(samples, lengths)
            states, valid = self._encoder(mels, frames)
            emissions = self._decoder.decode(states, valid)
        except torch.OutOfMemoryError as failure:
            raise OutOfMemory(max(len(piece) for piece in batch) / self._sample_rate) from failure
        return [self._hypothesis(row) for row in emissions]

    def close(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _sample_rate(self) -> int:
        return self._features.shape.sample_rate

    def _padded(self, batch: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(piece) for piece in batch])
        samples = torch.zeros(len(batch), max(1, int(lengths.max())))
        for row, piece in enumerate(batch):
            samples[row, : len(piece)] = torch.from_numpy(piece)
        return samples.to(self._device), lengths.to(self._device)

    def _hypothesis(self, emissions: Sequence[Emission]) -> Hypothesis:
        tokens = tuple(_token(emission, self._vocabulary) for emission in emissions)
        return Hypothesis(tokens=tokens, frame_seconds=self.frame_seconds)


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
        raise UnsupportedOption("joint", "num_extra_outputs", named)
    if len(checkpoint.vocabulary.pieces) != checkpoint.joint.get("num_classes"):
        raise UnsupportedOption("joint", "num_classes", checkpoint.joint.get("num_classes"))
    aside = [name for name in checkpoint.weights if name.startswith(_LEFT_ASIDE)]
    if aside:
        log.info("left aside %d weights: %s", len(aside), ", ".join(aside))
    for name in checkpoint.weights:
        if not name.startswith((*_PARTS, *_LEFT_ASIDE)):
            raise UnsupportedOption("weights", name, "a part that the engine does not have")


def _fill(module: nn.Module, checkpoint: Checkpoint, part: str, optional: bool = False) -> None:
    """Copy the weights of `part`; a name or a shape that does not fit is a corrupt checkpoint."""
    weights = checkpoint.weights_of(part)
    if optional and not weights:
        return
    try:
        module.load_state_dict(weights)
    except RuntimeError as failure:
        raise CheckpointCorrupt(part, str(failure)) from failure
