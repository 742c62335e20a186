"""Prediction network, joint network and greedy TDT decoding.

Xu et al., "Efficient Sequence Transduction by Jointly Predicting Tokens and Durations", 2023.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_worker.engine.native.config_section import ConfigSection
from parakeet_worker.engine.native.precision import (
    Linear,
    Precision,
    linear,
    linear_by_rows,
)
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
_OUTPUTS = re.compile(r"joint_net\.[12]\.weight")


@dataclass(frozen=True, slots=True)
class PredictorConfig:
    """Hyperparameters of the prediction network, from a checkpoint."""

    vocabulary: int
    width: int
    layers: int
    dropout: float

    @classmethod
    def from_nemo(cls, section: Mapping[str, object]) -> "PredictorConfig":
        """From NeMo's `decoder` section; raises `WeightsUnsupported`."""
        options = ConfigSection("decoder", section)
        options.expect_target("RNNTDecoder")
        network = options.subsection("prednet")
        config = cls(
            vocabulary=options.get_int("vocab_size"),
            width=network.get_int("pred_hidden"),
            layers=network.get_int("pred_rnn_layers", 1),
            dropout=network.get_float("dropout", 0.0),
        )
        network.get_choice("norm", None, default=None)
        network.get_choice("rnn_hidden_size", -1, default=-1)
        network.ignore(
            "t_max", "forget_gate_bias", "weights_init_scale", "hidden_hidden_bias_scale"
        )
        network.reject_unread()
        options.get_choice("normalization_mode", None, default=None)
        options.get_choice("blank_as_pad", True, default=True)
        options.ignore("random_state_sampling")
        options.reject_unread()
        return config


@dataclass(frozen=True, slots=True)
class JointConfig:
    """Hyperparameters of the joint network, from a checkpoint."""

    vocabulary: int
    durations: int
    encoder_width: int
    predictor_width: int
    width: int
    activation: str
    dropout: float

    @classmethod
    def from_nemo(cls, section: Mapping[str, object]) -> "JointConfig":
        """From NeMo's `joint` section; raises `WeightsUnsupported`."""
        options = ConfigSection("joint", section)
        options.expect_target("RNNTJoint")
        network = options.subsection("jointnet")
        config = cls(
            vocabulary=options.get_int("num_classes"),
            durations=options.get_int("num_extra_outputs", 0),
            encoder_width=network.get_int("encoder_hidden"),
            predictor_width=network.get_int("pred_hidden"),
            width=network.get_int("joint_hidden"),
            activation=str(network.get_choice("activation", *_ACTIVATIONS, default="relu")),
            dropout=network.get_float("dropout", 0.0),
        )
        network.reject_unread()
        options.get_choice("masking_prob", -1, -1.0, default=-1)
        options.ignore("vocabulary", "log_softmax", "preserve_memory", "fuse_loss_wer")
        options.ignore("fused_batch_size", "experimental_fuse_loss_wer")
        options.reject_unread()
        return config


class Predictor(nn.Module):
    """The prediction network: an embedding and an LSTM over the emitted tokens.

    The embedding of blank is the zero vector and represents the start of the utterance.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        rnn = nn.Module()
        rnn.lstm = nn.LSTM(
            config.width, config.width, config.layers, dropout=config.dropout, batch_first=True
        )
        embed = nn.Embedding(config.vocabulary + 1, config.width, padding_idx=config.vocabulary)
        self.prediction = nn.ModuleDict({"embed": embed, "dec_rnn": rnn})

    @classmethod
    def from_config(cls, section: Mapping[str, object]) -> "Predictor":
        return cls(PredictorConfig.from_nemo(section))

    @property
    def lstm(self) -> nn.LSTM:
        lstm = self.prediction["dec_rnn"].lstm
        assert isinstance(lstm, nn.LSTM)
        return lstm

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.prediction["embed"](tokens)
        return embedded

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, U) token ids -> (B, U+1, width) states, after the start and after each token."""
        start = tokens.new_full((tokens.shape[0], 1), self.config.vocabulary)
        states: Tensor = self.lstm(self.embed(torch.cat((start, tokens), dim=1)))[0]
        return states


