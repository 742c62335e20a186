"""The model in training: the engine's modules, and a head that classifies each frame's word."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_worker.engine.native.decoder import Joint, Predictor
from parakeet_worker.engine.native.encoder import Encoder, FeedForward
from training import architecture
from training.batches import Batch
from training.pieces import Pieces
from training.words import word_types

JOINT_DROPOUT = 0.05
SHORTEST_SKIP_FRAMES = 2


@dataclass(frozen=True, slots=True)
class Losses:
    """Cross-entropies in nats."""

    words: Tensor
    tokens: Tensor
    durations: Tensor
    skips: Tensor
    """Of not skipping a token that is due."""

    def total(self, words_weight: float) -> Tensor:
        """The training objective."""
        return self.words * words_weight + self.tokens + 0.5 * (self.durations + self.skips)


class Network(nn.Module):
    """Encoder, prediction network, joint, and the frame-wise head, which is not shipped."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self.encoder_is_frozen = False
        self.blank = len(pieces)
        self.encoder = Encoder.from_config(architecture.ENCODER)
        self.decoder = Predictor.from_config(architecture.predictor(len(pieces)))
        self.joint = Joint.from_config(architecture.joint(pieces.vocabulary()))
        self.words_head = nn.Linear(architecture.ENCODER_WIDTH, 1 + len(word_types()))
        self._spare_dropout()

    def _spare_dropout(self) -> None:
        """Set dropout: none in feed-forwards, where it costs a fifth of a CPU step; little after.

        The data never repeat exactly, so there is little to regularise.
        """
        for module in self.encoder.modules():
            if isinstance(module, FeedForward):
                module.dropout.p = 0.0
        self.decoder.lstm.dropout = 0.0
        for module in self.joint.joint_net:
            if isinstance(module, nn.Dropout):
                module.p = JOINT_DROPOUT

    def resume(self, stored: dict[str, Tensor]) -> None:
        """Load the weights with matching shapes; those of another tokenizer are skipped."""
        own = self.state_dict()
        fitting = {name: value for name, value in stored.items() if own[name].shape == value.shape}
        self.load_state_dict(fitting, strict=False)

    def freeze_encoder(self) -> None:
        """Freeze the encoder: a step takes a fifth of the time."""
        self.encoder.requires_grad_(requires_grad=False)
        self.encoder_is_frozen = True

    def train(self, mode: bool = True) -> "Network":
        """Set the training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def losses(self, batch: Batch) -> Losses:
        """Compute the cross-entropies: word per frame, token and duration per state."""
        with torch.set_grad_enabled(not self.encoder_is_frozen):
            states, _ = self.encoder(batch.mels, batch.lengths)
        words = functional.cross_entropy(
            self.words_head(states).flatten(0, 1), batch.labels.flatten(), ignore_index=-100
        )
        encoded = self.joint.enc(states)[batch.rows, batch.frames]
        predicted = self.joint.pred(self.decoder(batch.tokens))[batch.rows, batch.emitted]
        logits = self.joint.logits(encoded + predicted)
        tokens, durations = logits[:, : self.blank + 1], logits[:, self.blank + 1 :]
        return Losses(
            words,
            functional.cross_entropy(tokens, batch.right_tokens),
            functional.cross_entropy(durations, batch.right_durations),
            skips(tokens, durations, batch.right_tokens),
        )


def skips(tokens: Tensor, durations: Tensor, right_tokens: Tensor) -> Tensor:
    """Return the mean cost of the blank with a long duration where a token is due.

    The two outputs are independent: where the blank and the token are about equally probable, the
    blank may win with the token's duration, and the token is emitted late or never.
    """
    blank = tokens.shape[1] - 1
    skipped = (
        tokens.log_softmax(1)[:, blank]
        + durations.log_softmax(1)[:, SHORTEST_SKIP_FRAMES:].logsumexp(1)
    ).exp()
    due = right_tokens != blank
    cost = -torch.log1p(-skipped.clamp(max=0.999))
    return (cost * due).sum() / due.sum().clamp(min=1)


def parameters_count(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


class WeightsAverage:
    """An exponential moving average of weights and batch-norm statistics."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._steps = 0
        self.state = {key: value.detach().clone() for key, value in network.state_dict().items()}

    def update(self, network: nn.Module) -> None:
        """Add the weights of one step; the first steps have more weight."""
        self._steps += 1
        share = max(1 - self.decay, 1 / (self._steps + 1))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                kept = self.state[key]
                if kept.is_floating_point():
                    kept.lerp_(value, share)
                else:
                    kept.copy_(value)
