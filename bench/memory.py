"""How much memory each engine holds idle, and how much more it takes for pieces of 30 s.

On a processor that is the resident memory of the engine's process, on a GPU what torch has given
out there.
"""

import argparse
from dataclasses import dataclass

from bench import engines, harness, random_model, recording
from bench.child import Child, ChildFailed, each

_ENGINES = {
    "cpu": "native-auto,native-fp32,nemo-fp32,transformers-fp32,onnx-asr-int8",
    "cuda": "native-auto,native-fp32,nemo-fp32,nemo-bf16,transformers-fp32,transformers-bf16",
}
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Figure:
    """Memory of one engine: idle, peak during start, and above idle by batch size."""

    engine: str
    idle_mebibytes: float
    peak_of_start_mebibytes: float
    peak_over_idle_mebibytes: dict[str, float | None]
    """By the number of pieces; none where memory ran out."""


def measured(engine: str, child: Child, arguments: argparse.Namespace) -> Figure:
    """Smallest batch first: the first one that does not fit ends the engine's process."""
    counts = [int(count) for count in arguments.pieces.split(",")]
    audio = str(recording.stored(arguments.work / "audio", _SECONDS, max(counts)))
    child.call("imports")
    child.call("load")
    # Mapped weights become resident on first use.
    child.call("transcribe", audio=str(recording.stored(arguments.work / "audio", 2, 1)), pieces=1)
    idle, peak = child.call("mebibytes"), child.call("peak_mebibytes")
    over: dict[str, float | None] = {str(count): None for count in counts}
    for count in counts:
        try:
            child.call("reset_peak")
            child.call("transcribe", audio=audio, pieces=count)
            over[str(count)] = child.call("peak_mebibytes") - idle
        except ChildFailed as failure:
            print(f"{engine}, {count} pieces: {failure}")
            break
    return Figure(engine, idle, peak, over)


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument(
        "--pieces", default="1,16,64", help="batch sizes of 30 s chunks, comma separated"
    )
    arguments = harness.resolved(parser.parse_args())
    names = (arguments.engines or _ENGINES[arguments.device]).split(",")
    files = random_model.made(arguments.size, arguments.work, engines.kinds(names))

    def measure(name: str) -> Figure:
        if name.startswith("native"):
            # Convert the model first, which is not part of this measurement.
            with Child(name, files, arguments) as child:
                child.call("imports")
                child.call("load")
        with Child(name, files, arguments) as child:
            return measured(name, child, arguments)

    results = each(names, measure)
    counts = arguments.pieces.split(",")
    heads = ("engine, MiB", "idle", "start peak", *(f"+ {count} x 30 s" for count in counts))
    harness.table(heads, [_row(figure) for figure in results])
    harness.write("memory", arguments, files.facts, results)


def _row(figure: Figure) -> tuple[object, ...]:
    over = figure.peak_over_idle_mebibytes.values()
    return (figure.engine, figure.idle_mebibytes, figure.peak_of_start_mebibytes, *over)


if __name__ == "__main__":
    main()
