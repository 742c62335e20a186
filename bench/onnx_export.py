"""NeMo's ONNX export with int8 matrices, in the folder layout of onnx-asr.

Two steps in two processes, since each needs several times the model's size in memory.
"""

import json
import sys
from pathlib import Path

from bench.harness import die_first
from bench.random_model import Files


def export(folder: Path) -> None:
    """`encoder-*.onnx` and `decoder_joint-*.onnx` in float32, by NeMo itself."""
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(Files(folder).nemo), map_location="cpu").eval()
    model.export(str(folder / "onnx.float" / "model.onnx"))
    names = model.tokenizer.ids_to_tokens(list(range(model.decoding.blank_id)))
    lines = [f"{name} {place}" for place, name in enumerate([*names, "<blk>"])]
    layout = folder / "onnx.partial"
    (layout / "vocab.txt").write_text("\n".join(lines) + "\n")
    options = {
        "model_type": "nemo-conformer-tdt",
        "features_size": int(model.cfg.preprocessor.features),
        "subsampling_factor": int(model.encoder.subsampling_factor),
    }
    (layout / "config.json").write_text(json.dumps(options))


def quantise(folder: Path) -> None:
    """Matrices to int8 with a scale per output; convolutions stay, which is faster."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for part in ("encoder", "decoder_joint"):
        quantize_dynamic(
            folder / "onnx.float" / f"{part}-model.onnx",
            folder / "onnx.partial" / f"{part}-model.int8.onnx",
            op_types_to_quantize=["MatMul"] if part == "encoder" else None,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


if __name__ == "__main__":
    die_first()
    {"export": export, "quantise": quantise}[sys.argv[1]](Path(sys.argv[2]))
