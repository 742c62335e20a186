"""transformers' side of the comparison: NeMo's weights in its models and its folders."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from torch.nn import functional
from transformers import ParakeetFeatureExtractor, ParakeetForTDT, ParakeetTDTConfig

from parakeet_worker.engine.native.checkpoint import Checkpoint

# NeMo's names and transformers', as the latter's own conversion script pairs them.
_NAMES = (
    ("encoder.pre_encode.conv.", "encoder.subsampling.layers."),
    ("encoder.pre_encode.out.", "encoder.subsampling.linear."),
    ("self_attn.linear_q.", "self_attn.q_proj."),
    ("self_attn.linear_k.", "self_attn.k_proj."),
    ("self_attn.linear_v.", "self_attn.v_proj."),
    ("self_attn.linear_out.", "self_attn.o_proj."),
    ("self_attn.linear_pos.", "self_attn.relative_k_proj."),
    ("self_attn.pos_bias_", "self_attn.bias_"),
    ("conv.batch_norm.", "conv.norm."),
    ("decoder.prediction.embed.", "decoder.embedding."),
    ("decoder.prediction.dec_rnn.lstm.", "decoder.lstm."),
    ("joint.enc.", "encoder_projector."),
    ("joint.pred.", "decoder.decoder_projector."),
    ("joint.joint_net.2.", "joint.head."),
)


def encoder_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """NeMo's encoder section in transformers' words."""
    return {
        "hidden_size": section["d_model"],
        "num_hidden_layers": section["n_layers"],
        "num_attention_heads": section["n_heads"],
        "intermediate_size": section["d_model"] * section["ff_expansion_factor"],
        "attention_bias": section["use_bias"],
        "convolution_bias": section["use_bias"],
        "conv_kernel_size": section["conv_kernel_size"],
        "subsampling_factor": section["subsampling_factor"],
        "subsampling_conv_channels": section["subsampling_conv_channels"],
        "num_mel_bins": section["feat_in"],
        "scale_input": section["xscaling"],
    }


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights alone, renamed."""
    whole = renamed({f"encoder.{name}": tensor for name, tensor in weights.items()})
    return {name.removeprefix("encoder."): tensor for name, tensor in whole.items()}


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in weights.items():
        new = name
        for nemo_part, transformers_part in _NAMES:
            new = new.replace(nemo_part, transformers_part)
        result[new] = tensor
    return result


def widened(read: Checkpoint) -> Checkpoint:
    """The same function with a prediction network as wide as the joint.

    transformers supports one width for both. The weights of the new LSTM units are zero.
    """
    width = read.joint["jointnet"]["joint_hidden"]
    narrow = read.decoder["prednet"]["pred_hidden"]
    weights = dict(read.weights)
    for name, tensor in read.weights.items():
        if name.startswith("decoder."):
            weights[name] = _padded(tensor, width, gates=tensor.shape[0] == 4 * narrow)
    weights["joint.pred.weight"] = _padded(weights["joint.pred.weight"], width, gates=False)
    return replace(
        read,
        decoder={**read.decoder, "prednet": {**read.decoder["prednet"], "pred_hidden": width}},
        joint={**read.joint, "jointnet": {**read.joint["jointnet"], "pred_hidden": width}},
        weights=weights,
    )


def _padded(tensor: Tensor, width: int, *, gates: bool) -> Tensor:
    """Zeros behind the last dimension, and behind each of the LSTM's four gates."""
    if tensor.dim() == 2:
        tensor = functional.pad(tensor, (0, width - tensor.shape[1]))
    if not gates:
        return tensor
    parts = tensor.chunk(4)
    missing = (0, width - parts[0].shape[0])
    before = (0, 0) if tensor.dim() == 2 else ()
    return torch.cat([functional.pad(part, (*before, *missing)) for part in parts])


def whole_model(read: Checkpoint) -> ParakeetForTDT:
    """transformers' model with the weights of a checkpoint."""
    network = read.decoder["prednet"]
    config = ParakeetTDTConfig(
        encoder_config=encoder_config(read.encoder),
        decoder_hidden_size=network["pred_hidden"],
        num_decoder_layers=network["pred_rnn_layers"],
        hidden_act=read.joint["jointnet"]["activation"],
        max_symbols_per_step=read.max_symbols,
        durations=list(read.durations),
        vocab_size=read.vocabulary.blank + 1,
        blank_token_id=read.vocabulary.blank,
        pad_token_id=0,
    )
    model = ParakeetForTDT(config)
    features = "preprocessor."
    model.load_state_dict(
        renamed({name: t for name, t in read.weights.items() if not name.startswith(features)})
    )
    # As the published v3 has it: it starts with the blank, and durations are no tokens.
    blank = read.vocabulary.blank
    model.generation_config.decoder_start_token_id = blank
    model.generation_config.suppress_tokens = [
        blank + 1 + index for index in range(len(read.durations))
    ]
    return model.eval()


def write_folder(read: Checkpoint, folder: Path) -> Path:
    """A checkpoint as transformers itself saves it, with a tokenizer of the same pieces."""
    whole_model(read).save_pretrained(folder)
    shape = read.preprocessor
    ParakeetFeatureExtractor(
        feature_size=shape["features"],
        sampling_rate=shape["sample_rate"],
        hop_length=round(shape["window_stride"] * shape["sample_rate"]),
        win_length=round(shape["window_size"] * shape["sample_rate"]),
        n_fft=shape["n_fft"],
    ).save_pretrained(folder)
    pieces = {piece: token for token, piece in enumerate(read.vocabulary.pieces)}
    tokenizer = Tokenizer(BPE(pieces, []))
    tokenizer.add_special_tokens([AddedToken("<blank>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@torch.inference_mode()
def emissions(
    model: ParakeetForTDT, features: Tensor, inside: Tensor
) -> list[list[tuple[int, int, int]]]:
    """(token, frame, duration) of every token that `generate` emits, per row."""
    valid = model.encoder._get_output_attention_mask(inside).sum(dim=1)
    limit = model.config.max_symbols_per_step * int(valid.max())
    generated = model.generate(input_features=features, attention_mask=inside, max_new_tokens=limit)
    frames = generated.durations.cumsum(dim=1) - generated.durations
    blank = model.config.blank_token_id
    rows = zip(
        generated.sequences[:, 1:].tolist(),
        frames[:, 1:].tolist(),
        generated.durations[:, 1:].tolist(),
        valid.tolist(),
        strict=True,
    )
    return [
        [
            one
            for one in zip(tokens, starts, durations, strict=True)
            if one[0] != blank and one[1] < length
        ]
        for tokens, starts, durations, length in rows
    ]
