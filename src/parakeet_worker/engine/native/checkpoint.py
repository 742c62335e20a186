"""Checkpoint loading: NVIDIA's `.nemo` or a `safetensors` folder of transformers.

Both are converted to NeMo's configuration sections and parameter names, which the modules use.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from parakeet_worker.engine.native.config_section import ConfigSection
from parakeet_worker.engine.native.tensors import Tensors
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import WeightsCorrupt, WeightsUnsupported

Section = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ModelConfig:
    """Configuration of a TDT model, in NeMo's sections."""

    preprocessor: Section
    encoder: Section
    decoder: Section
    joint: Section
    durations: tuple[int, ...]
    max_symbols: int
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint(ModelConfig):
    """A trained model with NeMo's parameter names."""

    source: Path
    weights: Tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.nemo` file or a folder with `model.safetensors`, `config.json`, `tokenizer.json`.

    Raises `WeightsCorrupt` if it cannot be read, `WeightsUnsupported` if it uses options that are
    not implemented.
    """
    with translate_errors(path):
        if path.is_dir():
            return _read_safetensors(path)
        return _read_nemo(path)


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Translate library errors to `WeightsCorrupt`, and add `path` to `WeightsUnsupported`."""
    try:
        yield
    except WeightsUnsupported as failure:
        raise failure.found_in(path) from None
    except (OSError, KeyError, ValueError, RuntimeError, EOFError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
    except (tarfile.TarError, UnpicklingError, SafetensorError, yaml.YAMLError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure


def _read_nemo(path: Path) -> Checkpoint:
    with tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        with _member(archive, members, "model_config.yaml") as opened:
            config = yaml.load(opened, yaml.CSafeLoader)
        with _member(archive, members, "model_weights.ckpt") as opened:
            # An uncompressed archive is read in place, without a second copy in memory.
            stored = opened if _is_uncompressed(path) else io.BytesIO(opened.read())
            weights = torch.load(stored, map_location="cpu", weights_only=True)
    return _from_nemo(config, path, weights)


def _is_uncompressed(path: Path) -> bool:
    """Whether a tar archive is uncompressed, so that its members are seekable."""
    with path.open("rb") as opened:
        return not opened.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


def _member(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str
) -> IO[bytes]:
    opened = archive.extractfile(members[name])
    if opened is None:
        raise KeyError(name)
    return opened


def _from_nemo(config: Section, source: Path, weights: Tensors) -> Checkpoint:
    durations, max_symbols = _read_decoding(ConfigSection("decoding", config["decoding"]))
    pieces = config["joint"].get("vocabulary") or config.get("labels")
    if not pieces:
        raise KeyError("joint.vocabulary")
    renamed = {
        name.replace("preprocessor.featurizer.", "preprocessor."): tensor
        for name, tensor in weights.items()
    }
    return Checkpoint(
        preprocessor=config["preprocessor"],
        encoder=config["encoder"],
        decoder=config["decoder"],
        joint=config["joint"],
        durations=durations,
        max_symbols=max_symbols,
        vocabulary=Vocabulary(tuple(str(piece) for piece in pieces)),
        source=source,
        weights=renamed,
    )


def _read_decoding(options: ConfigSection) -> tuple[tuple[int, ...], int]:
    """Durations and maximum symbols per frame, from NeMo's `decoding` section."""
    options.get_choice("model_type", "tdt", default="rnnt")
    options.get_choice("strategy", "greedy_batch", "greedy", default="greedy_batch")
    greedy = options.subsection("greedy")
    durations = options.get_ints("durations", (0, 1, 2, 3, 4))
    # NeMo writes the second name when it saves a model.
    max_symbols = greedy.get_int("max_symbols", greedy.get_int("max_symbols_per_step", 10))
    greedy.get_choice("ngram_lm_model", None, default=None)
    boosted = greedy.subsection("boosting_tree")
    for phrases in ("model_path", "key_phrases_file", "key_phrases_list", "key_phrase_items_list"):
        boosted.get_choice(phrases, None, default=None)
    # The remaining options configure beam searches and reports that this engine does not run.
    return durations, max_symbols


def _read_safetensors(folder: Path) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    return _from_transformers(
        config,
        _extractor_options(folder),
        _pieces(tokenizer, int(config["blank_token_id"])),
        folder,
        load_file(folder / "model.safetensors"),
    )


def _extractor_options(folder: Path) -> Section:
    """Options of the feature extractor, from its own file or from the processor's."""
    extractor, processor = folder / "preprocessor_config.json", folder / "processor_config.json"
    if extractor.exists():
        options: Section = json.loads(extractor.read_text())
    elif processor.exists():
        options = json.loads(processor.read_text())["feature_extractor"]
    else:
        options = {}
    return options


def _pieces(tokenizer: Section, blank: int) -> tuple[str, ...]:
    model = tokenizer["model"]["vocab"]
    by_id: dict[int, str] = (
        {token: piece for piece, token in model.items()}
        if isinstance(model, dict)
        else {token: piece for token, (piece, _) in enumerate(model)}
    )
    for added in tokenizer.get("added_tokens", ()):
        by_id.setdefault(int(added["id"]), str(added["content"]))
    return tuple(by_id[token] for token in range(blank))


def _from_transformers(
    config: Section, features: Section, pieces: tuple[str, ...], source: Path, weights: Tensors
) -> Checkpoint:
    if config.get("model_type") != "parakeet_tdt":
        raise WeightsUnsupported("config", "model_type", config.get("model_type"))
    encoder = _encoder_section(config["encoder_config"])
    width, hidden = encoder["d_model"], config["decoder_hidden_size"]
    return Checkpoint(
        preprocessor=_preprocessor_section(features, encoder["feat_in"]),
        encoder=encoder,
        decoder={
            "vocab_size": len(pieces),
            "prednet": {"pred_hidden": hidden, "pred_rnn_layers": config["num_decoder_layers"]},
        },
        joint={
            "num_classes": len(pieces),
            "num_extra_outputs": len(config["durations"]),
            "jointnet": {
                "encoder_hidden": width,
                "pred_hidden": hidden,
                "joint_hidden": hidden,
                "activation": config.get("hidden_act", "relu"),
            },
        },
        durations=tuple(config["durations"]),
        max_symbols=config.get("max_symbols_per_step", 10),
        vocabulary=Vocabulary(pieces),
        source=source,
        weights=_nemo_names(weights),
    )


def _encoder_section(config: Section) -> dict[str, Any]:
    options = ConfigSection("encoder_config", config)
    options.get_choice("hidden_act", "silu", default="silu")
    options.get_choice("subsampling_conv_kernel_size", 3, default=3)
    options.get_choice("subsampling_conv_stride", 2, default=2)
    bias = options.get_bool("attention_bias", True)
    if options.get_bool("convolution_bias", bias) != bias:
        raise WeightsUnsupported("encoder_config", "convolution_bias", not bias)
    width, feed_forward = options.get_int("hidden_size"), options.get_int("intermediate_size")
    if feed_forward % width:
        raise WeightsUnsupported("encoder_config", "intermediate_size", feed_forward)
    heads = options.get_int("num_attention_heads")
    options.get_choice("num_key_value_heads", heads, default=heads)
    section = {
        "feat_in": options.get_int("num_mel_bins", 80),
        "n_layers": options.get_int("num_hidden_layers"),
        "d_model": width,
        "n_heads": heads,
        "ff_expansion_factor": feed_forward // width,
        "conv_kernel_size": options.get_int("conv_kernel_size", 9),
        "subsampling": "dw_striding",
        "subsampling_factor": options.get_int("subsampling_factor", 8),
        "subsampling_conv_channels": options.get_int("subsampling_conv_channels", 256),
        "use_bias": bias,
        "xscaling": options.get_bool("scale_input", True),
    }
    # Used in training only, or metadata; the position table is as long as needed.
    options.ignore("dropout", "dropout_positions", "layerdrop", "activation_dropout")
    options.ignore("attention_dropout", "initializer_range", "max_position_embeddings")
    options.ignore("model_type", "dtype", "architectures", "transformers_version", "_name_or_path")
    options.reject_unread()
    return section


def _preprocessor_section(features: Section, mels: int) -> dict[str, Any]:
    sample_rate = features.get("sampling_rate", 16_000)
    return {
        "sample_rate": sample_rate,
        "features": features.get("feature_size", mels),
        "window_size": features.get("win_length", 400) / sample_rate,
        "window_stride": features.get("hop_length", 160) / sample_rate,
        "n_fft": features.get("n_fft", 512),
        "preemph": features.get("preemphasis", 0.97),
    }


RENAMED = (
    ("encoder.subsampling.layers.", "encoder.pre_encode.conv."),
    ("encoder.subsampling.linear.", "encoder.pre_encode.out."),
    (".self_attn.q_proj.", ".self_attn.linear_q."),
    (".self_attn.k_proj.", ".self_attn.linear_k."),
    (".self_attn.v_proj.", ".self_attn.linear_v."),
    (".self_attn.o_proj.", ".self_attn.linear_out."),
    (".self_attn.relative_k_proj.", ".self_attn.linear_pos."),
    (".self_attn.bias_u", ".self_attn.pos_bias_u"),
    (".self_attn.bias_v", ".self_attn.pos_bias_v"),
    (".conv.norm.", ".conv.batch_norm."),
    ("decoder.embedding.", "decoder.prediction.embed."),
    ("decoder.lstm.", "decoder.prediction.dec_rnn.lstm."),
    ("encoder_projector.", "joint.enc."),
    ("decoder.decoder_projector.", "joint.pred."),
    ("joint.head.", "joint.joint_net.1."),
)


def _nemo_names(weights: Tensors) -> Tensors:
    renamed = {}
    for name, tensor in weights.items():
        nemo_name = name
        for transformers_part, nemo_part in RENAMED:
            nemo_name = nemo_name.replace(transformers_part, nemo_part)
        renamed[nemo_name] = tensor
    return renamed
