"""Packed batches from the host to encoder states: staging, features, encoder, CUDA graphs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from parakeet_worker.engine.base import Waveform
from parakeet_worker.engine.native.encoder_graphs import EncoderGraphs
from parakeet_worker.engine.native.packed_encoder import GROUP_TOKENS, PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.rows import FACTOR, Plan, Rows
from parakeet_worker.engine.native.staging import Shape, Staged, Staging

MAX_CHUNKS = 512
# More audio per batch gains nothing and delays the next callers.
MAX_FULL_CHUNKS = 128
# Libraries select kernels by the number of rows: fewer distinct numbers, fewer differences.
_ROUNDED_TOKENS = 1024


class PackedPipeline:
    """Encodes packed batches, small ones in CUDA graphs."""

    def __init__(
        self,
        features: PackedFeatures,
        encoder: PackedEncoder,
        device: torch.device,
        *,
        chunk_seconds: float,
        bucket_tokens: Sequence[int],
    ) -> None:
        """`chunk_seconds` is the usual maximum length of a chunk."""
        self._features = features
        self._encoder = encoder
        self._hop_samples = features.config.hop_samples
        token_samples = FACTOR * self._hop_samples
        chunk_tokens = -(-round(chunk_seconds * features.config.sample_rate) // token_samples)
        self._staging = Staging(
            device,
            samples=MAX_FULL_CHUNKS * chunk_tokens * token_samples + MAX_CHUNKS * self._hop_samples,
            rows=MAX_CHUNKS,
            tokens=max(MAX_FULL_CHUNKS * chunk_tokens + 2 * _ROUNDED_TOKENS, *bucket_tokens),
        )
        self._graphs = EncoderGraphs(
            self._chain, device, chunk_tokens, self._hop_samples, bucket_tokens
        )

    @property
    def longest_tokens(self) -> int:
        """Maximum length of a row."""
        return self._encoder.longest

    def plan(self, batch: Sequence[Waveform]) -> Plan:
        """The layout of a batch."""
        return Plan(tuple(len(chunk) for chunk in batch), self._hop_samples)

    def accepts(self, plan: Plan) -> bool:
        """Whether no row is too long to be packed."""
        return max(plan.tokens) <= self._encoder.longest

    def fits(self, plan: Plan) -> bool:
        """Whether the batch fits the staging buffers."""
        return sum(plan.samples) <= self._staging.samples and len(plan.samples) <= MAX_CHUNKS

    def capture(self) -> None:
        """Capture the CUDA graphs of small batches. Raises `RuntimeError`."""
        self._graphs.capture()

    def graph_shape(self, plan: Plan) -> Shape | None:
        """Shape of the smallest graph that fits the batch, or None."""
        return self._graphs.shape_for(plan)

    def encode(
        self, graph: Shape | None, batch: Sequence[Waveform], plan: Plan
    ) -> tuple[Staged, Tensor]:
        """The staged batch and (N, width) states of its rows, with a graph of that shape if any."""
        shape = graph or _rounded_shape(plan)
        staged = self._staging.stage(batch, plan, shape, GROUP_TOKENS)
        if graph is None:
            states = self._chain(staged.samples, staged.rows)
        else:
            states = self._graphs(staged, graph)
        self._staging.release(staged)
        return staged, states

    def _chain(self, samples: Tensor, rows: Rows) -> Tensor:
        return self._encoder(self._features(samples, rows), rows)


def _rounded_shape(plan: Plan) -> Shape:
    tokens = -(-sum(plan.tokens) // _ROUNDED_TOKENS) * _ROUNDED_TOKENS
    return Shape(len(plan.samples), tokens, max(plan.tokens))
