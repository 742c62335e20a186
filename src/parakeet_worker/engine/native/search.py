"""The greedy TDT search of `decoder` as five kernels a step, in CUDA graphs of several steps.

A step asks the host nothing and writes to buffers that never move. A graph is replayed until no
row has frames left. How many are left is read one replay late, so that the GPU does not wait for
the host, until the next replay may be the last. `GreedyDecoder` stays the definition of correct,
and decodes the rows that the buffers have no room for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Scorer, joint_outputs
from parakeet_worker.engine.native.kernels import (
    joint_hidden,
    joint_scores,
    lstm,
    product,
    search_step,
)
from parakeet_worker.engine.native.kernels.joint_scores import Partials
from parakeet_worker.engine.native.kernels.lstm import Layer
from parakeet_worker.engine.native.kernels.search_rows import FAILED, SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix

_STEPS_PER_REPLAY = 16  # even: hidden states alternate between two buffers
_BUCKETS = (16, 32, 64, 128, 256)
_PROJECTED = 16_384  # frames that are converted and projected at once: bounds the memory for it

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SearchKernels:
    """The operations of a search; any of them may be replaced by the reference of its module."""

    product: Callable[..., Tensor]
    """Projects the encoder's states, once for all steps."""
    lstm: Callable[..., None]
    joint_hidden: Callable[..., None]
    joint_scores: Callable[..., None]
    search_step: Callable[..., None]
    reproducible: bool = False
    """Whether a row has the same result beside any others: the same tiles for any number."""

    @property
    def blocks(self) -> bool:
        """Whether a reference is among them, which no CUDA graph can hold."""
        modules = (lstm, joint_hidden, joint_scores, search_step)
        steps = (self.lstm, self.joint_hidden, self.joint_scores, self.search_step)
        return any(step is module.reference for step, module in zip(steps, modules, strict=True))

    @classmethod
    def triton(cls, tiles: Tiles, *, reproducible: bool = False) -> "SearchKernels":
        """The Triton kernels; the product is cuBLAS's, unless it must be `reproducible`."""
        return cls(
            partial(product.launch, tile=tiles.product) if reproducible else product.library,
            lstm.launch,
            joint_hidden.launch,
            joint_scores.launch,
            search_step.launch,
            reproducible,
        )

    @classmethod
    def reference(cls) -> "SearchKernels":
        """Plain PyTorch for all of them, on any device."""
        modules = (product, lstm, joint_hidden, joint_scores, search_step)
        return cls(*(module.reference for module in modules))


