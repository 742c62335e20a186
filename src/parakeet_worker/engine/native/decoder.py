"""Encoder states to tokens: prediction network, joint network and greedy TDT decoding.

Xu et al., "Efficient Sequence Transduction by Jointly Predicting Tokens and Durations", 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parakeet_worker.engine.native.options import Options

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True, slots=True)
class PredictorShape:
    """What a checkpoint says of its prediction network."""

    vocabulary: int
    width: int
    layers: int
    dropout: float

    @classmethod
    def read(cls, config: Mapping[str, object]) -> "PredictorShape":
        """From NeMo's `decoder` section; raises `WeightsUnsupported`."""
        options = Options("decoder", config)
        options.target("RNNTDecoder")
        network = options.section_of("prednet")
        shape = cls(
            vocabulary=options.integer("vocab_size"),
            width=network.integer("pred_hidden"),
            layers=network.integer("pred_rnn_layers", 1),
            dropout=network.number("dropout", 0.0),
        )
        network.one_of("norm", None, default=None)
        network.one_of("rnn_hidden_size", -1, default=-1)
        network.skip("t_max", "forget_gate_bias", "weights_init_scale", "hidden_hidden_bias_scale")
        network.close()
        options.one_of("normalization_mode", None, default=None)
        options.one_of("blank_as_pad", True, default=True)
        options.skip("random_state_sampling")
        options.close()
        return shape


@dataclass(frozen=True, slots=True)
class JointShape:
    """What a checkpoint says of its joint network."""

    vocabulary: int
    durations: int
    encoder_width: int
    predictor_width: int
    width: int
    activation: str
    dropout: float

    @classmethod
    def read(cls, config: Mapping[str, object]) -> "JointShape":
        """From NeMo's `joint` section; raises `WeightsUnsupported`."""
        options = Options("joint", config)
        options.target("RNNTJoint")
        network = options.section_of("jointnet")
        shape = cls(
            vocabulary=options.integer("num_classes"),
            durations=options.integer("num_extra_outputs", 0),
            encoder_width=network.integer("encoder_hidden"),
            predictor_width=network.integer("pred_hidden"),
            width=network.integer("joint_hidden"),
            activation=str(network.one_of("activation", *_ACTIVATIONS, default="relu")),
            dropout=network.number("dropout", 0.0),
        )
        network.close()
        options.one_of("masking_prob", -1, -1.0, default=-1)
        options.skip("vocabulary", "log_softmax", "preserve_memory", "fuse_loss_wer")
        options.skip("fused_batch_size", "experimental_fuse_loss_wer")
        options.close()
        return shape


class Predictor(nn.Module):
    """The prediction network: an embedding and an LSTM over the tokens said so far.

    The blank's embedding is the zero vector and stands for the start of the utterance.
    """

    def __init__(self, shape: PredictorShape) -> None:
        super().__init__()
        self.shape = shape
        rnn = nn.Module()
        rnn.lstm = nn.LSTM(
            shape.width, shape.width, shape.layers, dropout=shape.dropout, batch_first=True
        )
        embed = nn.Embedding(shape.vocabulary + 1, shape.width, padding_idx=shape.vocabulary)
        self.prediction = nn.ModuleDict({"embed": embed, "dec_rnn": rnn})

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Predictor":
        return cls(PredictorShape.read(config))

    @property
    def lstm(self) -> nn.LSTM:
        lstm = self.prediction["dec_rnn"].lstm
        assert isinstance(lstm, nn.LSTM)
        return lstm

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.prediction["embed"](tokens)
        return embedded

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, U) token ids -> (B, U+1, width): the state after the start and after each token."""
        start = tokens.new_full((tokens.shape[0], 1), self.shape.vocabulary)
        states: Tensor = self.lstm(self.embed(torch.cat((start, tokens), dim=1)))[0]
        return states


class Joint(nn.Module):
    """Scores every token and every duration for a pair of encoder and predictor states."""

    def __init__(self, shape: JointShape) -> None:
        super().__init__()
        self.shape = shape
        self.enc = nn.Linear(shape.encoder_width, shape.width)
        self.pred = nn.Linear(shape.predictor_width, shape.width)
        dropout = [nn.Dropout(shape.dropout)] if shape.dropout > 0 else []
        outputs = nn.Linear(shape.width, shape.vocabulary + 1 + shape.durations)
        self.joint_net = nn.Sequential(_ACTIVATIONS[shape.activation](), *dropout, outputs)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Joint":
        return cls(JointShape.read(config))

    def logits(self, projected: Tensor) -> Tensor:
        """(..., width) sum of both projections -> (..., tokens + blank + durations)."""
        scores: Tensor = self.joint_net(projected)
        return scores


@dataclass(frozen=True, slots=True)
class Emission:
    """One token that the greedy search emitted."""

    token: int
    frame: int
    duration: int
    logprob: float


class GreedyDecoder:
    """Greedy TDT search over a batch, all rows in step and each at its own frame.

    At every step each row scores its current frame with its predictor state, takes the best
    token and the best duration, and moves on by that duration; a blank moves by at least one
    frame, and `max_symbols` tokens in a row without moving force one frame. The reference is
    NeMo's label-looping TDT decoder, run utterance by utterance.
    """

    def __init__(
        self, predictor: Predictor, joint: Joint, durations: tuple[int, ...], max_symbols: int
    ) -> None:
        self._predictor = predictor
        self._joint = joint
        self._durations = durations
        self._max_symbols = max_symbols
        self._blank = predictor.shape.vocabulary

    @torch.inference_mode()
    def decode(
        self, states: Tensor, lengths: Tensor, forbidden: Tensor | None = None
    ) -> list[tuple[Emission, ...]]:
        """(B, T, width) states and (B,) valid frames -> the emissions of each row, in order.

        `forbidden`, (B, tokens + blank), is true for tokens that a row may not emit; their
        probabilities count all the same.
        """
        search = _Search(self._predictor, self._joint, states, lengths)
        durations = torch.tensor(self._durations, device=states.device)
        steps: list[_Step] = []
        while bool(search.active.any()):
            scores = search.score()
            token_scores = scores[:, : self._blank + 1]
            allowed = token_scores
            if forbidden is not None:
                allowed = token_scores.masked_fill(forbidden, float("-inf"))
            tokens = allowed.argmax(dim=1)
            chosen = durations[scores[:, self._blank + 1 :].argmax(dim=1)]
            emitted = search.active & (tokens != self._blank)
            best = token_scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
            logprobs = best - token_scores.logsumexp(dim=1)
            steps.append(_Step(emitted, tokens, search.frame.clone(), chosen, logprobs))
            search.advance(tokens, emitted, chosen, self._max_symbols)
        return _rows(steps, states.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What every row did in one step; only rows that emitted count."""

    emitted: Tensor
    tokens: Tensor
    frames: Tensor
    durations: Tensor
    logprobs: Tensor


