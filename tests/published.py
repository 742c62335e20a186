"""Published metadata of the model family: configurations, names and sizes, without weights.

The two files of v3 are complete: built from their fields they have the git hashes of the published
ones. The sections of a `.nemo` file are those of NeMo's recipe for a FastConformer-TDT
(`fastconformer_hybrid_tdt_ctc_bpe.yaml`), with the sizes that are known of each model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parakeet_worker.engine.native.checkpoint import ModelConfig

V3_CONFIG = """\
{
  "architectures": [
    "ParakeetForTDT"
  ],
  "blank_token_id": 8192,
  "decoder_hidden_size": 640,
  "dtype": "float32",
  "durations": [
    0,
    1,
    2,
    3,
    4
  ],
  "encoder_config": {
    "activation_dropout": 0.1,
    "attention_bias": false,
    "attention_dropout": 0.1,
    "conv_kernel_size": 9,
    "convolution_bias": false,
    "dropout": 0.1,
    "dropout_positions": 0.0,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layerdrop": 0.1,
    "max_position_embeddings": 5000,
    "model_type": "parakeet_encoder",
    "num_attention_heads": 8,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_mel_bins": 128,
    "scale_input": false,
    "subsampling_conv_channels": 256,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "subsampling_factor": 8
  },
  "hidden_act": "relu",
  "initializer_range": 0.02,
  "is_encoder_decoder": true,
  "max_symbols_per_step": 10,
  "model_type": "parakeet_tdt",
  "num_decoder_layers": 2,
  "pad_token_id": 2,
  "transformers_version": "5.6.0.dev0",
  "vocab_size": 8193
}
"""
V3_CONFIG_BLOB = "969c65410a736e4a3922f968b3481b2418aba786"

V3_PROCESSOR_CONFIG = """\
{
  "blank_token": "<blank>",
  "feature_extractor": {
    "feature_extractor_type": "ParakeetFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 512,
    "padding_side": "right",
    "padding_value": 0.0,
    "preemphasis": 0.97,
    "return_attention_mask": true,
    "sampling_rate": 16000,
    "win_length": 400
  },
  "processor_class": "ParakeetProcessor"
}
"""
V3_PROCESSOR_CONFIG_BLOB = "7acffca89b7dd12e0ebcd085c7181c91cae6575c"

V3_TENSORS = 723
"""In `model.safetensors`: float32 all, but 24 counters of batch norm."""
V3_BYTES = 2_508_311_120
"""Of `model.safetensors`, its header included."""

MODELS = ("parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v2", "parakeet-tdt-1.1b")


def nemo_config(model: str) -> dict[str, Any]:
    """`model_config.yaml` as NeMo writes it into the `.nemo` file of one of `MODELS`."""
    if model == "parakeet-tdt-0.6b-v3":
        return _nemo_config(pieces=8192, mels=128)
    if model == "parakeet-tdt-0.6b-v2":
        return _nemo_config(pieces=1024, mels=128)
    config = _nemo_config(pieces=1024, mels=80)
    # The sizes of NeMo's "XXLarge" recipe; biases as in the model's CTC sibling.
    config["encoder"] |= {"n_layers": 42, "conv_kernel_size": 5, "use_bias": True}
    return config


def _nemo_config(pieces: int, mels: int) -> dict[str, Any]:
    vocabulary = ["<unk>", *(f"▁{number}" for number in range(pieces - 1))]
    durations = [0, 1, 2, 3, 4]
    data_set = {"manifest_filepath": None, "sample_rate": 16_000, "batch_size": 16}
    return {
        "sample_rate": 16_000,
        "compute_eval_loss": False,
        "log_prediction": True,
        "rnnt_reduction": "mean_volume",
        "skip_nan_grad": False,
        "model_defaults": {
            "enc_hidden": 1024,
            "pred_hidden": 640,
            "joint_hidden": 640,
            "tdt_durations": durations,
            "num_tdt_durations": 5,
        },
        "train_ds": {**data_set, "shuffle": True, "max_duration": 40.0, "min_duration": 0.1},
        "validation_ds": {**data_set, "shuffle": False, "use_start_end_token": False},
        "test_ds": None,
        "tokenizer": {
            "dir": "tokenizer",
            "type": "bpe",
            "model_path": "nemo:tokenizer.model",
            "vocab_path": "nemo:vocab.txt",
            "spe_tokenizer_vocab": "nemo:tokenizer.vocab",
        },
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16_000,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": mels,
            "n_fft": 512,
            "log": True,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "pad_value": 0.0,
        },
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            "freq_masks": 2,
            "time_masks": 10,
            "freq_width": 27,
            "time_width": 0.05,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": mels,
            "feat_out": -1,
            "n_layers": 24,
            "d_model": 1024,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": 256,
            "causal_downsampling": False,
            "reduction": None,
            "reduction_position": None,
            "reduction_factor": 1,
            "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos",
            "n_heads": 8,
            "att_context_size": [-1, -1],
            "att_context_style": "regular",
            "xscaling": False,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "use_pytorch_sdpa": False,
            "use_pytorch_sdpa_backends": [],
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
            "prednet": {"pred_hidden": 640, "pred_rnn_layers": 2, "t_max": None, "dropout": 0.2},
            "vocab_size": pieces,
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": True,
            "fused_batch_size": 4,
            "jointnet": {
                "joint_hidden": 640,
                "activation": "relu",
                "dropout": 0.2,
                "encoder_hidden": 1024,
                "pred_hidden": 640,
            },
            "num_extra_outputs": 5,
            "num_classes": pieces,
            "vocabulary": vocabulary,
        },
        "decoding": decoding_as_trained(),
        "interctc": {"loss_weights": [], "apply_at_layers": []},
        "loss": {
            "loss_name": "tdt",
            "tdt_kwargs": {
                "fastemit_lambda": 0.0,
                "clamp": -1.0,
                "durations": durations,
                "sigma": 0.02,
                "omega": 0.1,
            },
        },
        "optim": {
            "name": "adamw",
            "lr": 0.0003,
            "betas": [0.9, 0.98],
            "weight_decay": 0.001,
            "sched": {"name": "CosineAnnealing", "warmup_steps": 15_000, "min_lr": 1e-6},
        },
        "labels": vocabulary,
        "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        "nemo_version": "3.0.0",
    }


def decoding_as_trained() -> dict[str, Any]:
    """The section as the recipe has it."""
    return {
        "strategy": "greedy_batch",
        "model_type": "tdt",
        "durations": [0, 1, 2, 3, 4],
        "greedy": {"max_symbols": 10},
        "beam": {
            "beam_size": 2,
            "return_best_hypothesis": False,
            "score_norm": True,
            "tsd_max_sym_exp": 50,
            "alsd_max_target_len": 2.0,
        },
    }


def decoding_as_changed() -> dict[str, Any]:
    """The section as NeMo fills it in when a strategy is chosen, then saves it."""
    method = {
        "name": "entropy",
        "entropy_type": "tsallis",
        "alpha": 0.33,
        "entropy_norm": "exp",
        "temperature": "DEPRECATED",
    }
    return {
        "model_type": "tdt",
        "strategy": "greedy_batch",
        "compute_hypothesis_token_set": False,
        "preserve_alignments": None,
        "tdt_include_token_duration": None,
        "confidence_cfg": {
            "preserve_frame_confidence": False,
            "preserve_token_confidence": False,
            "preserve_word_confidence": False,
            "exclude_blank": True,
            "aggregation": "min",
            "tdt_include_duration": False,
            "method_cfg": method,
        },
        "fused_batch_size": None,
        "compute_timestamps": None,
        "compute_langs": False,
        "word_seperator": " ",
        "segment_seperators": [".", "!", "?"],
        "segment_gap_threshold": None,
        "rnnt_timestamp_type": "all",
        "greedy": {
            "max_symbols_per_step": 10,
            "preserve_alignments": False,
            "preserve_frame_confidence": False,
            "tdt_include_token_duration": False,
            "tdt_include_duration_confidence": False,
            "confidence_method_cfg": method,
            "loop_labels": True,
            "use_cuda_graph_decoder": True,
            "ngram_lm_model": None,
            "ngram_lm_alpha": 0.0,
            "boosting_tree": {
                "model_path": None,
                "key_phrases_file": None,
                "key_phrases_list": None,
                "key_phrase_items_list": None,
                "context_score": 1.0,
            },
            "boosting_tree_alpha": 0.0,
            "enable_per_stream_biasing": False,
            "max_symbols": 10,
        },
        "beam": {"beam_size": 4, "search_type": "default", "score_norm": True},
        "temperature": 1.0,
        "durations": [0, 1, 2, 3, 4],
        "big_blank_durations": [],
    }


def described(sections: dict[str, Any]) -> "ModelConfig":
    """Sections such as those of `nemo_config`, as the engine reads them from a file."""
    from parakeet_worker.engine.native.checkpoint import ModelConfig
    from parakeet_worker.engine.native.tokens import Vocabulary

    return ModelConfig(
        preprocessor=sections["preprocessor"],
        encoder=sections["encoder"],
        decoder=sections["decoder"],
        joint=sections["joint"],
        durations=tuple(sections["decoding"]["durations"]),
        max_symbols=sections["decoding"]["greedy"]["max_symbols"],
        vocabulary=Vocabulary(tuple(sections["joint"]["vocabulary"])),
    )
