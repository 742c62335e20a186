"""One engine in a process of its own: the child's main, and the parent's end of the line.

Every engine runs in a fresh process with its own memory statistics. If memory runs out, the kernel
kills this process first.
"""

# As a child only what costs nothing may be imported here: its start is being measured.
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from bench.random_model import Files

_STARTED = time.time()
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ChildFailed(Exception):
    """The child exited before it responded; the reason is in its log."""


class Child:
    """An engine by its name, in a fresh process, for the length of a `with` block."""

    def __init__(self, engine: str, files: "Files", arguments: "argparse.Namespace") -> None:
        kind, _, precision = engine.rpartition("-")
        threads = str(arguments.threads)
        self._log = arguments.work / "log" / f"{engine}.txt"
        self._parameters = {
            "engine": engine,
            "precision": precision if kind else "",
            "folder": str(files.folder),
            "device": arguments.device,
            "threads": arguments.threads,
            "settings": dict(setting.split("=", 1) for setting in arguments.setting),
        }
        # No model downloads, and the same number of threads in every pool.
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, threads) | quiet
        # Else every start would compile every library from its source again.
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def __enter__(self) -> "Child":
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            parameters = json.dumps({**self._parameters, "asked_at": time.time()})
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.child", parameters],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def call(self, do: str, **arguments: Any) -> Any:
        """The child's answer; raises `ChildFailed` if it dies over the question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ChildFailed(self._last_words(do))
        return json.loads(answer)

    def _last_words(self, do: str) -> str:
        status = self._process.wait()
        if status == -9:
            return f"{do}: the system ended it, which it does when memory runs out"
        lines = self._log.read_text().strip().splitlines() or ["without a word"]
        return f"{do}: status {status}: {lines[-1]}"


def each(engines: "Sequence[str]", measure: "Callable[[str], Any]") -> list[Any]:
    """`measure` one engine after another; failures are printed and do not stop the others."""
    results = []
    for engine in engines:
        print(f"... {engine}", file=sys.stderr, flush=True)
        try:
            results.append(measure(engine))
        except ChildFailed as failure:
            print(f"{engine} failed: {failure}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    """Answer requests on standard input until it closes."""
    # What libraries print goes where it is kept; the answers have the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from bench.harness import die_first
    from bench.served import Served

    die_first()
    served = Served(json.loads(sys.argv[1]), _STARTED)
    for line in sys.stdin:
        answers.write(json.dumps(served.answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
