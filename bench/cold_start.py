"""Time from the start of a worker process to its first transcript, by phase.

Every engine starts twice in a fresh process; the second start counts, with code and weights in the
page cache. The worker also starts once with a model that is not converted yet.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import engines, harness, random_model, recording
from bench.child import Child, each
from bench.random_model import Files

_ENGINES = "torch,worker-auto,nemo-fp32,transformers-fp32,onnx-asr-int8"
_FIRST = "worker-auto, new model"


@dataclass(frozen=True, slots=True)
class Start:
    """One start, in seconds per stage."""

    engine: str
    start: float
    imports: float
    weights: float
    warm: float
    first_transcript: float
    modules: int
    cpu_seconds: float

    @property
    def total(self) -> float:
        return self.start + self.imports + self.weights + self.warm + self.first_transcript


@dataclass(frozen=True, slots=True)
class Figure:
    """The start that counts of one engine, with those before it."""

    engine: str
    start: Start
    total_seconds: float
    totals_seconds_of_all_runs: tuple[float, ...]
    ratio: float | None


def started(engine: str, files: Files, audio: Path, arguments: argparse.Namespace) -> Start:
    """Start `engine` in its own process and transcribe one clip."""
    with Child(engine, files, arguments) as child:
        clip = {"audio": str(audio), "pieces": 1}
        silence = {"audio": str(_silence(arguments.work)), "pieces": 1}
        start, imports, load = child.call("start"), child.call("imports"), child.call("load")
        # An open worker is warm; the other engines are warmed up by transcribing silence.
        warm = 0.0 if engine.startswith("worker") else _transcribe_seconds(child, silence)
        return Start(
            engine=engine,
            start=start,
            imports=imports,
            weights=load,
            warm=warm,
            first_transcript=_transcribe_seconds(child, clip),
            modules=child.call("modules"),
            cpu_seconds=child.call("cpu_seconds"),
        )


def _transcribe_seconds(child: Child, clip: dict[str, object]) -> float:
    (seconds,) = child.call("transcribe", **clip)["seconds"]
    return float(seconds)


def _silence(work: Path) -> Path:
    import numpy as np

    path = work / "audio" / "silence.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((1, 16_000), np.float32))
    return path


def first_started(files: Files, audio: Path, arguments: argparse.Namespace) -> Start:
    """Start the worker with a model that no process has opened: a new folder, a new name."""
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        new = Files(Path(folder))
        try:
            os.link(files.nemo, new.nemo)
        except OSError:
            shutil.copyfile(files.nemo, new.nemo)
        return started("worker-auto", new, audio, arguments)


def figures(starts: Sequence[tuple[str, Sequence[Start]]]) -> list[Figure]:
    """The last start of each engine, relative to the worker."""
    totals = {name: runs[-1].total for name, runs in starts}
    worker = totals.get("worker-auto")
    return [
        Figure(
            engine=name,
            start=runs[-1],
            total_seconds=totals[name],
            totals_seconds_of_all_runs=tuple(run.total for run in runs),
            ratio=harness.ratio(totals[name], worker),
        )
        for name, runs in starts
    ]


def main() -> None:
    parser = harness.options(__doc__ or "", engines=_ENGINES)
    parser.add_argument("--runs", type=int, default=2, help="the last counts")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the first clip")
    arguments = harness.resolved(parser.parse_args())
    names = arguments.engines.split(",")
    files = random_model.made(arguments.size, arguments.work, engines.kinds(names))
    audio = recording.stored(arguments.work / "audio", arguments.seconds, 1)

    def runs(name: str) -> tuple[str, list[Start]]:
        if name == _FIRST:
            return name, [first_started(files, audio, arguments)]
        return name, [started(name, files, audio, arguments) for _ in range(arguments.runs)]

    if "worker-auto" in names:
        # After a start that fills the page cache, which this one is not about.
        names.insert(names.index("worker-auto") + 1, _FIRST)
    results = figures(each(names, runs))
    heads = [
        "engine, s",
        "start",
        "imports",
        "weights",
        "warm",
        "transcript",
        "total",
        "ratio",
        "cpu",
        "modules",
    ]
    harness.table(heads, [_row(figure) for figure in results])
    harness.write("cold_start", arguments, files.facts, results)


def _row(figure: Figure) -> tuple[object, ...]:
    start = figure.start
    stages = (start.start, start.imports, start.weights, start.warm, start.first_transcript)
    return (
        figure.engine,
        *stages,
        figure.total_seconds,
        figure.ratio,
        start.cpu_seconds,
        start.modules,
    )


if __name__ == "__main__":
    main()
