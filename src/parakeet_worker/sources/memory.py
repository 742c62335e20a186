"""Audio in memory, written as a WAV file so that every source is processed alike."""

import struct
from pathlib import Path

import numpy as np

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.request import SamplesSource

_IEEE_FLOAT = 3
_SAMPLE_BYTES = 4


def write(source: SamplesSource, target: Path) -> None:
    """Write mono float32 samples losslessly as WAV; raises `InvalidRequest`."""
    if source.samples.ndim != 1 or source.samples.dtype.kind != "f":
        raise InvalidRequest("audio", "samples must be mono and of a floating-point type")
    samples = np.ascontiguousarray(source.samples, dtype="<f4")
    rate = source.sample_rate
    layout = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, _IEEE_FLOAT, 1, rate, rate * _SAMPLE_BYTES, _SAMPLE_BYTES, 32
    )
    data = struct.pack("<4sI", b"data", samples.nbytes)
    riff = struct.pack("<4sI4s", b"RIFF", 4 + len(layout) + len(data) + samples.nbytes, b"WAVE")
    target.write_bytes(riff + layout + data + samples.tobytes())
