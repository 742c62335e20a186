"""The greedy TDT search of `decoder` as five kernels per step, in CUDA graphs of several steps.

A step never synchronises with the host, and its buffers have fixed addresses. A graph is replayed
until no row has frames left. `GreedyDecoder` is the reference; it also decodes rows that do not
fit the workspace.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parakeet_worker.engine.native.decoder import GreedyDecoder, Scorer
from parakeet_worker.engine.native.kernels.search_rows import FAILED, SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.search.emissions import Emissions, SearchResult
from parakeet_worker.engine.native.search.groups import Group, row_offsets, split
from parakeet_worker.engine.native.search.operations import SearchKernels
from parakeet_worker.engine.native.search.progress import Progress
from parakeet_worker.engine.native.search.step_loop import STEPS_PER_REPLAY, StepLoop
from parakeet_worker.engine.native.search.weights import SearchModel, SearchWeights
from parakeet_worker.engine.native.search.workspace import Limits, Workspace

_BUCKET_ROWS = (16, 32, 64, 128, 256)
_PROJECTED_FRAMES = 16_384  # frames converted and projected per pass: bounds the memory


class GraphSearch:
    """Decodes packed rows with per-row logit biases, on one device and in one workspace.

    After `capture`, which captures all CUDA graphs, `decode` allocates next to nothing. It uses the
    current stream and returns when that has finished: call it from a dedicated thread and stream
    (`torch.cuda.stream`), one call at a time, with states that the stream has waited for.
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

        `kernels` default to Triton on a GPU and to plain PyTorch on other devices.
        """
        self._device = device
        self._limits = limits or Limits()
        assert self._limits.rows in _BUCKET_ROWS
        self._tiles = tiles or Tiles()
        if kernels is None and device.type == "cuda":
            kernels = SearchKernels.triton(self._tiles)
        self._kernels = kernels or SearchKernels.reference()
        self._weights = SearchWeights.of(
            model, dtype, device, self._limits.slots, self._tiles.joint_scores
        )
        self._workspace = Workspace.empty(self._weights, self._limits, self._tiles, device)
        scorer = Scorer(model.predictor, model.joint, model.activation, Precision.FP32)
        self._reference = GreedyDecoder(scorer, model.durations, model.max_symbols)
        self._uses_reference = False
        self._model = model
        max_advance = STEPS_PER_REPLAY * max(1, *model.durations)
        self._progress = Progress(self._workspace.remaining, max_advance)
        self._loops = {
            rows: self._step_loop(rows) for rows in _BUCKET_ROWS if rows <= self._limits.rows
        }

    @property
    def memory_bytes(self) -> int:
        """Device memory of weights and workspace."""
        return self._weights.nbytes + self._workspace.nbytes

    def set_logit_bias(self, slot: int, bias: Tensor) -> None:
        """Add (V + 1,) `bias` to the logits of the slot's rows; minus infinity forbids a token.

        Log-probabilities are computed without it. Slot 0 is reserved for no bias.
        """
        assert 0 < slot < self._limits.slots
        self._weights.logit_bias[slot, : self._weights.tokens].copy_(bias)

    @torch.inference_mode()
    def capture(self) -> None:
        """Compile the kernels and capture a CUDA graph for each bucket of rows.

        On a CPU, or with a reference among the kernels, steps are launched one by one instead.
        """
        if self._device.type != "cuda" or not self._kernels.capturable:
            return
        self._workspace.row_state.zero_()
        for loop in self._loops.values():
            loop.capture()

    def record_steps(self) -> None:
        """Launch every kernel of a search, to record the launches: see `launcher.recording`."""
        encode = self._weights.encode
        self._kernels.product(encode.new_empty(1, encode.shape[1]), encode)
        for loop in self._loops.values():
            loop.run()

    @torch.inference_mode()
    def decode(
        self, states: Tensor, lengths: Sequence[int], slots: Sequence[int] = ()
    ) -> SearchResult:
        """(N, encoder width) states of rows of `lengths`, packed end to end -> their emissions.

        N may exceed the sum of the lengths. `slots` are the rows' slots in the logit-bias table,
        by default 0.
        """
        lengths = [int(length) for length in lengths]
        slots = [int(slot) for slot in slots] if len(slots) else [0] * len(lengths)
        assert len(slots) == len(lengths)
        assert all(0 <= slot < self._limits.slots for slot in slots)
        if self._uses_reference:
            return self.decode_reference(states, lengths, slots)
        rows: list[Emissions | None] = []
        for group in split(lengths, slots, self._limits):
            if group.tokens > self._limits.tokens:
                first, slot = group.first_token, group.slots[0]
                rows.append(self._reference_row(states, first, group.tokens, slot))
            else:
                rows.extend(self._decode_group(states, group))
        return SearchResult.of(rows)

    @torch.inference_mode()
    def decode_reference(
        self, states: Tensor, lengths: Sequence[int], slots: Sequence[int]
    ) -> SearchResult:
        """Same as `decode`, row by row in plain PyTorch: the reference and the fallback."""
        return SearchResult.of(
            [
                self._reference_row(states, first, length, slot)
                for first, length, slot in zip(row_offsets(lengths), lengths, slots, strict=True)
            ]
        )

    def use_reference(self) -> None:
        """Switch `decode` to plain PyTorch permanently: the kernels' results are incorrect."""
        self._uses_reference = True

    def _decode_group(self, states: Tensor, group: Group) -> list[Emissions | None]:
        """Emissions of every row of a group; None for rows that are not finite."""
        loop = self._loops[next(rows for rows in self._loops if rows >= len(group.lengths))]
        order = self._write_row_state(group)
        loop.start(self._project(states, group))
        self._progress.start(max(group.lengths))
        while self._progress.unfinished:
            loop.run()
            self._progress.update(loop.row_tiles)
        return self._collect(states, group, order)

    def _project(self, states: Tensor, group: Group) -> Tensor:
        """(tokens, J) projected states of a group, in the workspace."""
        encoded = self._workspace.encoded[: group.tokens]
        group_states = states[group.first_token : group.first_token + group.tokens]
        for first in range(0, group.tokens, _PROJECTED_FRAMES):
            part, out = (
                tensor[first : first + _PROJECTED_FRAMES] for tensor in (group_states, encoded)
            )
            out.copy_(self._kernels.product(part.to(out.dtype), self._weights.encode))
        return encoded

    def _collect(
        self, states: Tensor, group: Group, order: Sequence[int]
    ) -> list[Emissions | None]:
        """Fetch the emissions; decode rows that exceeded their capacity with the reference."""
        record, counts = self._workspace.fetch(group.tokens)
        results: list[Emissions | None] = [None] * len(group.lengths)
        offsets = group.offsets
        for index, row in enumerate(order):
            count, offset = int(counts[index]), offsets[row]
            if count > group.lengths[row]:
                first = group.first_token + offset
                results[row] = self._reference_row(
                    states, first, group.lengths[row], group.slots[row]
                )
            elif count != FAILED:
                results[row] = Emissions.of(record[offset : offset + count])
        return results

    def _write_row_state(self, group: Group) -> list[int]:
        """Copy the group's layout to the device; return its rows in the order of their indices.

        Rows are sorted by length, longest first, so that the rows of a tile finish together.
        """
        order = sorted(range(len(group.lengths)), key=lambda row: -group.lengths[row])
        host = self._workspace.host_row_state
        host.zero_()
        rows = SearchRows.of(host, len(order))
        for target, values in (
            (rows.offsets, group.offsets),
            (rows.lengths, group.lengths),
            (rows.slots, group.slots),
        ):
            target.copy_(torch.tensor([values[row] for row in order], dtype=torch.int32))
        # The first input of the prediction network is the blank, the start-of-sequence token.
        rows.tokens.fill_(self._weights.blank)
        rows.emitted.fill_(1)
        self._workspace.row_state.copy_(host, non_blocking=True)
        return order

    def _reference_row(
        self, states: Tensor, first_token: int, tokens: int, slot: int
    ) -> Emissions | None:
        row = states[first_token : first_token + tokens].float().unsqueeze(0)
        if not bool(row.isfinite().all()):
            return None
        length = torch.tensor([tokens], device=row.device)
        bias = self._weights.logit_bias[slot : slot + 1, : self._weights.tokens] if slot else None
        return Emissions.from_objects(self._reference.decode(row, length, bias)[0])

    def _step_loop(self, rows: int) -> StepLoop:
        tiles = self._tiles

        def fitted(tile: Tile) -> Tile:
            return tile if self._kernels.reproducible else replace(tile, rows=min(tile.rows, rows))

        fitted_tiles = replace(
            tiles,
            lstm=fitted(tiles.lstm),
            joint_hidden=fitted(tiles.joint_hidden),
            joint_scores=fitted(tiles.joint_scores),
        )
        view = self._workspace.view(rows)
        return StepLoop(self._weights, view, self._kernels, fitted_tiles, self._model)
