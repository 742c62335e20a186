"""Packed rows have the states that their chunks have alone in the plain encoder."""

from typing import Any

import pytest
import torch

from packed import (
    LENGTHS,
    assert_states_close,
    packed_states,
    plain_states,
    random_chunks,
    tiny_modules,
)
from parakeet_worker.engine.native.kernels.kernel_set import Kernels

KERNELS = Kernels.reference()


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "xscaling": True}, {"n_heads": 2}])
@torch.inference_mode()
def test_packed_rows_have_the_states_of_the_plain_encoder(options: dict[str, Any]) -> None:
    """From int16 samples to the last layer, with and without biases and scaled inputs."""
    features, encoder = tiny_modules(**options)
    for lengths in LENGTHS if not options else LENGTHS[2:4]:
        batch = random_chunks(lengths)
        actual = packed_states(features, encoder, batch, KERNELS)
        assert_states_close(actual, plain_states(features, encoder, batch))


@torch.inference_mode()
def test_grouping_of_the_subsampling_does_not_change_the_states() -> None:
    """Rows are subsampled together or in groups; a row longer than a group forms its own."""
    features, encoder = tiny_modules()
    batch = random_chunks(LENGTHS[3])
    ungrouped = packed_states(features, encoder, batch, KERNELS)
    for tokens in (1, 10, 30):
        grouped = packed_states(features, encoder, batch, KERNELS, tokens)
        assert_states_close(grouped, ungrouped)
