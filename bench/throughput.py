"""How many seconds of audio each engine transcribes in one second, on pieces of 30 s.

Every engine transcribes the same chunks with the same threads in every batch size; the best counts.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench import engines, harness, random_model, recording
from bench.child import Child, ChildFailed, each

_ENGINES = {
    "cpu": "native-auto,native-fp32,native-bf16,native-int8,nemo-fp32,transformers-fp32,"
    "onnx-asr-int8",
    "cuda": "native-auto,native-fp32,native-bf16,native-fp16,nemo-fp32,nemo-bf16,"
    "transformers-fp32,transformers-bf16",
}
_BATCHES = {"cpu": "1,4", "cuda": "1,4,16,32,64,128"}


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine at one batch size; a batch that did not fit has no seconds."""

    pieces: int
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """CPU time of all threads, unaffected by other processes."""
    audio_seconds_per_second: float | None
    tokens_per_audio_second: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One engine at its best batch size, and at all others."""

    engine: str
    audio_seconds_per_second: float | None
    best_pieces: int | None
    tokens_per_audio_second: float | None
    ratio: float | None
    batches: tuple[Batch, ...]
    stage_milliseconds_per_audio_second: dict[str, float] | None


def measured(engine: str, child: Child, arguments: argparse.Namespace) -> Figure:
    """Every batch size, then where the time of the best one goes."""
    batches = []
    for pieces in arguments.batches:
        try:
            batches.append(_batch(child, pieces, arguments))
        except ChildFailed as failure:
            print(f"{engine}, {pieces} pieces: {failure}")
            batches.append(Batch(pieces, (), (), None, None))
            break
    fitting = [batch for batch in batches if batch.audio_seconds_per_second]
    nothing = Figure(engine, None, None, None, None, tuple(batches), None)
    if not fitting:
        return nothing
    best = max(fitting, key=lambda batch: batch.audio_seconds_per_second or 0.0)
    # A batch that did not fit has ended the engine's process.
    profiled = engine.startswith("native") and len(fitting) == len(batches)
    return replace(
        nothing,
        audio_seconds_per_second=best.audio_seconds_per_second,
        best_pieces=best.pieces,
        tokens_per_audio_second=best.tokens_per_audio_second,
        stage_milliseconds_per_audio_second=_stages(child, best.pieces, arguments)
        if profiled
        else None,
    )


def _batch(child: Child, pieces: int, arguments: argparse.Namespace) -> Batch:
    clip = {"audio": str(_audio(arguments)), "pieces": pieces}
    (once,) = child.call("transcribe", **clip)["seconds"]
    repeats = harness.repeats_within(arguments, once, fewest=2)
    runs = child.call("transcribe", **clip, repeats=repeats)
    audio_seconds = pieces * arguments.seconds
    return Batch(
        pieces=pieces,
        seconds=tuple(runs["seconds"]),
        cpu_seconds=tuple(runs["cpu_seconds"]),
        audio_seconds_per_second=audio_seconds / harness.median(runs["seconds"]),
        tokens_per_audio_second=runs["tokens"] / audio_seconds,
    )


def _stages(child: Child, pieces: int, arguments: argparse.Namespace) -> dict[str, float]:
    seconds: dict[str, float] = child.call("stages", audio=str(_audio(arguments)), pieces=pieces)
    audio_seconds = pieces * arguments.seconds
    return {stage: 1000 * spent / audio_seconds for stage, spent in seconds.items()}


def _audio(arguments: argparse.Namespace) -> object:
    return recording.stored(arguments.work / "audio", arguments.seconds, max(arguments.batches))


def compared(figures: Sequence[Figure]) -> list[Figure]:
    """With every engine's seconds as a multiple of the first one's."""
    first = figures[0].audio_seconds_per_second if figures else None
    return [
        replace(figure, ratio=harness.ratio(first, figure.audio_seconds_per_second))
        for figure in figures
    ]


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument("--batches", help="comma separated numbers of pieces")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")
    parser.add_argument("--budget-seconds", type=float, default=120.0, help="per batch size")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a piece")
    arguments = harness.resolved(parser.parse_args())
    names = (arguments.engines or _ENGINES[arguments.device]).split(",")
    batches = (arguments.batches or _BATCHES[arguments.device]).split(",")
    arguments.batches = [int(pieces) for pieces in batches]
    files = random_model.made(arguments.size, arguments.work, engines.kinds(names))

    def measure(name: str) -> Figure:
        with Child(name, files, arguments) as child:
            child.call("imports")
            child.call("load")
            return measured(name, child, arguments)

    figures = compared(each(names, measure))
    _show(figures, arguments.seconds)
    harness.write("throughput", arguments, files.facts, figures)


def _show(figures: Sequence[Figure], piece_seconds: float) -> None:
    heads = ("engine", "audio s/s", "batch", "slower by", "tokens/s", "cpu s/audio s", "range s")
    harness.table(heads, [_row(figure, piece_seconds) for figure in figures])
    profiled = [
        (figure.engine, figure.stage_milliseconds_per_audio_second)
        for figure in figures
        if figure.stage_milliseconds_per_audio_second
    ]
    if profiled:
        print("\nms per audio second")
        harness.table(
            ("engine", *profiled[0][1]), [(name, *spent.values()) for name, spent in profiled]
        )


def _row(figure: Figure, piece_seconds: float) -> tuple[object, ...]:
    rates = (figure.audio_seconds_per_second, figure.best_pieces, figure.ratio)
    best = [batch for batch in figure.batches if batch.pieces == figure.best_pieces]
    if not best:
        return (figure.engine, *rates, None, None, None)
    (batch,) = best
    cpu = harness.median(batch.cpu_seconds) / (batch.pieces * piece_seconds)
    spread = f"{min(batch.seconds):.2f}-{max(batch.seconds):.2f}"
    return (figure.engine, *rates, figure.tokens_per_audio_second, cpu, spread)


if __name__ == "__main__":
    main()