@dataclass(frozen=True, slots=True, eq=False)
class SearchModel:
    """The parts of a checkpoint that the search needs, in float32 on the device."""

    predictor: Tensors
    """Of the prediction network, under the names of `decoder.Predictor`."""
    joint: Tensors
    """Of the joint network, under the names of `decoder.Joint`."""
    activation: str
    durations: tuple[int, ...]
    max_symbols: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the buffers have room for."""

    rows: int = 256
    """Rows of a group, one of 16, 32, 64, 128 and 256."""
    tokens: int = 98_304
    """Encoder frames of a group: 256 rows of 30 s are 96,000."""
    slots: int = 8
    """Lines in the table of additive scores, the first of which stays zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Emissions:
    """What one row emitted, in order: arrays of one length."""

    tokens: Array
    """Int32 token ids."""
    frames: Array
    """Int32 frames of the row that they were emitted at."""
    durations: Array
    """Int32 durations in frames."""
    logprobs: Array
    """Float32 log-probabilities."""

    @classmethod
    def of(cls, record: Array) -> "Emissions":
        """Views of the (n, 4) int32 lines that `search_step` writes."""
        tokens, frames, durations, bits = record.T
        return cls(tokens, frames, durations, bits.view(np.float32))

    @classmethod
    def from_objects(cls, emissions: Sequence[Emission]) -> "Emissions":
        """From what `GreedyDecoder` returns."""
        return cls(
            np.array([each.token for each in emissions], np.int32),
            np.array([each.frame for each in emissions], np.int32),
            np.array([each.duration for each in emissions], np.int32),
            np.array([each.logprob for each in emissions], np.float32),
        )

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What a batch of rows emitted."""

    rows: tuple[Emissions, ...]
    finite: Array
    """(R,) bool: false for rows with states or scores that are not finite; they are empty."""


class GraphSearch:
    """Decodes packed rows with per-row additive scores, on one device and in one set of buffers.

    After `prepare`, which captures all CUDA graphs, `decode` allocates next to nothing. It works
    on the current stream and returns when that has finished: call it in a thread and a stream of
    its own (`torch.cuda.stream`), one call at a time, with states that the stream has waited for.
    """

    def __init__(
        self,
        model: SearchModel,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float16,
        kernels: SearchKernels | None = None,
        tiles: Tiles | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`dtype` is that of weights and frames, float16 or float32; sums are float32.

        `kernels` are by default Triton's on a GPU and plain PyTorch elsewhere.
        """
        self._device = device
        self._limits = limits or Limits()
        assert self._limits.rows in _BUCKETS
        self._tiles = tiles or Tiles()
        if kernels is None and device.type == "cuda":
            kernels = SearchKernels.triton(self._tiles)
        self._kernels = kernels or SearchKernels.reference()
        self._weights = _Weights.of(
            model, dtype, device, self._limits.slots, self._tiles.joint_scores
        )
        self._buffers = _Buffers.empty(self._weights, self._limits, self._tiles, device)
        scorer = Scorer(model.predictor, model.joint, model.activation, Precision.FP32)
        self._plain = GreedyDecoder(scorer, model.durations, model.max_symbols)
        self._uses_plain = False
        self._model = model
        farthest = _STEPS_PER_REPLAY * max(1, *model.durations)
        self._progress = _Progress(self._buffers.left, farthest)
        self._buckets = {rows: self._bucket(rows) for rows in _BUCKETS if rows <= self._limits.rows}

    @property
    def memory_bytes(self) -> int:
        """Device memory of weights and buffers."""
        return self._weights.nbytes + self._buffers.nbytes

    def set_slot(self, slot: int, scores: Tensor) -> None:
        """Let `slot` add (V + 1,) `scores` to those of its rows; minus infinity forbids a token.

        Log-probabilities count all tokens all the same. Slot 0 adds nothing.
        """
        assert 0 < slot < self._limits.slots
        self._weights.table[slot, : self._weights.tokens].copy_(scores)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compile the kernels and capture a CUDA graph for each bucket.

        On a CPU, and with a reference among the kernels, steps run one by one.
        """
        if self._device.type != "cuda" or self._kernels.blocks:
            return
        self._buffers.layout.zero_()
        for bucket in self._buckets.values():
            bucket.capture()

    def record_steps(self) -> None:
        """Launch every kernel that a search needs, to record it: see `launcher.recording`."""
        encode = self._weights.encode
        self._kernels.product(encode.new_empty(1, encode.shape[1]), encode)
        for bucket in self._buckets.values():
            bucket.advance()

    @torch.inference_mode()
    def decode(
        self, states: Tensor, lengths: Sequence[int], slots: Sequence[int] = ()
    ) -> SearchResult:
        """(N, encoder width) states of rows of `lengths`, packed end to end -> what each emitted.

        N may exceed the sum of the lengths. `slots` are the rows' lines in the table of additive
        scores, by default 0.
        """
        lengths = [int(length) for length in lengths]
        slots = [int(slot) for slot in slots] if len(slots) else [0] * len(lengths)
        assert len(slots) == len(lengths)
        assert all(0 <= slot < self._limits.slots for slot in slots)
        if self._uses_plain:
            return self.decode_plainly(states, lengths, slots)
        rows: list[Emissions] = []
        finite: list[bool] = []
        for group in _groups(lengths, slots, self._limits):
            if group.tokens > self._limits.tokens:
                found = [self._plain_row(states, group.first_token, group.tokens, group.slots[0])]
            else:
                found = self._decode(states, group)
            rows.extend(emissions or _NOTHING for emissions in found)
            finite.extend(emissions is not None for emissions in found)
        return SearchResult(tuple(rows), np.array(finite, bool))

    @torch.inference_mode()
    def decode_plainly(
        self, states: Tensor, lengths: Sequence[int], slots: Sequence[int]
    ) -> SearchResult:
        """As `decode`, row by row in plain PyTorch: what it is compared with, and its fallback."""
        firsts = [0, *np.cumsum(lengths[:-1], dtype=int).tolist()]
        found = [
            self._plain_row(states, first, length, slot)
            for first, length, slot in zip(firsts, lengths, slots, strict=True)
        ]
        rows = tuple(emissions or _NOTHING for emissions in found)
        return SearchResult(rows, np.array([emissions is not None for emissions in found], bool))

    def use_plain(self) -> None:
        """Decode in plain PyTorch from now on: what the kernels give is not right."""
        self._uses_plain = True

    def _decode(self, states: Tensor, group: "_Group") -> list[Emissions | None]:
        """Of every row of a group; None for those that are not finite."""
        bucket = self._buckets[next(rows for rows in self._buckets if rows >= len(group.lengths))]
        order = self._lay_out(group)
        encoded = self._buffers.encoded[: group.tokens]
        mine = states[group.first_token : group.first_token + group.tokens]
        for first in range(0, group.tokens, _PROJECTED):
            part, out = (each[first : first + _PROJECTED] for each in (mine, encoded))
            out.copy_(self._kernels.product(part.to(out.dtype), self._weights.encode))
        bucket.start(encoded)
        self._progress.begin(max(group.lengths))
        while self._progress.unfinished:
            bucket.advance()
            self._progress.follow(bucket.tiles)
        record, counts = self._buffers.fetch(group.tokens)
        found: list[Emissions | None] = [None] * len(group.lengths)
        offset_of = group.offsets
        for line, row in enumerate(order):
            count, offset = int(counts[line]), offset_of[row]
            if count > group.lengths[row]:
                first = group.first_token + offset
                found[row] = self._plain_row(states, first, group.lengths[row], group.slots[row])
            elif count != FAILED:
                found[row] = Emissions.of(record[offset : offset + count])
        return found

    def _lay_out(self, group: "_Group") -> list[int]:
        """Bring the group's layout to the device; returns its rows in the order of their lines.

        Long rows come first, so that the rows of a tile end at about the same time.
        """
        order = sorted(range(len(group.lengths)), key=lambda row: -group.lengths[row])
        host = self._buffers.host_layout
        host.zero_()
        rows = SearchRows.of(host, len(order))
        for line, column in (
            (rows.offsets, group.offsets),
            (rows.lengths, group.lengths),
            (rows.slots, group.slots),
        ):
            line.copy_(torch.tensor([column[row] for row in order], dtype=torch.int32))
        # The predictor's first input is the blank, which stands for the start.
        rows.tokens.fill_(self._weights.tokens - 1)
        rows.emitted.fill_(1)
        self._buffers.layout.copy_(host, non_blocking=True)
        return order

    def _plain_row(
        self, states: Tensor, first_token: int, tokens: int, slot: int
    ) -> Emissions | None:
        row = states[first_token : first_token + tokens].float().unsqueeze(0)
        if not bool(row.isfinite().all()):
            return None
        length = torch.tensor([tokens], device=row.device)
        added = self._weights.table[slot : slot + 1, : self._weights.tokens] if slot else None
        return Emissions.from_objects(self._plain.decode(row, length, added)[0])

    def _bucket(self, rows: int) -> "_Bucket":
        tiles = self._tiles

        def fitted(tile: Tile) -> Tile:
            return tile if self._kernels.reproducible else replace(tile, rows=min(tile.rows, rows))

        fitting = replace(
            tiles,
            lstm=fitted(tiles.lstm),
            joint_hidden=fitted(tiles.joint_hidden),
            joint_scores=fitted(tiles.joint_scores),
        )
        return _Bucket(self._weights, self._buffers.view(rows), self._kernels, fitting, self._model)


_NOTHING = Emissions.from_objects(())


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are decoded together; they follow each other in the packed states."""

    first_token: int
    lengths: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def offsets(self) -> list[int]:
        """First token of each row, counted from the group's."""
        return [0, *np.cumsum(self.lengths[:-1], dtype=int).tolist()] if self.lengths else []


