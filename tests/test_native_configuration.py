"""Every option of the published checkpoints is implemented, and every other value is refused.

Nothing here needs weights: the shapes are read, and the modules are made without memory.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from parakeet_worker.engine.native import checkpoint
from parakeet_worker.engine.native.decoder import Joint, JointConfig, Predictor, PredictorConfig
from parakeet_worker.engine.native.encoder import Encoder, EncoderConfig
from parakeet_worker.engine.native.features import FeaturesConfig
from parakeet_worker.errors import WeightsUnsupported
from published import (
    MODELS,
    V3_BYTES,
    V3_CONFIG,
    V3_CONFIG_BLOB,
    V3_PROCESSOR_CONFIG,
    V3_PROCESSOR_CONFIG_BLOB,
    V3_TENSORS,
    decoding_as_changed,
    nemo_config,
)
from tiny_model import _transformers_name
from tiny_model import config as tiny_config
from tiny_model import weights as tiny_weights

V3, V2, BIG = MODELS


def understood(config: Mapping[str, Any]) -> tuple[object, ...]:
    """All that the engine takes from a `.nemo` file's configuration."""
    read = checkpoint._from_nemo(config, Path("v3.nemo"), {})
    return (
        FeaturesConfig.from_nemo(read.preprocessor),
        EncoderConfig.from_nemo(read.encoder),
        PredictorConfig.from_nemo(read.decoder),
        JointConfig.from_nemo(read.joint),
        read.durations,
        read.max_symbols,
        read.vocabulary,
    )


def changed(section: str, key: str, value: object) -> dict[str, Any]:
    """v3's configuration with one option changed; `section` may be a path such as `a.b`."""
    config = nemo_config(V3)
    config["decoding"] = decoding_as_changed()
    inside = config
    for name in section.split("."):
        inside = inside[name]
    inside[key] = value
    return config


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_family_is_supported(model: str) -> None:
    understood(nemo_config(model))


def test_the_sizes_of_v3_are_read() -> None:
    features, encoder, predictor, joint, durations, max_symbols, vocabulary = understood(
        nemo_config(V3)
    )
    assert features == FeaturesConfig(16_000, 128, 400, 160, 512, 0.97, 0.0, 8000.0, 2**-24)
    assert encoder == EncoderConfig(
        mels=128,
        layers=24,
        width=1024,
        heads=8,
        feed_forward_width=4096,
        conv_kernel=9,
        subsampling_factor=8,
        subsampling_channels=256,
        use_bias=False,
        scale_input=False,
        dropout=0.1,
        dropout_attention=0.1,
    )
    assert predictor == PredictorConfig(8192, 640, 2, 0.2)
    assert joint == JointConfig(8192, 5, 1024, 640, 640, "relu", 0.2)
    assert (durations, max_symbols) == ((0, 1, 2, 3, 4), 10)
    assert getattr(vocabulary, "blank", None) == 8192


def test_a_decoding_section_with_nemos_defaults_is_equal() -> None:
    config = nemo_config(V3)
    config["decoding"] = decoding_as_changed()
    assert understood(config) == understood(nemo_config(V3))


def test_max_symbols_is_read_under_both_names() -> None:
    config = nemo_config(V3)
    config["decoding"]["greedy"] = {"max_symbols_per_step": 7}
    assert checkpoint._from_nemo(config, Path("v3.nemo"), {}).max_symbols == 7
    config["decoding"]["greedy"] = {"max_symbols_per_step": 7, "max_symbols": 5}
    assert checkpoint._from_nemo(config, Path("v3.nemo"), {}).max_symbols == 5


