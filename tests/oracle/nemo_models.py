"""NeMo's side of the comparison: models and hypotheses, by NeMo's code only."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict

import tiny_model
from parakeet_worker.engine.base import Samples

logging.setLevel(logging.ERROR)

PIECES = 60


def restored(path: Path) -> Any:
    """Restore a `.nemo` file in NeMo, with timestamps and confidence."""
    model = ASRModel.restore_from(str(path), map_location="cpu").eval()
    model.preprocessor.featurizer.dither = 0.0
    model.preprocessor.featurizer.pad_to = 0
    configure(model, "mean")
    return model


def configure(model: Any, aggregation: str | None = None) -> None:
    """Greedy decoding with durations, and the plain probability as confidence.

    With an `aggregation`, words have timestamps and confidence too, which NeMo cannot compute for
    the output of a random model.
    """
    section = copy.deepcopy(model.cfg.decoding)
    with open_dict(section):
        section.strategy = "greedy_batch"
        section.tdt_include_token_duration = True
        section.compute_timestamps = aggregation is not None
        section.confidence_cfg = {
            "preserve_token_confidence": True,
            "preserve_word_confidence": aggregation is not None,
            "exclude_blank": True,
            "aggregation": aggregation or "mean",
            "method_cfg": {"name": "max_prob", "alpha": 1.0},
        }
    model.change_decoding_strategy(section, verbose=False)


def transcribed(model: Any, samples: Samples) -> Any:
    """NeMo's hypothesis of one utterance, decoded separately."""
    states, valid = encoded(model, samples)
    return decoded(model, states, valid)[0]


@torch.inference_mode()
def encoded(model: Any, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, width, T) states and (1,) valid frames."""
    states, valid = model.forward(
        input_signal=torch.from_numpy(np.ascontiguousarray(samples)).unsqueeze(0),
        input_signal_length=torch.tensor([len(samples)]),
    )
    return states, valid


@torch.inference_mode()
def decoded(model: Any, states: torch.Tensor, valid: torch.Tensor) -> list[Any]:
    hypotheses: list[Any] = model.decoding.rnnt_decoder_predictions_tensor(
        states, valid, return_hypotheses=True
    )
    return hypotheses


def emissions(hypothesis: Any) -> list[tuple[int, int, int]]:
    """(token, frame, duration) of every token."""
    frames = hypothesis.timestamp
    if isinstance(frames, dict):
        frames = frames["timestep"]
    columns = (hypothesis.y_sequence, frames, hypothesis.token_duration)
    return [
        (int(token), int(frame), int(duration))
        for token, frame, duration in zip(*columns, strict=True)
    ]


def tiny(folder: Path, **encoder: Any) -> Any:
    """A tiny FastConformer-TDT with a SentencePiece tokenizer, both made here.

    Seeded: `randomise` leaves most weights of the encoder as they were initialised.
    """
    torch.manual_seed(0)
    return EncDecRNNTBPEModel(cfg=OmegaConf.create(tiny_config(folder, **encoder))).eval()


def tiny_config(folder: Path, **encoder: Any) -> dict[str, Any]:
    _train_tokenizer(folder)
    sections = tiny_model.config()
    sections["encoder"] |= encoder
    del sections["decoder"]["vocab_size"], sections["joint"]["num_classes"]
    del sections["joint"]["vocabulary"]
    durations = sections["decoding"]["durations"]
    return sections | {
        "tokenizer": {"dir": str(folder), "type": "bpe"},
        "model_defaults": {
            "enc_hidden": tiny_model.WIDTH,
            "pred_hidden": tiny_model.HIDDEN,
            "joint_hidden": tiny_model.HIDDEN,
            "tdt_durations": durations,
            "num_tdt_durations": len(durations),
        },
        "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": durations}},
        "optim": {"name": "adamw", "lr": 1e-3},
    }


def _train_tokenizer(folder: Path) -> None:
    chance = np.random.default_rng(0)
    letters = chance.choice(list("abcdefghij"), (1500, 6, 4))
    lines = (" ".join("".join(word) for word in words) + ". Yes, no?" for words in letters)
    (folder / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=PIECES,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        minloglevel=2,
    )
    spelled = (folder / "tokenizer.vocab").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(line.split("\t")[0] for line in spelled))


@torch.no_grad()
def randomise(model: Any, seed: int, *, stay: float = 0.0) -> None:
    """Weights loud enough that tokens and blanks both win; `stay` favours tokens that stay."""
    torch.manual_seed(seed)
    blank = model.decoding.blank_id
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(("pos_bias_u", "pos_bias_v", "running_mean")):
            tensor.normal_()
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.startswith("decoder."):
            tensor.normal_(std=0.5)
        elif name.startswith("joint."):
            tensor.normal_(std=0.4)
    state["decoder.prediction.embed.weight"][-1].zero_()
    scores = state["joint.joint_net.2.bias"]
    scores[blank] -= stay
    scores[blank + 1] += stay  # the duration 0
