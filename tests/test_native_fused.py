from typing import Any

import pytest
import torch

from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.fused import FusedEncoder, attend_unfused
from parakeet_worker.engine.native.precision import Precision
from tiny_model import config, weights

CPU = torch.device("cpu")


def plain_encoder(**options: Any) -> Encoder:
    sections = config()
    sections["encoder"] |= options
    encoder = Encoder.from_config(sections["encoder"]).eval()
    encoder.load_state_dict(
        {
            name.removeprefix("encoder."): tensor
            for name, tensor in weights(sections).items()
            if name.startswith("encoder.")
        }
    )
    return encoder


LENGTHS = [[1], [3000], [777, 400, 9, 1], [256, 255], [257, 0], [1025]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "xscaling": True}, {"n_heads": 2}])
@torch.inference_mode()
def test_the_fused_encoder_equals_the_reference(
    lengths: list[int], options: dict[str, Any]
) -> None:
    plain = plain_encoder(**options)
    fused = FusedEncoder(fold(plain, Precision.FP32), plain.config, Precision.FP32, CPU)
    torch.manual_seed(0)
    mels, valid = torch.randn(len(lengths), 80, max(lengths)), torch.tensor(lengths)
    expected, frames = plain(mels, valid)
    states, same_frames = fused(mels, valid)
    assert torch.equal(frames, same_frames)
    for row, length in enumerate(frames.tolist()):
        assert torch.allclose(states[row, :length], expected[row, :length], atol=2e-5)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.BF16])
@torch.inference_mode()
def test_a_lower_precision_is_close_to_the_reference(precision: Precision) -> None:
    plain = plain_encoder()
    torch.manual_seed(0)
    mels, valid = torch.randn(1, 80, 500), torch.tensor([500])
    expected, _ = plain(mels, valid)
    states, _ = FusedEncoder(fold(plain, precision), plain.config, precision, CPU)(mels, valid)
    error = (states.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.02


@torch.inference_mode()
def test_cached_positions_grow_and_are_shared_by_shorter_utterances() -> None:
    plain = plain_encoder()
    fused = FusedEncoder(fold(plain, Precision.FP32), plain.config, Precision.FP32, CPU)
    torch.manual_seed(0)
    for frames in (40, 2400, 333, 9000, 17001, 40):
        mels, valid = torch.randn(1, 80, frames), torch.tensor([frames])
        expected, _ = plain(mels, valid)
        assert torch.allclose(fused(mels, valid)[0], expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unfused_attention_equals_the_fused_one(dtype: torch.dtype) -> None:
    """Keys that are masked by a finite floor, in one row all of them."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 13, 8).to(dtype)
    bias = torch.randn(2, 4, 13, 13).to(dtype)
    bias[0, :, :, 7:] = torch.finfo(dtype).min / 2
    bias[1] = torch.finfo(dtype).min / 2
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=1.0
    )
    attended = attend_unfused(query, key, value, bias)
    assert torch.allclose(
        attended.float(), expected.float(), atol=2e-5 if dtype.itemsize == 4 else 2e-2
    )