# Options of v3 by what becomes of another value.
REFUSED: dict[str, dict[str, object]] = {
    "preprocessor": {
        "normalize": "all_features",
        "window": "hamming",
        "log": False,
        "frame_splicing": 2,
        "pad_value": -16.0,
    },
    "encoder": {
        "feat_out": 512,
        "subsampling": "striding",
        "causal_downsampling": True,
        "reduction": "pooling",
        "reduction_position": -1,
        "reduction_factor": 2,
        "self_attention_model": "rel_pos_local_attn",
        "att_context_size": [128, 128],
        "att_context_style": "chunked_limited",
        "conv_norm_type": "layer_norm",
        "conv_context_size": "causal",
    },
    "decoder": {"normalization_mode": "layer", "blank_as_pad": False},
    "joint.jointnet": {"activation": "gelu"},
    "decoding": {"model_type": "rnnt", "strategy": "maes"},
    "decoding.greedy": {"ngram_lm_model": "words.arpa"},
    "decoding.greedy.boosting_tree": {
        "model_path": "tree.nemo",
        "key_phrases_file": "phrases.txt",
        "key_phrases_list": ["parakeet"],
        "key_phrase_items_list": ["parakeet"],
    },
}
HONOURED: dict[str, dict[str, object]] = {
    "preprocessor": {
        "sample_rate": 8_000,
        "window_size": 0.02,
        "window_stride": 0.02,
        "features": 80,
        "n_fft": 1024,
    },
    "encoder": {
        "feat_in": 80,
        "n_layers": 17,
        "d_model": 512,
        "use_bias": True,
        "subsampling_factor": 4,
        "subsampling_conv_channels": 128,
        "ff_expansion_factor": 2,
        "n_heads": 4,
        "xscaling": True,
        "conv_kernel_size": 5,
        "dropout": 0.0,
        "dropout_att": 0.0,
    },
    "decoder": {"vocab_size": 1024},
    "decoder.prednet": {"pred_hidden": 320, "pred_rnn_layers": 1, "dropout": 0.0},
    "joint": {"num_extra_outputs": 3, "num_classes": 1024, "vocabulary": ["▁a", "b"]},
    "joint.jointnet": {
        "joint_hidden": 320,
        "encoder_hidden": 512,
        "pred_hidden": 320,
        "activation": "tanh",
        "dropout": 0.0,
    },
    "decoding": {"durations": [0, 1, 2]},
    "decoding.greedy": {"max_symbols": 5},
}
WITHOUT_EFFECT: dict[str, dict[str, object]] = {
    "preprocessor": {"dither": 0.1, "pad_to": 16},
    "encoder": {
        "untie_biases": False,
        "pos_emb_max_len": 100,
        "use_pytorch_sdpa": True,
        "use_pytorch_sdpa_backends": ["MATH"],
        "dropout_pre_encoder": 0.0,
        "dropout_emb": 0.1,
        "stochastic_depth_drop_prob": 0.1,
        "stochastic_depth_mode": "uniform",
        "stochastic_depth_start_layer": 2,
    },
    "decoder": {"random_state_sampling": True},
    "decoder.prednet": {"t_max": 100},
    "joint": {
        "log_softmax": True,
        "preserve_memory": True,
        "fuse_loss_wer": False,
        "fused_batch_size": 1,
    },
}


def flat(table: Mapping[str, Mapping[str, object]]) -> list[tuple[str, str, object]]:
    return [(section, key, table[section][key]) for section in table for key in table[section]]


@pytest.mark.parametrize(("section", "key", "value"), flat(REFUSED))
def test_the_error_names_the_unsupported_option(section: str, key: str, value: object) -> None:
    with pytest.raises(WeightsUnsupported, match=f"{section}.{key}".replace(".", r"\.")):
        understood(changed(section, key, value))


@pytest.mark.parametrize(("section", "key", "value"), flat(HONOURED))
def test_supported_options_change_the_configuration(section: str, key: str, value: object) -> None:
    assert understood(changed(section, key, value)) != understood(nemo_config(V3))


@pytest.mark.parametrize(("section", "key", "value"), flat(WITHOUT_EFFECT))
def test_training_options_do_not_change_the_configuration(
    section: str, key: str, value: object
) -> None:
    assert understood(changed(section, key, value)) == understood(nemo_config(V3))


@pytest.mark.parametrize(
    "section", ["preprocessor", "encoder", "decoder", "decoder.prednet", "joint", "joint.jointnet"]
)
def test_the_tables_contain_every_option_of_v3(section: str) -> None:
    inside = nemo_config(V3)
    for name in section.split("."):
        inside = inside[name]
    options = {key for key, value in inside.items() if not isinstance(value, dict)} - {"_target_"}
    tables = (REFUSED, HONOURED, WITHOUT_EFFECT)
    assert options == {key for table in tables for key in table.get(section, {})}


