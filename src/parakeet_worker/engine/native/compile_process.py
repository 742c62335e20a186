"""Child process of `compilation`: compiles kernels in a pool of forks.

Reads a request from standard input and writes one result per line to standard output.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from parakeet_worker.engine.native.compilation import CompiledKernel, CompileRequest, Target
from parakeet_worker.engine.native.kernels import ahead, cache
from parakeet_worker.engine.native.kernels.launcher import Launch
from parakeet_worker.engine.native.kernels.tiles import tiles_for
from parakeet_worker.engine.native.launches import launches

Task = tuple[Target, Launch]


def main() -> None:
    """Compile the request on standard input."""
    request = CompileRequest.from_dict(json.load(sys.stdin))
    ahead.precompute_key()
    tasks = [(target, launch) for target in request.targets for launch in _launches(target)]
    with _stub_driver(request) as compiler_error:
        for result in compile_all(tasks, request, compiler_error):
            print(json.dumps(asdict(result)), flush=True)  # noqa: T201


@contextmanager
def _stub_driver(request: CompileRequest) -> Iterator[str | None]:
    """Provide a driver to link C modules with; without a C compiler, yield the reason.

    A missing C compiler is no failure if the modules are in the cache.
    """
    with ExitStack() as stack:
        reason = None
        if request.launchable:
            try:
                stack.enter_context(ahead.stub_driver())
            except ahead.NoCompiler as failure:
                reason = str(failure)
        yield reason


def _launches(target: Target) -> list[Launch]:
    tiles = tiles_for(target.capability)
    recorded = launches(target.shape, target.precision, tiles, reproducible=target.reproducible)
    return ahead.variants(recorded)


def compile_all(
    tasks: Sequence[Task], request: CompileRequest, compiler_error: str | None = None
) -> Iterator[CompiledKernel]:
    """Results in order of completion; a crashed fork is replaced by a new one."""
    run = partial(_compile, request=request, compiler_error=compiler_error)
    waiting = list(reversed(range(len(tasks))))
    idle = [_Worker(tasks, run) for _ in range(min(request.processes, len(tasks)))]
    busy: dict[Connection, tuple[_Worker, int]] = {}
    while waiting or busy:
        while waiting and idle:
            worker, index = idle.pop(), waiting.pop()
            worker.connection.send(index)
            busy[worker.connection] = (worker, index)
        for ready in connection.wait(list(busy)):
            assert isinstance(ready, Connection)
            worker, index = busy.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                yield _failed(tasks[index], "the compiler crashed")
                worker = _Worker(tasks, run)
            idle.append(worker)
    for worker in idle:
        worker.close()


class _Worker:
    """A fork that runs one task after another, by index."""

    def __init__(self, tasks: Sequence[Task], run: Callable[[Task], CompiledKernel]) -> None:
        context = get_context("fork")
        self.connection, child_connection = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child_connection, tasks, run), daemon=True
        )
        self._process.start()
        child_connection.close()

    def close(self) -> None:
        self.connection.send(None)
        self._process.join()


def _serve(
    parent: Connection, tasks: Sequence[Task], run: Callable[[Task], CompiledKernel]
) -> None:
    while (index := parent.recv()) is not None:
        parent.send(run(tasks[index]))


def _compile(task: Task, request: CompileRequest, compiler_error: str | None) -> CompiledKernel:
    target, launch = task
    cache.activate(request.folders, sources=request.measured)
    started = time.monotonic()
    try:
        kernel = ahead.compile_launch(launch, target.capability)
        seconds = time.monotonic() - started
        if request.launchable:
            ahead.build_modules(kernel)
        usage = _usage(kernel, target, request.folders[-1]) if request.measured else None
    except ahead.NoCompiler as failure:
        return _failed(task, compiler_error or str(failure))
    except Exception as failure:  # noqa: BLE001  # compilers raise anything
        return _failed(task, f"{type(failure).__name__}: {failure}"[:500])
    return CompiledKernel(
        ahead.kernel_name(launch), ahead.variant_label(launch), target, seconds,
        entries=tuple(sorted(cache.used_keys())), usage=usage,
    )  # fmt: skip


def _usage(kernel: Any, target: Target, folder: Path) -> ahead.Usage:
    """Resource usage, cached: the assembler takes as long as for the machine code itself."""
    cached = folder / f"usage-{kernel.hash}.json"
    if cached.exists():
        return ahead.Usage(**json.loads(cached.read_text()))
    usage = ahead.measure_usage(kernel, target.capability)
    cache.write_atomic(cached, json.dumps(asdict(usage)).encode())
    return usage


def _failed(task: Task, reason: str) -> CompiledKernel:
    target, launch = task
    name, variant = ahead.kernel_name(launch), ahead.variant_label(launch)
    return CompiledKernel(name, variant, target, 0.0, failure=reason)


if __name__ == "__main__":
    main()
