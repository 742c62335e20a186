"""RunPod's entry point: starts the worker under the Python that has it installed."""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_PACKAGE = "parakeet_worker"
_MODULE = f"{_PACKAGE}.entrypoints.serverless"
_ROOT = Path(__file__).resolve().parent


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
    from parakeet_worker.bootstrap import prepare
    from parakeet_worker.errors import SetupError

    try:
        prepared = prepare(os.environ, _ROOT, _tell)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")
    return str(prepared.python), prepared.variables


def _tell(line: str) -> None:
    sys.stderr.write(f"parakeet: {line}\n")
    sys.stderr.flush()


def main() -> None:
    python, variables = environment_python(), dict(os.environ)
    if python is None:
        python, variables = python_on_volume()
    os.execve(python, [python, "-m", _MODULE, *sys.argv[1:]], variables)  # noqa: S606  # the point


if __name__ == "__main__":
    main()