def _groups(lengths: Sequence[int], slots: Sequence[int], limits: Limits) -> Iterator[_Group]:
    """As many rows to a group as there is room for, but at least one."""
    first_row = first_token = tokens = 0
    for row, length in enumerate(lengths):
        if row > first_row and (row - first_row == limits.rows or tokens + length > limits.tokens):
            yield _Group(first_token, tuple(lengths[first_row:row]), tuple(slots[first_row:row]))
            first_row, first_token, tokens = row, first_token + tokens, 0
        tokens += length
    if first_row < len(lengths):
        yield _Group(first_token, tuple(lengths[first_row:]), tuple(slots[first_row:]))


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """The networks, laid out for the kernels; H is the width of the LSTM, J of the joint."""

    encode: Tensor
    """(J, encoder width); its bias is in that of `predict`."""
    layers: tuple[Layer, ...]
    predict: Tensor
    """(H, J)."""
    predict_bias: Tensor
    """(J,) float32."""
    outputs: Tensor
    """(V + 1 + durations, J)."""
    outputs_bias: Tensor
    """Float32."""
    tokens: int
    """V + 1: the blank is the last."""
    table: Tensor
    """(slots, V + 1 and padding) float32: additive scores."""
    durations: Tensor
    """(durations,) int32."""

    @classmethod
    def of(
        cls, model: SearchModel, dtype: torch.dtype, device: torch.device, slots: int, tile: Tile
    ) -> "_Weights":
        joint, outputs = model.joint, joint_outputs(model.joint)
        tokens = len(model.predictor["prediction.embed.weight"])
        return cls(
            encode=_copied(joint["enc.weight"], dtype),
            layers=tuple(_layers(model.predictor, dtype)),
            predict=_turned(joint["pred.weight"], dtype),
            predict_bias=(joint["pred.bias"] + joint["enc.bias"]).float(),
            outputs=_copied(joint[f"{outputs}.weight"], dtype),
            outputs_bias=_copied(joint[f"{outputs}.bias"], torch.float32),
            tokens=tokens,
            table=torch.zeros(
                slots, joint_scores.blocks(tokens, tile) * tile.columns, device=device
            ),
            durations=torch.tensor(model.durations, dtype=torch.int32, device=device),
        )

    @property
    def nbytes(self) -> int:
        layers = [part for layer in self.layers for part in (layer.from_inputs, layer.from_hidden)]
        return sum(
            part.nbytes for part in (self.encode, self.predict, self.outputs, self.table, *layers)
        )


