"""Compiles a model's kernels in a process of its own, many at once.

The driver that Triton compiles for belongs to the whole process, and a compiler that crashes ends
its process: so each kernel is compiled in a fork of a process that starts none, and one that
crashes is one kernel that failed.
"""

import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from parakeet_worker.engine.native import checkpoint, prepacked
from parakeet_worker.engine.native.checkpoint import ModelConfig
from parakeet_worker.engine.native.kernels import ahead, cache
from parakeet_worker.engine.native.kernels.launcher import Launch
from parakeet_worker.engine.native.kernels.tiles import CAPABILITIES, tiles_for
from parakeet_worker.engine.native.launches import ModelShape, launches
from parakeet_worker.engine.native.precision import KERNEL_PRECISIONS, Precision

Job = tuple["Target", Launch]

_SOURCES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Target:
    """What one set of compiled kernels is for."""

    shape: ModelShape
    precision: Precision
    capability: ahead.Capability
    reproducible: bool = False

    @property
    def fingerprint(self) -> str:
        """Another one for other kernels, another Triton or another Python."""
        digest = sha256(repr((self, ahead.VERSION, _suffix())).encode())
        for path in sorted(_SOURCES.rglob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """What is to be compiled, and where it is kept."""

    targets: tuple[Target, ...]
    folders: tuple[Path, ...]
    """Read in this order, written to the last."""
    processes: int
    startable: bool = True
    """Build the C modules that start the kernels as well, which takes a C compiler."""
    measured: bool = False
    """Measure registers and spills, for which more than the machine code is kept."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One variant of a kernel for one card."""

    kernel: str
    variant: str
    target: Target
    seconds: float
    entries: tuple[str, ...] = ()
    """Of the cache, that were read or written."""
    failure: str | None = None
    usage: ahead.Usage | None = None

    @property
    def card(self) -> str:
        """`sm_90`."""
        return ahead.card_name(self.target.capability)


def targets(source: Path, precision: Precision, cards: Sequence[str]) -> tuple[Target, ...]:
    """For the model at `source` on each of `cards` (`9.0`), or on all that have kernels.

    A converted model has a precision of its own. Raises `ValueError` for what has no kernels, and
    what reading the model raises.
    """
    model: ModelConfig
    if source.suffix == ".safetensors":
        model = prepacked.load_prepacked(source)
        precision = model.precision
    else:
        model = checkpoint.read_checkpoint(source)
    if precision not in KERNEL_PRECISIONS:
        raise ValueError(f"there are no kernels for {precision}")
    chosen = [_capability(card) for card in cards] or CAPABILITIES
    shape = ModelShape.of(model)
    return tuple(
        Target(shape, precision, capability, reproducible)
        for capability in chosen
        for reproducible in (False, True)
    )


def _capability(card: str) -> ahead.Capability:
    major, dot, minor = card.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise ValueError(f"'{card}' is no compute capability such as 9.0")
    found = (int(major), int(minor))
    if found < min(CAPABILITIES):
        raise ValueError(f"there are no kernels for compute capability {card}")
    return found


def missing(targets: Sequence[Target], folders: Sequence[Path]) -> list[Target]:
    """Those whose kernels are not all in one of the folders."""
    return [target for target in targets if not _whole(target, folders)]


def compiled(request: CompileRequest) -> list[Compiled]:
    """Compile in a child process what is not there yet.

    Targets of which nothing failed are `missing` no more. Raises `ChildProcessError` if the child
    itself fails, `OSError` if nothing can be written.
    """
    ran = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asdict(request), default=str),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise ChildProcessError(f"compiling kernels ended with status {ran.returncode}")
    results = [_result(json.loads(line)) for line in ran.stdout.splitlines()]
    if request.startable:
        for target in request.targets:
            _keep(target, [one for one in results if one.target == target], request.folders[-1])
    return results


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _stamp(target: Target) -> str:
    card = ahead.card_name(target.capability)
    return f"{card}-{target.precision}-{target.fingerprint}.json"


def _keep(target: Target, results: Sequence[Compiled], folder: Path) -> None:
    """Write down that all is there, after it is."""
    if any(one.failure for one in results):
        return
    entries = sorted({entry for one in results for entry in one.entries})
    cache.write(folder / _stamp(target), json.dumps(entries).encode())


def _whole(target: Target, folders: Sequence[Path]) -> bool:
    stamp = _stamp(target)
    for folder in folders:
        try:
            entries = json.loads((folder / stamp).read_text())
        except (OSError, ValueError):
            continue
        if all(any((each / entry).is_dir() for each in folders) for entry in entries):
            return True
    return False


