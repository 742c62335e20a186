"""PyYAML and safetensors where they are not installed: torch needs neither, the engine both.

The stand-ins do what the bench needs of them and nothing more. JSON is read and written in the
place of YAML; the demo checkpoint's configuration, which is YAML, is looked up by its digest.
"""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

CONFIGURATION = Path(__file__).with_name("demo_configuration.json")
"""The SHA-256 of the demo checkpoint's `model_config.yaml`, and its content."""


_REPLACED = ("yaml", "safetensors")


def missing() -> tuple[str, ...]:
    """What is not installed."""
    return tuple(name for name in _REPLACED if name not in sys.modules and not find_spec(name))


def install() -> None:
    """Put stand-ins in the place of what is missing."""
    makers = {"yaml": _yaml, "safetensors": _safetensors}
    for name in missing():
        makers[name]()


class YAMLError(Exception):
    """A document that cannot be read without PyYAML."""


def load_yaml(stream: Any, _: Any = None) -> Any:
    """JSON, or the demo checkpoint's configuration; raises `YAMLError`."""
    content = stream if isinstance(stream, bytes) else stream.read()
    known = json.loads(CONFIGURATION.read_text(encoding="utf-8"))
    if hashlib.sha256(content).hexdigest() == known["sha256"]:
        return known["configuration"]
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
    """Never raised; callers name it in `except`."""


def save_file(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """In torch's own format."""
    import torch

    torch.save({"tensors": dict(tensors), "metadata": metadata}, path)


def load_file(path: Path) -> dict[str, Any]:
    """The tensors of `save_file`."""
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


class safe_open:  # noqa: N801  # the name that safetensors gives it
    """What `save_file` wrote, mapped into memory."""

    def __init__(self, path: Path, framework: str) -> None:
        import torch

        assert framework == "pt"
        # Raises RuntimeError or UnpicklingError for other files.
        self._content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def metadata(self) -> dict[str, str]:
        found: dict[str, str] = self._content["metadata"]
        return found

    def keys(self) -> list[str]:
        return list(self._content["tensors"])

    def get_tensor(self, name: str) -> Any:
        return self._content["tensors"][name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close: the tensors keep the mapping."""


def _safetensors() -> None:
    module: Any = ModuleType("safetensors")
    nested: Any = ModuleType("safetensors.torch")
    module.SafetensorError = SafetensorError
    module.safe_open = safe_open
    module.torch = nested
    nested.save_file, nested.load_file = save_file, load_file
    sys.modules |= {"safetensors": module, "safetensors.torch": nested}
