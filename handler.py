"""RunPod's entry point: exec the worker under the Python that has its packages installed."""

import os
import signal

if __name__ == "__main__":
    # Before other imports: the kernel drops signals of process 1 that have no handler.
    for _early in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_early, lambda number, _: os._exit(128 + number))

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


def entry_module(arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """The module to run: RunPod's queue, which includes the SDK's local modes, or the HTTP server.

    Workers of a load-balancing endpoint have no URL to take jobs from.
    """
    local = any(argument.startswith(("--test_input", "--rp_")) for argument in arguments)
    if variables.get("RUNPOD_WEBHOOK_GET_JOB") or local:
        return _QUEUE
    # Checked before `test_input.json` in the working folder, which an image may contain by mistake.
    balanced = variables.get("RUNPOD_ENDPOINT_ID") or variables.get("PORT")
    return _SERVER if balanced else _QUEUE


def installed_python() -> str | None:
    """This Python if it has the packages, else that of `.venv` next to this file, else None."""
    if importlib.util.find_spec(_PACKAGE) is not None:
        return sys.executable
    python = _ROOT / ".venv" / "bin" / "python"
    return str(python) if python.exists() else None


def prepare_volume() -> tuple[str, dict[str, str]]:
    """Find or install the packages on the volume; return their Python and environment variables."""
    spec = PathFinder.find_spec(_PACKAGE, [str(_ROOT / "src")])
    if spec is None or spec.loader is None:
        sys.exit("parakeet: neither the worker nor its sources are next to handler.py")
    package = sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    from parakeet_worker.bootstrap import prepare, variables
    from parakeet_worker.errors import SetupError

    for warning in variables.clean(os.environ):
        _log(f"warning: {warning}")

    # Raises SystemExit, so that the lease is released.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _exit)
    try:
        prepared = prepare(os.environ, _ROOT, _log)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")
    return str(prepared.python), prepared.variables


def _exit(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _log(line: str) -> None:
    sys.stderr.write(f"parakeet: {line}\n")
    sys.stderr.flush()


def main() -> None:
    module = entry_module(sys.argv[1:], os.environ)
    python, variables = installed_python(), dict(os.environ)
    if python is None:
        python, variables = prepare_volume()
    # `exec` resets handlers and keeps the mask: the module unblocks the signal with its handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execve(python, [python, "-m", module, *sys.argv[1:]], variables)  # noqa: S606  # intended


if __name__ == "__main__":
    main()
