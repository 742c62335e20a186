import pytest
import torch

from parakeet_worker.engine.native.captured import CapturedDecoder
from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Scorer
from parakeet_worker.engine.native.precision import Precision
from test_native_decoder import DURATIONS, networks
from tiny_model import PIECES, WIDTH

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

Rows = list[tuple[Emission, ...]]


def decoded(device: str, capture: bool, seeds: int) -> list[tuple[Rows, Rows]]:
    """What both decoders say of the same batches, of several sizes, one after the other."""
    pairs = []
    for seed in range(seeds):
        predictor, joint = (network.to(device) for network in networks(seed))
        plain = GreedyDecoder(Scorer.of(predictor, joint, Precision.FP32), DURATIONS, max_symbols=3)
        captured = CapturedDecoder(
            Scorer.of(predictor, joint, Precision.FP32), DURATIONS, 3, capture=capture
        )
        torch.manual_seed(seed)
        for lengths in ([40, 1, 23, 0, 31], [7], [0], [130, 5], [40, 40, 3, 8, 12]):
            valid = torch.tensor(lengths, device=device)
            states = torch.randn(len(lengths), max(1, *lengths), WIDTH, device=device) * 2
            pairs.append((captured.decode(states, valid), plain.decode(states, valid)))
    return pairs


def assert_equal(pairs: list[tuple[Rows, Rows]]) -> None:
    tokens = 0
    for ours, plain in pairs:
        for mine, right in zip(ours, plain, strict=True):
            assert [(e.token, e.frame, e.duration) for e in mine] == [
                (e.token, e.frame, e.duration) for e in right
            ]
            assert [e.logprob for e in mine] == pytest.approx([e.logprob for e in right], abs=1e-4)
            tokens += len(right)
    assert tokens > 100, "the networks must say something"


def test_steps_on_fixed_buffers_equal_the_plain_loop() -> None:
    assert_equal(decoded("cpu", capture=False, seeds=6))


@needs_gpu
def test_a_cuda_graph_equals_the_plain_loop() -> None:
    assert_equal(decoded("cuda", capture=True, seeds=6))


def test_more_tokens_than_there_is_place_for_are_decoded_by_the_plain_loop() -> None:
    predictor, joint = networks(0)
    with torch.no_grad():
        head = joint.joint_net[-1]
        head.weight.zero_()
        head.bias.zero_()
        head.bias[1] = 5.0  # always token 1 ...
        head.bias[len(PIECES) + 1] = 5.0  # ... and it takes no time
    captured = CapturedDecoder(
        Scorer.of(predictor, joint, Precision.FP32), DURATIONS, 10, capture=False
    )
    (row,) = captured.decode(torch.randn(1, 128, WIDTH), torch.tensor([128]))
    assert len(row) == 1280
