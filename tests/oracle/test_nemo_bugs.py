"""Bugs of NeMo 3.0 that this project works around; a test fails when NeMo fixes one."""

from typing import Any

import nemo_models
import torch


def test_durations_of_a_batch_are_mixed_up_without_cuda_graphs(tiny_nemo: Any) -> None:
    """While one row searches its next token, the durations of the other rows are overwritten.

    Tokens and frames are right. `NemoEngine` therefore decodes one chunk per call without graphs,
    and the tests compare row by row.
    """
    wrong = compared = 0
    lengths = torch.tensor([60, 55, 50, 40, 30])
    for seed in range(4):
        nemo_models.randomise(tiny_nemo, seed, stay=-5.0)
        nemo_models.configure(tiny_nemo)
        states = torch.randn(5, 32, 60, generator=torch.Generator().manual_seed(seed)) * 2
        together = nemo_models.decoded(tiny_nemo, states, lengths)
        for row, hypothesis in enumerate(together):
            length = lengths[row : row + 1]
            alone = nemo_models.decoded(tiny_nemo, states[row : row + 1], length)
            expected, batched = nemo_models.emissions(alone[0]), nemo_models.emissions(hypothesis)
            assert [one[:2] for one in batched] == [one[:2] for one in expected]
            wrong += sum(one != other for one, other in zip(batched, expected, strict=True))
            compared += len(expected)
    assert compared > 150
    assert wrong > compared / 20, "NeMo has fixed its batched decoding: use it"


def test_changing_the_attention_model_adds_random_biases(tmp_path_factory: Any) -> None:
    """The new layers have biases that are not in the checkpoint and stay random.

    `NemoEngine` therefore does not call `change_attention_model`.
    """
    model = nemo_models.tiny(tmp_path_factory.mktemp("attention"))
    nemo_models.randomise(model, 0)
    mels, lengths = torch.randn(1, 80, 200), torch.tensor([200])
    before = states(model, mels, lengths)
    assert not biases(model)
    after = []
    for seed in (1, 2):
        changed = nemo_models.tiny(tmp_path_factory.mktemp("attention"))
        nemo_models.randomise(changed, 0)
        torch.manual_seed(seed)
        changed.change_attention_model("rel_pos", [-1, -1], update_config=False)
        after.append(states(changed.eval(), mels, lengths))
        assert len(biases(changed)) == 8, "NeMo has fixed `change_attention_model`"
        assert all(bias.abs().sum() > 0 for bias in biases(changed))
    assert not torch.allclose(before, after[0], atol=1e-2)
    assert not torch.allclose(after[0], after[1], atol=1e-2)


@torch.inference_mode()
def states(model: Any, mels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    encoded: torch.Tensor = model.encoder(audio_signal=mels, length=lengths)[0]
    return encoded


def biases(model: Any) -> list[torch.Tensor]:
    """Biases of the query, key, value and output projections, if any."""
    return [
        tensor
        for name, tensor in model.encoder.named_parameters()
        if ".self_attn.linear_" in name and name.endswith(".bias")
    ]
