"""RunPod's entry point: starts the worker under the Python that has it installed."""

import importlib.util
import os
import sys
from pathlib import Path

_MODULE = "parakeet_worker.entrypoints.serverless"


def environment_python() -> str:
    """The Python to run the worker with: this one, or that of `.venv` beside this file."""
    if importlib.util.find_spec("parakeet_worker") is not None:
        return sys.executable
    beside = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
    if beside.exists():
        return str(beside)
    sys.exit("parakeet: the worker is not installed here; run scripts/setup first")


def main() -> None:
    python = environment_python()
    os.execv(python, [python, "-m", _MODULE, *sys.argv[1:]])  # noqa: S606  # that is the point


if __name__ == "__main__":
    main()