class _Search:
    """Where every row stands: its frame, its predictor state and how long it has not moved."""

    def __init__(self, predictor: Predictor, joint: Joint, states: Tensor, lengths: Tensor) -> None:
        batch = states.shape[0]
        self._predictor = predictor
        self._joint = joint
        self._encoded = joint.enc(states)
        self._lengths = lengths.clamp(max=states.shape[1])
        self._rows = torch.arange(batch, device=states.device)
        self.frame = torch.zeros_like(lengths)
        self._symbols_here = torch.zeros_like(lengths)
        lstm = predictor.lstm
        self._hidden = states.new_zeros(lstm.num_layers, batch, lstm.hidden_size)
        self._cell = torch.zeros_like(self._hidden)
        start = torch.full_like(lengths, predictor.shape.vocabulary)
        self._hidden, self._cell = self._predict(start)
        self._predicted = joint.pred(self._hidden[-1])

    @property
    def active(self) -> Tensor:
        """(B,) rows that have frames left."""
        return self.frame < self._lengths

    def score(self) -> Tensor:
        """(B, tokens + blank + durations) logits of every row at its frame."""
        last = self._encoded.shape[1] - 1
        return self._joint.logits(
            self._encoded[self._rows, self.frame.clamp(max=last)] + self._predicted
        )

    def advance(self, tokens: Tensor, emitted: Tensor, durations: Tensor, max_symbols: int) -> None:
        """Move every active row, and feed the predictor of those that emitted."""
        moved = torch.where(emitted, durations, durations.clamp(min=1))
        stayed = emitted & (moved == 0)
        self._symbols_here = torch.where(stayed, self._symbols_here + 1, 0)
        stuck = self._symbols_here >= max_symbols
        self._symbols_here = self._symbols_here.masked_fill(stuck, 0)
        self.frame = torch.where(self.active, self.frame + moved + stuck, self.frame)
        if bool(emitted.any()):
            hidden, cell = self._predict(tokens)
            self._hidden = torch.where(emitted[None, :, None], hidden, self._hidden)
            self._cell = torch.where(emitted[None, :, None], cell, self._cell)
            self._predicted = self._joint.pred(self._hidden[-1])

    def _predict(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_step(
            self._predictor.lstm, self._predictor.embed(tokens), self._hidden, self._cell
        )


def lstm_step(lstm: nn.LSTM, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a stack of LSTM layers as plain matrix products.

    (B, width) inputs and (layers, B, width) state -> the next (layers, B, width) state. torch's
    own LSTM repacks its weights at every call, which costs more than a step.
    """
    next_hidden, next_cell = [], []
    for layer in range(lstm.num_layers):
        weights = (getattr(lstm, f"{name}_l{layer}") for name in _LSTM_WEIGHTS)
        weight_inputs, weight_hidden, bias_inputs, bias_hidden = weights
        gates = torch.addmm(bias_inputs, inputs, weight_inputs.t())
        gates = gates + torch.addmm(bias_hidden, hidden[layer], weight_hidden.t())
        into, keep, fresh, out = gates.chunk(4, dim=1)
        memory = keep.sigmoid() * cell[layer] + into.sigmoid() * fresh.tanh()
        inputs = out.sigmoid() * memory.tanh()
        next_hidden.append(inputs)
        next_cell.append(memory)
    return torch.stack(next_hidden), torch.stack(next_cell)


_LSTM_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _rows(steps: list[_Step], batch: int) -> list[tuple[Emission, ...]]:
    rows: list[list[Emission]] = [[] for _ in range(batch)]
    if not steps:
        return [() for _ in rows]
    emitted = torch.stack([step.emitted for step in steps]).cpu()
    tokens = torch.stack([step.tokens for step in steps])[emitted].tolist()
    frames = torch.stack([step.frames for step in steps])[emitted].tolist()
    durations = torch.stack([step.durations for step in steps])[emitted].tolist()
    logprobs = torch.stack([step.logprobs for step in steps])[emitted].tolist()
    owners = emitted.nonzero()[:, 1].tolist()
    for row, *emission in zip(owners, tokens, frames, durations, logprobs, strict=True):
        rows[row].append(Emission(*emission))
    return [tuple(row) for row in rows]