def _request(read: dict[str, Any]) -> CompileRequest:
    targets = tuple(_target(each) for each in read.pop("targets"))
    folders = tuple(Path(each) for each in read.pop("folders"))
    return CompileRequest(targets, folders, **read)


def _target(read: dict[str, Any]) -> Target:
    major, minor = read["capability"]
    shape, precision = ModelShape.from_dict(read["shape"]), Precision(read["precision"])
    return Target(shape, precision, (major, minor), read["reproducible"])


def _result(read: dict[str, Any]) -> Compiled:
    target, entries = _target(read.pop("target")), tuple(read.pop("entries"))
    usage = read.pop("usage")
    return Compiled(
        target=target, entries=entries, usage=ahead.Usage(**usage) if usage else None, **read
    )


def main() -> None:
    """The child: a request on standard input, one result per line on standard output."""
    request = _request(json.load(sys.stdin))
    ahead.prepare()
    jobs = [(target, launch) for target in request.targets for launch in _launches(target)]
    with _driver(request) as missing_compiler:
        for result in _forked(jobs, request, missing_compiler):
            print(json.dumps(asdict(result)), flush=True)  # noqa: T201


@contextmanager
def _driver(request: CompileRequest) -> Iterator[str | None]:
    """A driver to link C modules with; why there is none where there is no C compiler.

    Nothing is lost by that if the modules are in the cache.
    """
    with ExitStack() as stack:
        reason = None
        if request.startable:
            try:
                stack.enter_context(ahead.stub_driver())
            except ahead.NoCompiler as failure:
                reason = str(failure)
        yield reason


def _launches(target: Target) -> list[Launch]:
    tiles = tiles_for(target.capability)
    recorded = launches(target.shape, target.precision, tiles, reproducible=target.reproducible)
    return ahead.variants(recorded)


def _forked(
    jobs: Sequence[Job], request: CompileRequest, missing_compiler: str | None = None
) -> Iterator[Compiled]:
    """Results in the order in which they are ready."""
    work = partial(_work, request=request, missing_compiler=missing_compiler)
    waiting = list(reversed(range(len(jobs))))
    idle = [_Worker(jobs, work) for _ in range(min(request.processes, len(jobs)))]
    working: dict[Connection, tuple[_Worker, int]] = {}
    while waiting or working:
        while waiting and idle:
            worker, number = idle.pop(), waiting.pop()
            worker.connection.send(number)
            working[worker.connection] = (worker, number)
        for ready in connection.wait(list(working)):
            assert isinstance(ready, Connection)
            worker, number = working.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                yield _failed(jobs[number], "the compiler crashed")
                worker = _Worker(jobs, work)
            idle.append(worker)
    for worker in idle:
        worker.end()


class _Worker:
    """A fork that does one job after the other, by number."""

    def __init__(self, jobs: Sequence[Job], work: Callable[[Job], Compiled]) -> None:
        context = get_context("fork")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, jobs, work), daemon=True)
        self._process.start()
        theirs.close()

    def end(self) -> None:
        self.connection.send(None)
        self._process.join()


def _serve(ours: Connection, jobs: Sequence[Job], work: Callable[[Job], Compiled]) -> None:
    while (number := ours.recv()) is not None:
        ours.send(work(jobs[number]))


def _work(job: Job, request: CompileRequest, missing_compiler: str | None) -> Compiled:
    target, launch = job
    cache.use(request.folders, sources=request.measured)
    started = time.monotonic()
    try:
        kernel = ahead.compile_launch(launch, target.capability)
        seconds = time.monotonic() - started
        if request.startable:
            ahead.build_modules(kernel)
        usage = _usage(kernel, target, request.folders[-1]) if request.measured else None
    except ahead.NoCompiler as failure:
        return _failed(job, missing_compiler or str(failure))
    except Exception as failure:  # noqa: BLE001  # compilers raise anything
        return _failed(job, f"{type(failure).__name__}: {failure}"[:500])
    return Compiled(
        ahead.name_of(launch), ahead.label_of(launch), target, seconds,
        entries=tuple(sorted(cache.used())), usage=usage,
    )  # fmt: skip


def _usage(kernel: Any, target: Target, folder: Path) -> ahead.Usage:
    """Measured once: the assembler runs as long as for the machine code itself."""
    kept = folder / f"usage-{kernel.hash}.json"
    if kept.exists():
        return ahead.Usage(**json.loads(kept.read_text()))
    usage = ahead.usage(kernel, target.capability)
    cache.write(kept, json.dumps(asdict(usage)).encode())
    return usage


def _failed(job: Job, reason: str) -> Compiled:
    target, launch = job
    return Compiled(ahead.name_of(launch), ahead.label_of(launch), target, 0.0, failure=reason)


if __name__ == "__main__":
    main()
