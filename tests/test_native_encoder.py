import math
from typing import Any

import pytest
import torch
from torch import Tensor

from parakeet_worker.engine.native.encoder import Encoder, _shift, relative_positions
from parakeet_worker.errors import WeightsUnsupported
from tiny_model import config, weights


@pytest.fixture
def encoder() -> Encoder:
    encoder = Encoder.from_config(config()["encoder"]).eval()
    tensors = weights(config())
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    )
    return encoder


@torch.inference_mode()
def test_an_utterance_has_the_same_states_alone_and_padded_in_a_batch(encoder: Encoder) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([200, 77, 9, 1])
    mels = torch.randn(4, 80, 201)
    for row, length in enumerate(lengths.tolist()):
        mels[row, :, length:] = 1e3 if row else 0.0  # padding must not affect the states
    together, valid = encoder(mels, lengths)
    assert valid.tolist() == [25, 10, 2, 1]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = encoder(mels[row : row + 1, :, :length], lengths[row : row + 1])
        states = int(valid[row])
        assert torch.allclose(together[row, :states], alone[0, :states], atol=2e-5)


@torch.inference_mode()
def test_an_empty_row_gives_no_nan(encoder: Encoder) -> None:
    states, valid = encoder(torch.randn(2, 80, 50), torch.tensor([50, 0]))
    assert valid.tolist() == [7, 0]
    assert torch.isfinite(states).all()


def test_shifting_puts_the_score_of_each_distance_at_its_key() -> None:
    time = 5
    distances = torch.arange(time - 1, -time, -1.0).expand(1, 1, time, 2 * time - 1)
    expected = torch.tensor([[query - key for key in range(time)] for query in range(time)])
    assert torch.equal(_shift(distances.clone())[0, 0], expected.float())


def test_positions_are_ordered_from_the_first_key_to_the_last() -> None:
    table = relative_positions(3, 4)
    assert table.shape == (5, 4)
    assert torch.allclose(table[2], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert float(table[0, 0]) == pytest.approx(math.sin(2.0))
    assert float(table[4, 2]) == pytest.approx(math.sin(-2.0 / 100.0), abs=1e-6)


@torch.inference_mode()
def test_attention_matches_a_plain_double_loop(encoder: Encoder) -> None:
    torch.manual_seed(2)
    attention = encoder.layers[0].self_attn
    states, positions = torch.randn(1, 6, 32), relative_positions(6, 32)
    padding = torch.tensor([[False] * 5 + [True]])
    fast = attention(states, positions, padding)[0, :5]
    assert torch.allclose(fast, _plain_attention(attention, states[0, :5], 32)[:5], atol=1e-5)


def _plain_attention(attention: Any, states: Tensor, width: int) -> Tensor:
    time, heads, head_width = len(states), attention.heads, attention.head_width
    table = relative_positions(time, width)
    places = attention.linear_pos(table).view(-1, heads, head_width)
    query = attention.linear_q(states).view(time, heads, head_width)
    key = attention.linear_k(states).view(time, heads, head_width)
    value = attention.linear_v(states).view(time, heads, head_width)
    rows = []
    for at in range(time):
        mixed = []
        for head in range(heads):
            content = query[at, head] + attention.pos_bias_u[head]
            place = query[at, head] + attention.pos_bias_v[head]
            scores = torch.stack(
                [
                    content @ key[other, head] + place @ places[time - 1 - at + other, head]
                    for other in range(time)
                ]
            )
            mixed.append((scores / math.sqrt(head_width)).softmax(0) @ value[:, head])
        rows.append(torch.cat(mixed))
    out: Tensor = attention.linear_out(torch.stack(rows))
    return out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("self_attention_model", "rel_pos_local_attn"),
        ("att_context_size", [128, 128]),
        ("att_context_style", "chunked_limited"),
        ("subsampling", "vggnet"),
        ("causal_downsampling", True),
        ("conv_norm_type", "layer_norm"),
        ("conv_context_size", "causal"),
        ("reduction", "pooling"),
        ("reduction_factor", 2),
        ("feat_out", 512),
        ("some_new_option", True),
    ],
)
def test_an_unsupported_option_is_rejected(key: str, value: Any) -> None:
    with pytest.raises(WeightsUnsupported, match=f"encoder.{key}"):
        Encoder.from_config(config()["encoder"] | {key: value})


@pytest.mark.parametrize("options", [{"use_bias": True}, {"xscaling": True}])
@torch.inference_mode()
def test_biases_and_input_scaling_change_the_states(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    plain = Encoder.from_config(config()["encoder"]).eval()
    torch.manual_seed(3)
    other = Encoder.from_config(config()["encoder"] | options).eval()
    other.load_state_dict(plain.state_dict(), strict=False)
    mels, lengths = torch.randn(1, 80, 80), torch.tensor([80])
    assert not torch.allclose(plain(mels, lengths)[0], other(mels, lengths)[0], atol=1e-3)
