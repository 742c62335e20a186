from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Joint, Predictor, Scorer
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.errors import WeightsUnsupported
from tiny_model import PIECES, WIDTH, config, weights

DURATIONS = (0, 1, 2, 3, 4)
BLANK = len(PIECES)
SEEDS = st.integers(0, 1000)


def networks(seed: int) -> tuple[Predictor, Joint]:
    tensors = weights(config(), seed)
    predictor = Predictor.from_config(config()["decoder"]).eval()
    joint = Joint.from_config(config()["joint"]).eval()
    for module, part in ((predictor, "decoder."), (joint, "joint.")):
        module.load_state_dict(
            {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
        )
    return predictor, joint


@torch.inference_mode()
def plain_search(
    predictor: Predictor, joint: Joint, states: Tensor, max_symbols: int
) -> list[Emission]:
    """Reference search of one utterance, one step at a time, with `nn.LSTM`."""
    frame, here, tokens, emitted = 0, 0, [], []
    while frame < len(states):
        predicted = predictor(torch.tensor([tokens], dtype=torch.long))[0, -1]
        scores = joint.logits(joint.enc(states[frame]) + joint.pred(predicted))
        token = int(scores[: BLANK + 1].argmax())
        duration = DURATIONS[int(scores[BLANK + 1 :].argmax())]
        if token == BLANK:
            frame, here = frame + max(1, duration), 0
            continue
        logprob = float(scores[: BLANK + 1].log_softmax(0)[token])
        emitted.append(Emission(token, frame, duration, logprob))
        tokens.append(token)
        here = here + 1 if duration == 0 else 0
        frame += duration
        if here == max_symbols:
            frame, here = frame + 1, 0
    return emitted


@settings(max_examples=10)
@given(SEEDS, st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_a_padded_batch_equals_the_reference_search_row_by_row(
    seed: int, lengths: list[int]
) -> None:
    predictor, joint = networks(seed)
    decoder = GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), DURATIONS, max_symbols=3)
    states = random_states(seed, len(lengths))
    rows = decoder.decode(states, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        expected = plain_search(predictor, joint, states[row, :length], max_symbols=3)
        assert [(e.token, e.frame, e.duration) for e in rows[row]] == [
            (e.token, e.frame, e.duration) for e in expected
        ]
        assert [e.logprob for e in rows[row]] == pytest.approx(
            [e.logprob for e in expected], abs=1e-4
        )


def random_states(seed: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 40, WIDTH, generator=generator) * 2


def test_random_networks_emit_tokens_some_of_them_in_the_same_frame() -> None:
    emitted = [
        emission
        for seed in range(4)
        for emission in plain_search(*networks(seed), random_states(seed, 1)[0], max_symbols=3)
    ]
    assert len(emitted) > 40
    assert sum(emission.duration == 0 for emission in emitted) > 2


def test_tokens_without_duration_advance_after_max_symbols() -> None:
    predictor, joint = networks(0)
    with torch.no_grad():
        head = joint.joint_net[-1]
        head.weight.zero_()
        head.bias.zero_()
        head.bias[1] = 5.0  # always token 1
        head.bias[BLANK + 1] = 5.0  # always duration 0
    decoder = GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), DURATIONS, max_symbols=10)
    (row,) = decoder.decode(torch.randn(1, 4, WIDTH), torch.tensor([4]))
    assert [emission.frame for emission in row] == [f for f in range(4) for _ in range(10)]


@settings(max_examples=10)
@given(SEEDS, st.integers(0, 40))
def test_nothing_is_decoded_past_the_valid_length(seed: int, length: int) -> None:
    scorer = Scorer.of(*networks(seed), Precision.FP32)
    decoder = GreedyDecoder(scorer, DURATIONS, max_symbols=10)
    (row,) = decoder.decode(random_states(seed, 1), torch.tensor([length]))
    assert all(emission.frame < length for emission in row)


def test_a_blank_of_duration_zero_advances_one_frame() -> None:
    predictor, joint = networks(0)
    with torch.no_grad():
        head = joint.joint_net[-1]
        head.weight.zero_()
        head.bias.zero_()
        head.bias[BLANK] = 5.0
        head.bias[BLANK + 1] = 5.0
    decoder = GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), DURATIONS, max_symbols=10)
    assert decoder.decode(torch.randn(2, 5, WIDTH), torch.tensor([5, 5])) == [(), ()]


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("decoder", {"_target_": "nemo.collections.asr.modules.StatelessTransducerDecoder"}),
        ("decoder", {"normalization_mode": "layer"}),
        ("decoder", {"blank_as_pad": False}),
        ("decoder", {"new_option": 1}),
        ("joint", {"_target_": "nemo.collections.asr.modules.HATJoint"}),
        ("joint", {"new_option": 1}),
    ],
)
def test_an_option_that_is_not_implemented_is_rejected(section: str, change: Any) -> None:
    reader = {"decoder": Predictor, "joint": Joint}[section]
    with pytest.raises(WeightsUnsupported, match=section):
        reader.from_config(config()[section] | change)


def test_in_int8_the_search_emits_nearly_the_same_tokens_as_in_float32() -> None:
    same, total = 0, 0
    for seed in range(12):
        predictor, joint = networks(seed)
        states, lengths = torch.randn(3, 60, joint.config.encoder_width), torch.tensor([60, 41, 5])
        exact, coarse = (
            GreedyDecoder(Scorer.of(predictor, joint, precision), DURATIONS, max_symbols=3).decode(
                states, lengths
            )
            for precision in (Precision.FP32, Precision.INT8)
        )
        for right, near in zip(exact, coarse, strict=True):
            total += len(right)
            same += len(
                {(one.token, one.frame) for one in right} & {(one.token, one.frame) for one in near}
            )
    assert same > 0.7 * total > 100


def test_a_masked_token_is_never_emitted_and_the_others_keep_their_probabilities() -> None:
    predictor, joint = networks(3)
    decoder = GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), DURATIONS, max_symbols=3)
    states, lengths = torch.randn(2, 80, joint.config.encoder_width), torch.tensor([80, 80])
    free = decoder.decode(states, lengths)
    most = max(set(token := [one.token for one in free[0]]), key=token.count)
    forbidden = torch.zeros(2, BLANK + 1)
    forbidden[0, most] = float("-inf")
    kept = decoder.decode(states, lengths, forbidden)
    assert most not in [one.token for one in kept[0]]
    assert kept[1] == free[1]
    before = next(index for index, one in enumerate(free[0]) if one.token == most)
    assert kept[0][:before] == free[0][:before]
