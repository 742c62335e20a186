"""Configuration of the demo checkpoint: that of Parakeet TDT 0.6B v3 with smaller sizes."""

from typing import Any

MELS = 80
ENCODER_WIDTH = 128
PREDICTOR_WIDTH = 64
JOINT_WIDTH = 128
DURATIONS = (0, 1, 2, 3, 4)
FRAME_SECONDS = 0.08

PREPROCESSOR: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "sample_rate": 16000,
    "normalize": "per_feature",
    "window_size": 0.025,
    "window_stride": 0.01,
    "window": "hann",
    "features": MELS,
    "n_fft": 512,
    "log": True,
    "frame_splicing": 1,
    "dither": 1e-05,
    "pad_to": 0,
    "pad_value": 0.0,
}

ENCODER: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": MELS,
    "feat_out": -1,
    "n_layers": 4,
    "d_model": ENCODER_WIDTH,
    "use_bias": False,
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_conv_channels": 32,
    "causal_downsampling": False,
    "ff_expansion_factor": 4,
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
    "dropout": 0.05,
    "dropout_pre_encoder": 0.05,
    "dropout_emb": 0.0,
    "dropout_att": 0.0,
    "stochastic_depth_drop_prob": 0.0,
    "stochastic_depth_mode": "linear",
    "stochastic_depth_start_layer": 1,
}


def predictor(vocabulary: int) -> dict[str, Any]:
    """NeMo's `decoder` section."""
    return {
        "_target_": "nemo.collections.asr.modules.RNNTDecoder",
        "normalization_mode": None,
        "random_state_sampling": False,
        "blank_as_pad": True,
        "prednet": {
            "pred_hidden": PREDICTOR_WIDTH,
            "pred_rnn_layers": 2,
            "t_max": None,
            "dropout": 0.2,
        },
        "vocab_size": vocabulary,
    }


def joint(pieces: list[str]) -> dict[str, Any]:
    """NeMo's `joint` section for the tokenizer's pieces."""
    return {
        "_target_": "nemo.collections.asr.modules.RNNTJoint",
        "log_softmax": None,
        "preserve_memory": False,
        "fuse_loss_wer": False,
        "fused_batch_size": -1,
        "jointnet": {
            "joint_hidden": JOINT_WIDTH,
            "activation": "relu",
            "dropout": 0.2,
            "pred_hidden": PREDICTOR_WIDTH,
            "encoder_hidden": ENCODER_WIDTH,
        },
        "num_extra_outputs": len(DURATIONS),
        "num_classes": len(pieces),
        "vocabulary": pieces,
    }
