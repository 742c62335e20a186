"""Buffers of a search: allocated once, at fixed addresses that CUDA graphs refer to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from parakeet_worker.engine.native.kernels import joint_scores, search_step
from parakeet_worker.engine.native.kernels.joint_scores import Partials
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.search.emissions import Array
from parakeet_worker.engine.native.search.weights import SearchWeights


@dataclass(frozen=True, slots=True)
class Limits:
    """Capacity of the workspace."""

    rows: int = 256
    """Rows of a group, one of 16, 32, 64, 128 and 256."""
    tokens: int = 98_304
    """Encoder frames of a group: 256 rows of 30 s are 96,000."""
    slots: int = 8
    """Slots of the logit-bias table, the first of which stays zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Workspace:
    """Inputs and outputs of the steps for the largest group; buckets use a prefix of each."""

    encoded: Tensor
    """(tokens, J): the frames of all rows."""
    non_finite: Tensor
    """(tokens + 1,) int32: number of non-finite frames before each frame."""
    row_state: Tensor
    """(8, rows) int32: storage of `SearchRows`."""
    hidden: Tensor
    """(2, layers, rows, H): before and after a step, alternating."""
    cell: Tensor
    """(layers, rows, H)."""
    joint: Tensor
    """(rows, J): hidden layer of the joint network."""
    partials: Tensor
    """(4, blocks + 1, rows) flat, for `Partials`, without the indices."""
    best_index: Tensor
    """(blocks + 1, rows) int32, flat."""
    record: Tensor
    """(tokens + 1, 4) int32: the emissions; the last line is the overflow slot."""
    remaining: Tensor
    """(tiles,) int32: the maximum of the remaining frames over each tile of rows."""
    host_row_state: Tensor
    host_record: Tensor
    host_counts: Tensor

    @classmethod
    def empty(
        cls, weights: SearchWeights, limits: Limits, tiles: Tiles, device: torch.device
    ) -> "Workspace":
        rows, tokens = limits.rows, limits.tokens
        lstm_width, joint_width = weights.predict.shape
        layers = len(weights.layers)
        blocks = joint_scores.blocks(weights.tokens, tiles.joint_scores) + 1

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        def on_host(*shape: int) -> Tensor:
            buffer = torch.zeros(*shape, dtype=torch.int32)
            return buffer.pin_memory() if device.type == "cuda" else buffer

        return cls(
            encoded=zeros(tokens, joint_width, dtype=weights.predict.dtype),
            non_finite=zeros(tokens + 1, dtype=torch.int32),
            row_state=zeros(SearchRows.field_count(), rows, dtype=torch.int32),
            hidden=zeros(2, layers, rows, lstm_width),
            cell=zeros(layers, rows, lstm_width),
            joint=zeros(rows, joint_width, dtype=weights.predict.dtype),
            partials=zeros(4, blocks * rows),
            best_index=zeros(blocks * rows, dtype=torch.int32),
            record=zeros(tokens + 1, search_step.RECORD_COLUMNS, dtype=torch.int32),
            remaining=zeros(-(-rows // tiles.search_step.rows), dtype=torch.int32),
            host_row_state=on_host(SearchRows.field_count(), rows),
            host_record=on_host(tokens, search_step.RECORD_COLUMNS),
            host_counts=on_host(rows),
        )

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        buffers = (self.encoded, self.non_finite, self.hidden, self.cell, self.joint)
        return sum(
            buffer.nbytes for buffer in (*buffers, self.partials, self.best_index, self.record)
        )

    def view(self, rows: int) -> "WorkspaceView":
        """The buffers of a bucket of `rows`."""
        blocks = self.best_index.numel() // self.row_state.shape[1]
        maximum, exp_sum, best_score, best_logit, best_index = (
            part[: blocks * rows].view(blocks, rows) for part in (*self.partials, self.best_index)
        )
        return WorkspaceView(
            workspace=self,
            rows=SearchRows.of(self.row_state, rows),
            hidden=[[layer[:rows] for layer in buffer] for buffer in self.hidden],
            cell=[layer[:rows] for layer in self.cell],
            joint=self.joint[:rows],
            partials=Partials(maximum, exp_sum, best_score, best_logit, best_index),
        )

    def fetch(self, tokens: int) -> tuple[Array, Array]:
        """Copy the first `tokens` lines of the record and the counts of all rows to the host."""
        record, counts = self.host_record[:tokens], self.host_counts
        record.copy_(self.record[:tokens], non_blocking=True)
        counts.copy_(SearchRows.of(self.row_state, len(counts)).counts, non_blocking=True)
        if self.record.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        # The next group overwrites the pinned buffer.
        return record.numpy().copy(), counts.numpy()


@dataclass(frozen=True, slots=True, eq=False)
class WorkspaceView:
    """Prefixes of the workspace's buffers, for one bucket."""

    workspace: Workspace
    rows: SearchRows
    hidden: list[list[Tensor]]
    cell: list[Tensor]
    joint: Tensor
    partials: Partials
