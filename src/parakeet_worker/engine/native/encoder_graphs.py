"""CUDA graphs for small batches: below about 16 chunks, launches take longer than the kernels.

Each bucket of tokens has one graph of the whole chain from samples to encoded frames. A batch is
copied into its bucket's buffers; rows and tokens that it does not fill are empty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parakeet_worker.engine.native.rows import FACTOR, Group, Plan, Rows, layout_words, view_layout
from parakeet_worker.engine.native.staging import Shape, Staged

ROWS = 16
BUCKET_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144)

Chain = Callable[[Tensor, Rows], Tensor]
"""(S,) int16 samples and their rows -> (N, width) encoded frames."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    shape: Shape
    words: Tensor
    rows: Rows
    encoded: Tensor
    replay: Callable[[], None]


class EncoderGraphs:
    """One graph per bucket, all captured by `capture`, none while serving."""

    def __init__(
        self,
        chain: Chain,
        device: torch.device,
        chunk_tokens: int,
        hop_samples: int,
        bucket_tokens: Sequence[int] = BUCKET_TOKENS,
    ) -> None:
        """`chunk_tokens` is the length of the longest chunk that a graph accepts."""
        self._bucket_tokens = tuple(sorted(bucket_tokens))
        self._chain = chain
        self._device = device
        self._chunk_tokens = chunk_tokens
        self._token_samples = FACTOR * hop_samples
        # In addition to whole tokens, each row has up to a hop of samples without a frame.
        capacity = self._bucket_tokens[-1] * self._token_samples + ROWS * hop_samples
        self._samples = torch.zeros(capacity, dtype=torch.int16, device=device)
        self._buckets: list[_Bucket] = []

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every bucket, largest first: the memory pool then fits the smaller ones."""
        pool = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            pool = torch.cuda.graph_pool_handle()
        buckets = [self._captured(tokens, pool) for tokens in reversed(self._bucket_tokens)]
        self._buckets = buckets[::-1]

    def shape_for(self, plan: Plan) -> Shape | None:
        """Shape of the smallest bucket that fits the batch, or None."""
        if len(plan.samples) > ROWS:
            return None
        tokens, longest = sum(plan.tokens), max(plan.tokens, default=0)
        for bucket in self._buckets:
            if tokens <= bucket.shape.tokens and longest <= bucket.shape.longest:
                return bucket.shape
        return None

    @torch.inference_mode()
    def __call__(self, staged: Staged, shape: Shape) -> Tensor:
        """(N, width) encoded frames of a batch that was staged in a shape from `shape_for`."""
        bucket = next(bucket for bucket in self._buckets if bucket.shape == shape)
        self._samples[: len(staged.samples)].copy_(staged.samples)
        bucket.words.copy_(staged.words)
        bucket.replay()
        # The next replay overwrites the buffer.
        return bucket.encoded.clone()

    def _captured(self, tokens: int, pool: Any) -> _Bucket:
        shape = Shape(ROWS, tokens, min(tokens, self._chunk_tokens))
        words = torch.zeros(layout_words(ROWS, tokens), dtype=torch.int32, device=self._device)
        rows = view_layout(words, ROWS, tokens, shape.longest, (Group(0, tokens),))
        rows.row_of.fill_(-1)
        if self._device.type != "cuda":
            return self._without_graph(shape, words, rows)
        # The capture stream does not wait for the current stream, which has written the layout.
        torch.cuda.current_stream(self._device).synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            self._chain(self._samples, rows)  # warm-up: no initialisation during the capture
            torch.cuda.current_stream(self._device).synchronize()
            # Voice activity detection may use the GPU in another thread. torch's context manager
            # would also collect garbage and empty the cache at each capture.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                encoded = self._chain(self._samples, rows)
            finally:
                graph.capture_end()
        return _Bucket(shape, words, rows, encoded, graph.replay)

    def _without_graph(self, shape: Shape, words: Tensor, rows: Rows) -> _Bucket:
        """A bucket on a CPU, whose replay runs the chain in the same buffers."""
        encoded = self._chain(self._samples, rows)

        def replay() -> None:
            encoded.copy_(self._chain(self._samples, rows))

        return _Bucket(shape, words, rows, encoded, replay)
