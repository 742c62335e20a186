"""Compares the packed encoder with the plain one, on any kernels."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.rows import Plan, Rows, rows_of
from tiny_model import config, weights

HOP = 160
CPU = torch.device("cpu")

LENGTHS: tuple[tuple[int, ...], ...] = (
    (HOP,),
    (0,),
    (159, 20_000, 0),
    (31_999, 1_280, 12_801, 5, 40_000),
    (64_000, 63_999, 1_281),
)
"""Samples of each chunk of a batch: one frame, none, whole and partial tokens."""


def tiny_modules(**options: Any) -> tuple[Features, Encoder]:
    """Features and encoder of the tiny model, with encoder options."""
    sections = config()
    sections["encoder"] |= options
    named = weights(sections)
    encoder = Encoder.from_config(sections["encoder"]).eval()
    encoder.load_state_dict(
        {
            name.removeprefix("encoder."): tensor
            for name, tensor in named.items()
            if name.startswith("encoder.")
        }
    )
    return Features.from_config(sections["preprocessor"]).eval(), encoder


def random_chunks(lengths: tuple[int, ...]) -> list[np.ndarray[Any, np.dtype[np.int16]]]:
    generator = np.random.default_rng(len(lengths))
    return [generator.normal(0, 3000, length).astype(np.int16) for length in lengths]


def plain_states(features: Features, encoder: Encoder, batch: list[Any]) -> list[Tensor]:
    """States of each chunk alone, from the plain encoder in float32."""
    states = []
    for chunk in batch:
        samples = torch.from_numpy(chunk.astype(np.float32) / 32768).unsqueeze(0)
        if len(chunk) < HOP:
            states.append(torch.zeros(0, encoder.config.width))
            continue
        mels, frames = features(samples, torch.tensor([len(chunk)]))
        padded, valid = encoder(mels[:, :, : int(frames)], frames)
        states.append(padded[0, : int(valid)])
    return states


def packed_states(
    features: Features,
    encoder: Encoder,
    batch: list[Any],
    kernels: Kernels,
    group_tokens: int = 1 << 30,
) -> list[Tensor]:
    """States of each chunk, from one packed batch of int16 samples."""
    rows = packed_rows(batch, group_tokens)
    samples = torch.from_numpy(np.concatenate(batch)) if batch else torch.zeros(0).short()
    folded = fold(encoder, Precision.FP32)
    packed = PackedEncoder(folded, encoder.config, kernels, longest=64)
    mels = PackedFeatures.of(features, kernels, torch.float32)(samples, rows)
    states = packed(mels, rows)
    offsets = rows.offsets.tolist()
    return [states[first:end] for first, end in pairwise(offsets)]


def packed_rows(batch: list[Any], group_tokens: int = 1 << 30) -> Rows:
    plan = Plan(tuple(len(chunk) for chunk in batch), HOP)
    return rows_of(plan, [1 / 32768] * len(batch), CPU, group_tokens)


def assert_states_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Equal up to the effect of another summation order in float32."""
    assert [len(row) for row in actual] == [len(row) for row in expected]
    for row, expected_row in zip(actual, expected, strict=True):
        assert torch.allclose(row, expected_row, atol=2e-4)
