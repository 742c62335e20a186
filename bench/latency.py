"""How long one clip takes that comes alone: median and 95th percentile, for three lengths."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench import engines, harness, random_model, recording
from bench.child import Child, each

_ENGINES = {
    "cpu": "native-auto,nemo-fp32,transformers-fp32,onnx-asr-int8",
    "cuda": "native-auto,nemo-fp32,nemo-bf16,transformers-fp32,transformers-bf16",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One engine on clips of one length."""

    engine: str
    clip_seconds: float
    median_milliseconds: float
    p95_milliseconds: float
    ratio: float | None
    milliseconds: tuple[float, ...]


def measured(
    engine: str, child: Child, clip_seconds: float, arguments: argparse.Namespace
) -> Figure:
    """One run that does not count, then the repeats."""
    audio = recording.stored(arguments.work / "audio", clip_seconds, 1)
    clip = {"audio": str(audio), "pieces": 1}
    (once,) = child.call("transcribe", **clip)["seconds"]
    repeats = harness.repeats_within(arguments, once, fewest=5)
    runs = child.call("transcribe", **clip, repeats=repeats)
    milliseconds = [1000 * seconds for seconds in runs["seconds"]]
    return Figure(
        engine=engine,
        clip_seconds=clip_seconds,
        median_milliseconds=harness.median(milliseconds),
        p95_milliseconds=harness.percentile(milliseconds, 0.95),
        ratio=None,
        milliseconds=tuple(round(value, 3) for value in milliseconds),
    )


def compared(figures: Sequence[Figure]) -> list[Figure]:
    """With every median as a multiple of the first engine's on the same length."""
    first = {
        figure.clip_seconds: figure.median_milliseconds
        for figure in figures
        if figure.engine == figures[0].engine
    }
    return [
        replace(
            figure,
            ratio=harness.ratio(figure.median_milliseconds, first.get(figure.clip_seconds)),
        )
        for figure in figures
    ]


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument("--clips", default="2,8,30", help="seconds, comma separated")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--budget-seconds", type=float, default=30.0, help="per engine and clip")
    arguments = harness.resolved(parser.parse_args())
    names = (arguments.engines or _ENGINES[arguments.device]).split(",")
    files = random_model.made(arguments.size, arguments.work, engines.kinds(names))

    def measure(name: str) -> list[Figure]:
        with Child(name, files, arguments) as child:
            child.call("imports")
            child.call("load")
            clips = (float(clip) for clip in arguments.clips.split(","))
            return [measured(name, child, clip_seconds, arguments) for clip_seconds in clips]

    per_engine = each(names, measure)
    figures = compared([figure for figures in per_engine for figure in figures])
    heads = ("engine", "clip s", "median ms", "p95 ms", "ratio", "repeats")
    harness.table(heads, [_row(figure) for figure in figures])
    harness.write("latency", arguments, files.facts, figures)


def _row(figure: Figure) -> tuple[object, ...]:
    times = (figure.median_milliseconds, figure.p95_milliseconds, figure.ratio)
    return (figure.engine, figure.clip_seconds, *times, len(figure.milliseconds))


if __name__ == "__main__":
    main()