class Joint(nn.Module):
    """The joint network: logits of tokens and durations for an encoder and a predictor state."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.config = config
        self.enc = nn.Linear(config.encoder_width, config.width)
        self.pred = nn.Linear(config.predictor_width, config.width)
        dropout = [nn.Dropout(config.dropout)] if config.dropout > 0 else []
        outputs = nn.Linear(config.width, config.vocabulary + 1 + config.durations)
        self.joint_net = nn.Sequential(_ACTIVATIONS[config.activation](), *dropout, outputs)

    @classmethod
    def from_config(cls, section: Mapping[str, object]) -> "Joint":
        return cls(JointConfig.from_nemo(section))

    def logits(self, projected: Tensor) -> Tensor:
        """(..., width) sum of both projections -> (..., tokens + blank + durations) logits."""
        scores: Tensor = self.joint_net(projected)
        return scores


@dataclass(frozen=True, slots=True)
class Emission:
    """A token emitted by the greedy search."""

    token: int
    frame: int
    duration: int
    logprob: float


class Scorer:
    """Prediction and joint network as matrix products, in int8 or float32.

    A step of the search reads every weight for a few rows, so that on a CPU its time is
    proportional to the size of the weights.
    """

    def __init__(
        self, predictor: Tensors, joint: Tensors, activation: str, precision: Precision
    ) -> None:
        """`predictor` and `joint` are the state dicts of `Predictor` and `Joint`."""
        stored_as = Precision.INT8 if precision is Precision.INT8 else Precision.FP32
        self._embedding = predictor["prediction.embed.weight"]
        self.blank = len(self._embedding) - 1
        self._activation = _FUNCTIONS[activation]
        self._encode = linear(strip_prefix("enc", joint), Precision.FP32)
        self.width = len(joint["enc.weight"])
        self._predict, self._outputs = (
            _linear_by_rows(strip_prefix(part, joint), stored_as)
            for part in ("pred", joint_outputs(joint))
        )
        lstm = strip_prefix("prediction.dec_rnn.lstm", predictor)
        self._layers = [
            [
                _linear_by_rows(
                    {part: lstm[f"{part}_{side}_l{layer}"] for part in ("weight", "bias")},
                    stored_as,
                )
                for side in ("ih", "hh")
            ]
            for layer in range(sum(name.startswith("weight_hh_l") for name in lstm))
        ]

    @classmethod
    def of(cls, predictor: Predictor, joint: Joint, precision: Precision) -> "Scorer":
        """Construct from the modules."""
        weights = (predictor.state_dict(), joint.state_dict())
        return cls(*weights, joint.config.activation, precision)

    def encode(self, states: Tensor) -> Tensor:
        """Project encoder states for all steps, (B, T, encoder width) -> (B, T, width)."""
        return self._encode(states)

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell state before the first token, (layers, B, hidden) each."""
        hidden = self._embedding.shape[1]
        zeros = like.new_zeros(len(self._layers), batch, hidden, dtype=torch.float32)
        return zeros, zeros.clone()

    def step(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the LSTM by one token per row; returns the new hidden and cell state.

        Not `nn.LSTM`, which repacks its weights on every call and so takes longer than the step.
        """
        inputs = functional.embedding(tokens, self._embedding)
        next_hidden, next_cell = [], []
        for layer, (from_inputs, from_hidden) in enumerate(self._layers):
            gates = from_inputs(inputs) + from_hidden(hidden[layer])
            into, keep, fresh, out = gates.chunk(4, dim=1)
            memory = keep.sigmoid() * cell[layer] + into.sigmoid() * fresh.tanh()
            inputs = out.sigmoid() * memory.tanh()
            next_hidden.append(inputs)
            next_cell.append(memory)
        return torch.stack(next_hidden), torch.stack(next_cell)

    def predict(self, hidden: Tensor) -> Tensor:
        """Project the predictor state, (layers, B, hidden) -> (B, width)."""
        return self._predict(hidden[-1])

    def score(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """(B, width) projections -> (B, tokens + blank + durations) logits."""
        return self._outputs(self._activation(encoded + predicted))


def joint_outputs(joint: Tensors) -> str:
    """Name of the joint network's last layer, whose index depends on its dropout."""
    name = next(name for name in joint if _OUTPUTS.fullmatch(name))
    return name.removesuffix(".weight")


def _linear_by_rows(matrix: Tensors, precision: Precision) -> Linear:
    return linear_by_rows(matrix["weight"], matrix["bias"], precision)


class GreedyDecoder:
    """Batched greedy TDT search; each row advances at its own frame.

    Per step, each row scores its current frame with its predictor state, takes the argmax token
    and duration, and advances by that duration. Blank advances by at least one frame;
    `max_symbols` tokens without advancing force one frame. Equal to NeMo's label-looping TDT
    decoder, run utterance by utterance.
    """

    def __init__(self, scorer: Scorer, durations: tuple[int, ...], max_symbols: int) -> None:
        self._scorer = scorer
        self._durations = durations
        self._max_symbols = max_symbols
        self._blank = scorer.blank

    @torch.inference_mode()
    def decode(
        self, states: Tensor, lengths: Tensor, bias: Tensor | None = None
    ) -> list[tuple[Emission, ...]]:
        """(B, T, width) states and (B,) valid frames -> the emissions of each row, in order.

        `bias`, (B, tokens + blank), is added to the token logits before the argmax; minus infinity
        masks a token. Log-probabilities are computed without it.
        """
        search = _SearchState(self._scorer, states, lengths)
        durations = torch.tensor(self._durations, device=states.device)
        steps: list[_Step] = []
        while bool(search.active.any()):
            scores = search.score()
            token_scores = scores[:, : self._blank + 1]
            tokens = (token_scores if bias is None else token_scores + bias).argmax(dim=1)
            advances = durations[scores[:, self._blank + 1 :].argmax(dim=1)]
            emitted = search.active & (tokens != self._blank)
            best = token_scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
            logprobs = best - token_scores.logsumexp(dim=1)
            steps.append(_Step(emitted, tokens, search.frame.clone(), advances, logprobs))
            search.advance(tokens, emitted, advances, self._max_symbols)
        return _rows(steps, states.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One search step of all rows; entries of rows that did not emit are undefined."""

    emitted: Tensor
    tokens: Tensor
    frames: Tensor
    durations: Tensor
    logprobs: Tensor


class _SearchState:
    """State of every row: frame, predictor state, and symbols emitted at the frame."""

    def __init__(self, scorer: Scorer, states: Tensor, lengths: Tensor) -> None:
        batch = states.shape[0]
        self._scorer = scorer
        self._encoded = scorer.encode(states)
        self._lengths = lengths.clamp(max=states.shape[1])
        self._rows = torch.arange(batch, device=states.device)
        self.frame = torch.zeros_like(lengths)
        self._symbols_here = torch.zeros_like(lengths)
        start = torch.full_like(lengths, scorer.blank)
        self._hidden, self._cell = scorer.step(start, *scorer.initial_state(batch, states))
        self._predicted = scorer.predict(self._hidden)

    @property
    def active(self) -> Tensor:
        """(B,) mask of rows with frames left."""
        return self.frame < self._lengths

    def score(self) -> Tensor:
        """(B, tokens + blank + durations) logits at the frame of each row."""
        last = self._encoded.shape[1] - 1
        here = self._encoded[self._rows, self.frame.clamp(max=last)]
        return self._scorer.score(here, self._predicted)

    def advance(self, tokens: Tensor, emitted: Tensor, durations: Tensor, max_symbols: int) -> None:
        """Advance every active row, and step the predictor of rows that emitted."""
        moved = torch.where(emitted, durations, durations.clamp(min=1))
        stayed = emitted & (moved == 0)
        self._symbols_here = torch.where(stayed, self._symbols_here + 1, 0)
        stuck = self._symbols_here >= max_symbols
        self._symbols_here = self._symbols_here.masked_fill(stuck, 0)
        self.frame = torch.where(self.active, self.frame + moved + stuck, self.frame)
        if bool(emitted.any()):
            hidden, cell = self._scorer.step(tokens, self._hidden, self._cell)
            self._hidden = torch.where(emitted[None, :, None], hidden, self._hidden)
            self._cell = torch.where(emitted[None, :, None], cell, self._cell)
            self._predicted = self._scorer.predict(self._hidden)


def _rows(steps: list[_Step], batch: int) -> list[tuple[Emission, ...]]:
    rows: list[list[Emission]] = [[] for _ in range(batch)]
    if not steps:
        return [() for _ in rows]
    emitted = torch.stack([step.emitted for step in steps]).cpu()
    tokens = torch.stack([step.tokens for step in steps])[emitted].tolist()
    frames = torch.stack([step.frames for step in steps])[emitted].tolist()
    durations = torch.stack([step.durations for step in steps])[emitted].tolist()
    logprobs = torch.stack([step.logprobs for step in steps])[emitted].tolist()
    row_of = emitted.nonzero()[:, 1].tolist()
    for row, *emission in zip(row_of, tokens, frames, durations, logprobs, strict=True):
        rows[row].append(Emission(*emission))
    return [tuple(row) for row in rows]