def _copied(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In memory of its own, which is aligned; part of a mapped file may not be."""
    return weight.to(dtype, copy=True).contiguous()


def _turned(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.t().to(dtype).contiguous()


def _layers(predictor: Tensors, dtype: torch.dtype) -> Iterator[Layer]:
    lstm = strip_prefix("prediction.dec_rnn.lstm", predictor)
    for layer in range(sum(name.startswith("weight_hh_l") for name in lstm)):
        bias = (lstm[f"bias_ih_l{layer}"] + lstm[f"bias_hh_l{layer}"]).float()
        from_inputs = _turned(lstm[f"weight_ih_l{layer}"], dtype)
        if layer == 0:
            embedding = predictor["prediction.embed.weight"].float()
            from_inputs = embedding @ lstm["weight_ih_l0"].float().t() + bias
        yield Layer(from_inputs, bias, _turned(lstm[f"weight_hh_l{layer}"], dtype))


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """What the steps read and write, for the largest group; buckets use the beginnings."""

    encoded: Tensor
    """(tokens, J): the frames of all rows."""
    failing: Tensor
    """(tokens + 1,) int32: how many frames before each are not finite."""
    layout: Tensor
    """(8, rows) int32: `SearchRows`."""
    hidden: Tensor
    """(2, layers, rows, H): before and after a step, in turn."""
    cell: Tensor
    """(layers, rows, H)."""
    joined: Tensor
    """(rows, J)."""
    partials: Tensor
    """(4, blocks + 1, rows) flat, for `Partials`, without the indices."""
    indices: Tensor
    """(blocks + 1, rows) int32, flat."""
    record: Tensor
    """(tokens + 1, 4) int32: what was emitted."""
    left: Tensor
    """(tiles,) int32: the most frames that a row of each tile has left."""
    host_layout: Tensor
    host_record: Tensor
    host_counts: Tensor

    @classmethod
    def empty(
        cls, weights: _Weights, limits: Limits, tiles: Tiles, device: torch.device
    ) -> "_Buffers":
        rows, tokens = limits.rows, limits.tokens
        inner, width = weights.predict.shape
        layers = len(weights.layers)
        blocks = joint_scores.blocks(weights.tokens, tiles.joint_scores) + 1

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        def on_host(*shape: int) -> Tensor:
            kept = torch.zeros(*shape, dtype=torch.int32)
            return kept.pin_memory() if device.type == "cuda" else kept

        return cls(
            encoded=zeros(tokens, width, dtype=weights.predict.dtype),
            failing=zeros(tokens + 1, dtype=torch.int32),
            layout=zeros(SearchRows.lines(), rows, dtype=torch.int32),
            hidden=zeros(2, layers, rows, inner),
            cell=zeros(layers, rows, inner),
            joined=zeros(rows, width, dtype=weights.predict.dtype),
            partials=zeros(4, blocks * rows),
            indices=zeros(blocks * rows, dtype=torch.int32),
            record=zeros(tokens + 1, search_step.COLUMNS, dtype=torch.int32),
            left=zeros(-(-rows // tiles.search_step.rows), dtype=torch.int32),
            host_layout=on_host(SearchRows.lines(), rows),
            host_record=on_host(tokens, search_step.COLUMNS),
            host_counts=on_host(rows),
        )

    @property
    def nbytes(self) -> int:
        on_device = (self.encoded, self.failing, self.hidden, self.cell, self.joined)
        return sum(part.nbytes for part in (*on_device, self.partials, self.indices, self.record))

    def view(self, rows: int) -> "_View":
        blocks = self.indices.numel() // self.layout.shape[1]
        maximum, total, best, raw, indices = (
            part[: blocks * rows].view(blocks, rows) for part in (*self.partials, self.indices)
        )
        return _View(
            whole=self,
            rows=SearchRows.of(self.layout, rows),
            hidden=[[layer[:rows] for layer in side] for side in self.hidden],
            cell=[layer[:rows] for layer in self.cell],
            joined=self.joined[:rows],
            partials=Partials(maximum, total, best, raw, indices),
        )

    def fetch(self, tokens: int) -> tuple[Array, Array]:
        """The lines of the record and the counts of all rows, on the host."""
        record, counts = self.host_record[:tokens], self.host_counts
        record.copy_(self.record[:tokens], non_blocking=True)
        counts.copy_(SearchRows.of(self.layout, len(counts)).counts, non_blocking=True)
        if self.record.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        # The buffer is written again by the next group.
        return record.numpy().copy(), counts.numpy()


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The beginnings of the buffers, for a bucket."""

    whole: _Buffers
    rows: SearchRows
    hidden: list[list[Tensor]]
    cell: list[Tensor]
    joined: Tensor
    partials: Partials


class _Bucket:
    """Steps for up to so many rows, one by one or in a CUDA graph."""

    def __init__(
        self, weights: _Weights, at: _View, kernels: SearchKernels, tiles: Tiles, model: SearchModel
    ) -> None:
        self._weights = weights
        self._at = at
        self._kernels = kernels
        self._use = tiles
        self._model = model
        self._blank = weights.tokens - 1
        self.tiles = -(-len(at.rows.frames) // tiles.search_step.rows)
        """How many numbers of frames left a step writes."""
        self.advance: Callable[[], None] = self._steps
        """Run several steps."""

    def start(self, encoded: Tensor) -> None:
        """Begin all rows of the layout with (N, J) `encoded`; leave out what is not finite."""
        at, rows = self._at.whole, self._at.rows
        at.hidden[0].zero_()
        at.cell.zero_()
        # The sum of a frame is finite if all its values are: float32 has room for it.
        bad = ~encoded.sum(dim=1, dtype=torch.float32).isfinite()
        torch.cumsum(bad, dim=0, dtype=torch.int32, out=at.failing[1 : len(encoded) + 1])
        ends = at.failing[rows.offsets + rows.lengths]
        failing = ends != at.failing[rows.offsets]
        rows.counts.copy_(torch.where(failing, FAILED, 0))
        rows.lengths.masked_fill_(failing, 0)

    def capture(self) -> None:
        """Make a CUDA graph of the steps; they run once before, so that they are compiled."""
        self._steps()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._steps()
        self.advance = graph.replay

    def _steps(self) -> None:
        for step in range(_STEPS_PER_REPLAY):
            self._step(step % 2)

    def _step(self, side: int) -> None:
        at, use, weights = self._at, self._use, self._weights
        inputs = at.rows.tokens
        for layer, cell, before, after in zip(
            weights.layers, at.cell, at.hidden[side], at.hidden[1 - side], strict=True
        ):
            self._kernels.lstm(layer, inputs, at.rows.emitted, before, cell, after, tile=use.lstm)
            inputs = after
        self._kernels.joint_hidden(
            at.rows,
            at.whole.encoded,
            inputs,
            weights.predict,
            weights.predict_bias,
            at.joined,
            activation=self._model.activation,
            tile=use.joint_hidden,
        )
        self._kernels.joint_scores(
            at.rows,
            at.joined,
            weights.outputs,
            weights.outputs_bias,
            weights.table,
            at.partials,
            tokens=weights.tokens,
            tile=use.joint_scores,
        )
        self._kernels.search_step(
            at.rows,
            at.partials,
            weights.durations,
            at.whole.record,
            at.whole.left[: self.tiles],
            blank=self._blank,
            max_symbols=self._model.max_symbols,
            tile=use.search_step,
        )


class _Progress:
    """Follows how many frames are left, without making the GPU wait while many are."""

    def __init__(self, left: Tensor, farthest: int) -> None:
        """No row moves more than `farthest` frames from one `follow` to the next."""
        self._left = left
        self._farthest = farthest
        on_gpu = left.device.type == "cuda"
        self._events = [torch.cuda.Event() for _ in range(2)] if on_gpu else []
        self._copies = [torch.zeros(len(left), dtype=left.dtype) for _ in range(2)]
        if on_gpu:
            self._copies = [copy.pin_memory() for copy in self._copies]
        self._most = self._started = 0

    def begin(self, longest: int) -> None:
        """A group whose longest row has so many frames."""
        self._most, self._started = longest, 0

    @property
    def unfinished(self) -> bool:
        """Whether any row has frames left."""
        return self._most > 0

    def follow(self, tiles: int) -> None:
        """Once the next steps are started: look at what those before them left.

        Only where that is so little that these may be the last is it their result that is
        waited for.
        """
        turn = self._started % 2
        self._copies[turn].copy_(self._left, non_blocking=True)
        if self._events:
            self._events[turn].record()
        if self._started > 0:
            self._read(1 - turn, tiles)
        if self._most <= self._farthest:
            self._read(turn, tiles)
        self._started += 1

    def _read(self, turn: int, tiles: int) -> None:
        if self._events:
            self._events[turn].synchronize()
        self._most = int(self._copies[turn][:tiles].max())
