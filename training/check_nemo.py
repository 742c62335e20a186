"""Compares with NeMo: `python -m training.check_nemo demo.nemo recordings...` (needs NeMo)."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from training.listener import Listener


def nemo_model(path: Path) -> Any:
    """Restore the checkpoint with NeMo on the CPU."""
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(path), map_location="cpu")
    model.eval()
    return model


def nemo_text(model: Any, samples: NDArray[np.float32]) -> str:
    """Transcribe one recording; NeMo's batched CPU decoding is not exact."""
    with torch.inference_mode():
        return str(model.transcribe([samples], batch_size=1, verbose=False)[0].text)


def main() -> None:
    """Print both texts of every recording; exit with an error if any differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("recordings", type=Path, nargs="+", help="16 kHz mono files")
    arguments = parser.parse_args()
    model, listener = nemo_model(arguments.checkpoint), Listener(arguments.checkpoint)
    different = 0
    for path in arguments.recordings:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != listener.sample_rate:
            raise SystemExit(f"{path}: {rate} Hz, not {listener.sample_rate}")
        mono = np.ascontiguousarray(samples.mean(axis=1))
        engine_text, reference = listener.text(mono), nemo_text(model, mono)
        different += engine_text != reference
        print(f"{path.name}\n  engine {engine_text}\n  NeMo   {reference}")
    raise SystemExit(f"{different} differ" if different else 0)


if __name__ == "__main__":
    main()
