"""RunPod's entry point: starts the worker under the Python that has it installed."""

import os
import signal

if __name__ == "__main__":
    # Process 1 of a container loses a signal that it has no handler for: before all else.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import FrameType
from typing import NoReturn

_PACKAGE = "parakeet_worker"
_QUEUE = f"{_PACKAGE}.entrypoints.queue"
_SERVER = f"{_PACKAGE}.entrypoints.http"
_ROOT = Path(__file__).resolve().parent


def door(arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """The module to become: RunPod's queue and its SDK's local modes, or the HTTP server.

    An endpoint that balances load gives its workers no address to take jobs from.
    """
    local = any(argument.startswith(("--test_input", "--rp_")) for argument in arguments)
    if variables.get("RUNPOD_WEBHOOK_GET_JOB") or local:
        return _QUEUE
    # Before a test input in the folder, which an image may have by accident.
    balanced = variables.get("RUNPOD_ENDPOINT_ID") or variables.get("PORT")
    return _SERVER if balanced else _QUEUE


def environment_python() -> str | None:
    """The Python that has the worker: this one, or that of `.venv` beside this file."""
    if importlib.util.find_spec(_PACKAGE) is not None:
        return sys.executable
    beside = _ROOT / ".venv" / "bin" / "python"
    return str(beside) if beside.exists() else None


def python_on_volume() -> tuple[str, dict[str, str]]:
    """The Python of an environment on the volume, installed first if need be, and its variables."""
    spec = PathFinder.find_spec(_PACKAGE, [str(_ROOT / "src")])
    if spec is None or spec.loader is None:
        sys.exit("parakeet: neither the worker nor its sources are beside handler.py")
    package = sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    from parakeet_worker.bootstrap import prepare, variables
    from parakeet_worker.errors import SetupError

    for warning in variables.clean(os.environ):
        _tell(f"warning: {warning}")

    # So that the lease is given back.
    signal.signal(signal.SIGTERM, _end)
    try:
        prepared = prepare(os.environ, _ROOT, _tell)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")
    return str(prepared.python), prepared.variables


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _tell(line: str) -> None:
    sys.stderr.write(f"parakeet: {line}\n")
    sys.stderr.flush()


def main() -> None:
    module = door(sys.argv[1:], os.environ)
    python, variables = environment_python(), dict(os.environ)
    if python is None:
        python, variables = python_on_volume()
    # `exec` forgets handlers and keeps the mask: the module unblocks it once it has a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execve(python, [python, "-m", module, *sys.argv[1:]], variables)  # noqa: S606  # the point


if __name__ == "__main__":
    main()
