"""A tiny random FastConformer-TDT, written as a `.nemo` file or a `safetensors` folder."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from parakeet_worker.engine.native.checkpoint import RENAMED
from parakeet_worker.engine.native.decoder import Joint, Predictor
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features

PIECES = ("<unk>", "▁one", "▁two", "▁thr", "ee", "▁", ".", "▁f", "our", "s", "▁yes", "▁no")
WIDTH = 32
HIDDEN = 16


def config() -> dict[str, Any]:
    """The sections that NeMo writes for parakeet-tdt-0.6b-v3, at toy size."""
    return {
        "sample_rate": 16_000,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16_000,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": 80,
            "n_fft": 512,
            "log": True,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "pad_value": 0.0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": 80,
            "feat_out": -1,
            "n_layers": 2,
            "d_model": WIDTH,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": 8,
            "causal_downsampling": False,
            "reduction": None,
            "reduction_position": None,
            "reduction_factor": 1,
            "ff_expansion_factor": 2,
            "self_attention_model": "rel_pos",
            "n_heads": 4,
            "att_context_size": [-1, -1],
            "att_context_style": "regular",
            "xscaling": False,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 9,
            "conv_norm_type": "batch_norm",
            "conv_context_size": None,
            "dropout": 0.1,
            "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
            "stochastic_depth_drop_prob": 0.0,
            "stochastic_depth_mode": "linear",
            "stochastic_depth_start_layer": 1,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "vocab_size": len(PIECES),
            "prednet": {
                "pred_hidden": HIDDEN,
                "pred_rnn_layers": 2,
                "t_max": None,
                "dropout": 0.2,
            },
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": True,
            "fused_batch_size": 4,
            "num_classes": len(PIECES),
            "num_extra_outputs": 5,
            "vocabulary": list(PIECES),
            "jointnet": {
                "joint_hidden": HIDDEN,
                "activation": "relu",
                "dropout": 0.2,
                "encoder_hidden": WIDTH,
                "pred_hidden": HIDDEN,
            },
        },
        "decoding": {
            "strategy": "greedy_batch",
            "model_type": "tdt",
            "durations": [0, 1, 2, 3, 4],
            "greedy": {"max_symbols": 10},
            "beam": {"beam_size": 2},
        },
    }


def weights(sections: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under NeMo's names, loud enough that tokens and blanks both win."""
    torch.manual_seed(seed)
    parts = {
        "preprocessor.featurizer": Features.from_config(sections["preprocessor"]),
        "encoder": Encoder.from_config(sections["encoder"]),
        "decoder": Predictor.from_config(sections["decoder"]),
        "joint": Joint.from_config(sections["joint"]),
    }
    named = {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    for name, tensor in named.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "pos_bias_u", "pos_bias_v")):
            tensor.normal_()
        elif name.startswith("decoder."):
            tensor.normal_(std=0.5)
        elif name.startswith("joint."):
            tensor.normal_(std=0.4)
    named["decoder.prediction.embed.weight"][-1].zero_()
    return named


def write_nemo(
    path: Path, sections: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
) -> Path:
    sections = config() if sections is None else sections
    tensors = weights(config()) if tensors is None else tensors
    saved = io.BytesIO()
    torch.save(tensors, saved)
    with tarfile.open(path, "w:") as archive:
        _add(archive, "model_config.yaml", yaml.safe_dump(sections).encode())
        _add(archive, "model_weights.ckpt", saved.getvalue())
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"./{name}")
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_safetensors(folder: Path) -> Path:
    """The same model as `write_nemo`'s default, as Hugging Face's transformers lays it out."""
    folder.mkdir(exist_ok=True)
    tensors = {
        _transformers_name(name): tensor
        for name, tensor in weights(config()).items()
        if not name.startswith("preprocessor.")
    }
    save_file(tensors, folder / "model.safetensors")
    encoder = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "hidden_act": "silu",
        "attention_bias": False,
        "convolution_bias": False,
        "conv_kernel_size": 9,
        "subsampling_factor": 8,
        "subsampling_conv_channels": 8,
        "num_mel_bins": 80,
        "subsampling_conv_kernel_size": 3,
        "subsampling_conv_stride": 2,
        "scale_input": False,
        "model_type": "parakeet_encoder",
    }
    top = {
        "model_type": "parakeet_tdt",
        "encoder_config": encoder,
        "decoder_hidden_size": HIDDEN,
        "num_decoder_layers": 2,
        "hidden_act": "relu",
        "max_symbols_per_step": 10,
        "durations": [0, 1, 2, 3, 4],
        "vocab_size": len(PIECES) + 1,
        "blank_token_id": len(PIECES),
        "pad_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(top))
    vocabulary = {piece: token for token, piece in enumerate(PIECES)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    features = {"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 512}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**features, "win_length": 400, "preemphasis": 0.97})
    )
    return folder


def _transformers_name(name: str) -> str:
    for transformers_part, nemo_part in RENAMED:
        name = name.replace(nemo_part.replace("joint_net.1.", "joint_net.2."), transformers_part)
    return name