@pytest.mark.parametrize("section", ["preprocessor", "encoder", "decoder", "joint"])
def test_another_class_or_a_new_option_is_rejected(section: str) -> None:
    with pytest.raises(WeightsUnsupported, match=rf"{section}\._target_"):
        understood(changed(section, "_target_", "nemo.collections.asr.modules.Another"))
    with pytest.raises(WeightsUnsupported, match=rf"{section}\.of_tomorrow"):
        understood(changed(section, "of_tomorrow", 1))


def blob(content: str) -> str:
    """The name that git gives to a file of this content."""
    encoded = content.encode()
    return hashlib.sha1(b"blob %d\0" % len(encoded) + encoded, usedforsecurity=False).hexdigest()


def test_the_files_of_v3_are_the_published_ones() -> None:
    assert blob(V3_CONFIG) == V3_CONFIG_BLOB
    assert blob(V3_PROCESSOR_CONFIG) == V3_PROCESSOR_CONFIG_BLOB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published folder of v3, but for its weights and the words in its tokenizer."""
    (tmp_path / "config.json").write_text(V3_CONFIG)
    (tmp_path / "processor_config.json").write_text(V3_PROCESSOR_CONFIG)
    pieces = {f"▁{number}": number for number in range(8192)}
    added = [{"id": 8192, "content": "<blank>"}]
    tokenizer = {"model": {"type": "BPE", "vocab": pieces}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_file({"encoder.none": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_the_folder_of_v3_equals_its_nemo_file(folder: Path) -> None:
    read = checkpoint.read_checkpoint(folder)
    nemo = checkpoint._from_nemo(nemo_config(V3), Path("v3.nemo"), {})
    assert FeaturesConfig.from_nemo(read.preprocessor) == FeaturesConfig.from_nemo(
        nemo.preprocessor
    )
    # Dropout, which acts in training alone, has other names there.
    assert EncoderConfig.from_nemo(
        {**read.encoder, "dropout": 0.1, "dropout_att": 0.1}
    ) == EncoderConfig.from_nemo(nemo.encoder)
    assert (read.durations, read.max_symbols) == (nemo.durations, nemo.max_symbols)
    assert read.vocabulary.blank == nemo.vocabulary.blank


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("convolution_bias", True),
        ("num_key_value_heads", 2),
        ("subsampling_conv_kernel_size", 5),
        ("subsampling_conv_stride", 1),
        ("intermediate_size", 4095),
        ("sliding_window", [128, 128]),
    ],
)
def test_another_encoder_in_the_folder_is_rejected(folder: Path, key: str, value: object) -> None:
    config = json.loads(V3_CONFIG)
    config["encoder_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsUnsupported, match=rf"encoder_config\.{key}"):
        checkpoint.read_checkpoint(folder)


def test_the_weights_of_v3_have_the_size_of_the_published_file() -> None:
    """So every name, shape and type that the engine looks for is in it, and nothing else is.

    A `safetensors` file is the length of its header, the header, and the tensors.
    """
    config = nemo_config(V3)
    with torch.device("meta"):
        parts = {
            "encoder": Encoder.from_config(config["encoder"]),
            "decoder": Predictor.from_config(config["decoder"]),
            "joint": Joint.from_config(config["joint"]),
        }
    tensors = {
        _transformers_name(f"{part}.{name}"): tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    assert len(tensors) == V3_TENSORS
    header, size = header_of(tensors)
    padded = -(-len(header) // 8) * 8
    assert 8 + padded + size == V3_BYTES


def header_of(tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """As the library writes it: wider types first, then by name; and the bytes of all tensors."""
    kinds = {torch.int64: "I64", torch.float32: "F32"}
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    return json.dumps(entries, separators=(",", ":")), end


def test_batch_norm_counters_are_optional() -> None:
    """They count training steps; a relative of v3 may have been saved without them."""
    encoder = Encoder.from_config(tiny_config()["encoder"])
    weights = {
        name.removeprefix("encoder."): tensor
        for name, tensor in tiny_weights(tiny_config()).items()
        if name.startswith("encoder.") and not name.endswith("num_batches_tracked")
    }
    assert len(weights) == len(encoder.state_dict()) - 2
    encoder.load_state_dict(weights)
