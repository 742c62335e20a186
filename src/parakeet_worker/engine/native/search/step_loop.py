"""Steps of a search for one bucket of rows, launched one by one or replayed as a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from parakeet_worker.engine.native.kernels.search_rows import FAILED
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.search.operations import SearchKernels
from parakeet_worker.engine.native.search.weights import SearchModel, SearchWeights
from parakeet_worker.engine.native.search.workspace import WorkspaceView

STEPS_PER_REPLAY = 16  # even: hidden states alternate between two buffers


class StepLoop:
    """Runs steps for up to a fixed number of rows."""

    def __init__(
        self,
        weights: SearchWeights,
        view: WorkspaceView,
        kernels: SearchKernels,
        tiles: Tiles,
        model: SearchModel,
    ) -> None:
        self._weights = weights
        self._view = view
        self._kernels = kernels
        self._tiles = tiles
        self._model = model
        self.row_tiles = -(-len(view.rows.frames) // tiles.search_step.rows)
        """Entries of `Workspace.remaining` that a step writes."""
        self.run: Callable[[], None] = self._launch_steps
        """Runs `STEPS_PER_REPLAY` steps."""

    def start(self, encoded: Tensor) -> None:
        """Initialise all rows for (N, J) `encoded` frames; rows with non-finite frames fail."""
        workspace, rows = self._view.workspace, self._view.rows
        workspace.hidden[0].zero_()
        workspace.cell.zero_()
        # The sum of a frame is finite if all its values are: float32 has sufficient range.
        non_finite = ~encoded.sum(dim=1, dtype=torch.float32).isfinite()
        cumulative = workspace.non_finite[1 : len(encoded) + 1]
        torch.cumsum(non_finite, dim=0, dtype=torch.int32, out=cumulative)
        at_end = workspace.non_finite[rows.offsets + rows.lengths]
        failing = at_end != workspace.non_finite[rows.offsets]
        rows.counts.copy_(torch.where(failing, FAILED, 0))
        rows.lengths.masked_fill_(failing, 0)

    def capture(self) -> None:
        """Capture the steps as a CUDA graph, after one warm-up run that compiles the kernels."""
        self._launch_steps()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU during the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._launch_steps()
        self.run = graph.replay

    def _launch_steps(self) -> None:
        for step in range(STEPS_PER_REPLAY):
            self._launch_step(step % 2)

    def _launch_step(self, source: int) -> None:
        """Read the hidden states from buffer `source`, write them to the other one."""
        view, tiles, weights = self._view, self._tiles, self._weights
        inputs = view.rows.tokens
        for layer, cell, hidden, next_hidden in zip(
            weights.layers, view.cell, view.hidden[source], view.hidden[1 - source], strict=True
        ):
            self._kernels.lstm(
                layer, inputs, view.rows.emitted, hidden, cell, next_hidden, tile=tiles.lstm
            )
            inputs = next_hidden
        self._kernels.joint_hidden(
            view.rows,
            view.workspace.encoded,
            inputs,
            weights.predict,
            weights.predict_bias,
            view.joint,
            activation=self._model.activation,
            tile=tiles.joint_hidden,
        )
        self._kernels.joint_scores(
            view.rows,
            view.joint,
            weights.outputs,
            weights.outputs_bias,
            weights.logit_bias,
            view.partials,
            tokens=weights.tokens,
            tile=tiles.joint_scores,
        )
        self._kernels.search_step(
            view.rows,
            view.partials,
            weights.durations,
            view.workspace.record,
            view.workspace.remaining[: self.row_tiles],
            blank=weights.blank,
            max_symbols=self._model.max_symbols,
            tile=tiles.search_step,
        )
