"""Packed rows have the states that their chunks have alone in the plain encoder."""

from typing import Any

import pytest
import torch

from packed import LENGTHS, assert_same, chunks, packed_states, parts, plain_states
from parakeet_worker.engine.native.kernels.kernel_set import Kernels

KERNELS = Kernels.reference()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "xscaling": True}, {"n_heads": 2}])
@torch.inference_mode()
def test_packed_rows_have_the_states_of_the_plain_encoder(
    lengths: tuple[int, ...], options: dict[str, Any]
) -> None:
    """From int16 samples to the last layer, with and without biases and scaled inputs."""
    features, encoder = parts(**options)
    batch = chunks(lengths)
    found = packed_states(features, encoder, batch, KERNELS)
    assert_same(found, plain_states(features, encoder, batch))


@torch.inference_mode()
def test_groups_of_the_subsampling_change_nothing() -> None:
    """Rows are subsampled together or in groups; a row longer than a group is one by itself."""
    features, encoder = parts()
    batch = chunks(LENGTHS[3])
    whole = packed_states(features, encoder, batch, KERNELS)
    for tokens in (1, 10, 30):
        assert_same(packed_states(features, encoder, batch, KERNELS, tokens), whole)
