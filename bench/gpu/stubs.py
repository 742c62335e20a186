"""Stubs for PyYAML and safetensors if they are not installed: torch requires neither.

The stubs implement only the functions that the benchmark uses. JSON replaces YAML; the demo
checkpoint's configuration, which is YAML, is looked up by its digest. The process that compiles
kernels ahead of time has no stubs: without the packages, kernels are compiled at first launch.
"""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

CONFIGURATION = Path(__file__).with_name("demo_configuration.json")
"""The SHA-256 of the demo checkpoint's `model_config.yaml`, and its content."""


_DTYPES = {
    "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64", "I8": "int8",
}  # fmt: skip
_PACKAGES = ("yaml", "safetensors")


def missing() -> tuple[str, ...]:
    """Names of the packages that are not installed."""
    return tuple(name for name in _PACKAGES if name not in sys.modules and not find_spec(name))


def install() -> None:
    """Install a stub for each missing package."""
    makers = {"yaml": _yaml, "safetensors": _safetensors}
    for name in missing():
        makers[name]()


class YAMLError(Exception):
    """A document that cannot be read without PyYAML."""


def load_yaml(stream: Any, _: Any = None) -> Any:
    """Parse JSON, or return the demo checkpoint's configuration. Raises `YAMLError`."""
    content = stream if isinstance(stream, bytes) else stream.read()
    demo = json.loads(CONFIGURATION.read_text(encoding="utf-8"))
    if hashlib.sha256(content).hexdigest() == demo["sha256"]:
        return demo["configuration"]
    try:
        return json.loads(content)
    except ValueError as failure:
        raise YAMLError("this configuration cannot be read without PyYAML") from failure


def _yaml() -> None:
    module: Any = ModuleType("yaml")
    module.YAMLError = YAMLError
    module.CSafeLoader = None
    module.load = load_yaml
    module.safe_dump = json.dumps
    sys.modules["yaml"] = module


class SafetensorError(Exception):
    """A file that is not in the safetensors format."""


class safe_open:  # noqa: N801  # the name in safetensors
    """A safetensors file, its tensors mapped into memory."""

    def __init__(self, path: Path, framework: str) -> None:
        """Raises `SafetensorError` and `OSError`."""
        assert framework == "pt"
        with path.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 0 < size < path.stat().st_size:
                raise SafetensorError("the header is longer than the file")
            try:
                self._header: dict[str, Any] = json.loads(opened.read(size))
            except ValueError as failure:
                raise SafetensorError("the header is not JSON") from failure
        self._metadata = self._header.pop("__metadata__", {})
        # Copy-on-write: torch has no read-only tensors.
        self._content = np.memmap(path, np.uint8, "c", offset=8 + size)

    def metadata(self) -> dict[str, str]:
        return dict(self._metadata)

    def keys(self) -> list[str]:
        return list(self._header)

    def get_tensor(self, name: str) -> Any:
        import torch

        entry = self._header[name]
        first, end = entry["data_offsets"]
        dtype = getattr(torch, _DTYPES[entry["dtype"]])
        return torch.from_numpy(self._content[first:end]).view(dtype).view(entry["shape"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """No-op: the tensors keep the mapping alive."""


def load_file(path: Path) -> dict[str, Any]:
    """All tensors of a file."""
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _safetensors() -> None:
    module: Any = ModuleType("safetensors")
    nested: Any = ModuleType("safetensors.torch")
    module.SafetensorError = SafetensorError
    module.safe_open = safe_open
    module.torch = nested
    nested.load_file = load_file
    sys.modules |= {"safetensors": module, "safetensors.torch": nested}
