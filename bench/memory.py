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
    """One engine: idle, at the worst moment of its start, and over idle by pieces at once."""

    engine: str
    idle_mebibytes: float
    peak_of_start_mebibytes: float
    peak_over_idle_mebibytes: dict[str, float | None]
    """By the number of pieces; none where memory ran out."""


def measured(engine: str, child: Child, arguments: argparse.Namespace) -> Figure:
    """Smallest batch first: the first one that does not fit ends the engine's process."""
    counts = [int(count) for count in arguments.pieces.split(",")]
    audio = str(recording.stored(arguments.work / "audio", _SECONDS, max(counts)))
    child.ask("imports")
    child.ask("load")
    # What is mapped from a file is in memory once it has been used.
    child.ask("transcribe", audio=str(recording.stored(arguments.work / "audio", 2, 1)), pieces=1)
    idle, peak = child.ask("mebibytes"), child.ask("peak_mebibytes")
    over: dict[str, float | None] = {str(count): None for count in counts}
    for count in counts:
        try:
            child.ask("forget_peak")
            child.ask("transcribe", audio=audio, pieces=count)
            over[str(count)] = child.ask("peak_mebibytes") - idle
        except ChildFailed as failure:
            print(f"{engine}, {count} pieces: {failure}")
            break
    return Figure(engine, idle, peak, over)


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument("--pieces", default="1,16,64", help="of 30 s at once, comma separated")
    arguments = harness.resolved(parser.parse_args())
    names = (arguments.engines or _ENGINES[arguments.device]).split(",")
    files = random_model.made(arguments.size, arguments.work, engines.kinds(names))

    def measure(name: str) -> Figure:
        if name.startswith("native"):
            # A model that is new is converted, once: that is not what is asked here.
            with Child(name, files, arguments) as child:
                child.ask("imports")
                child.ask("load")
        with Child(name, files, arguments) as child:
            return measured(name, child, arguments)

    found = each(names, measure)
    counts = arguments.pieces.split(",")
    heads = ("engine, MiB", "idle", "start peak", *(f"+ {count} x 30 s" for count in counts))
    harness.table(heads, [_row(figure) for figure in found])
    harness.write("memory", arguments, files.facts, found)


def _row(figure: Figure) -> tuple[object, ...]:
    over = figure.peak_over_idle_mebibytes.values()
    return (figure.engine, figure.idle_mebibytes, figure.peak_of_start_mebibytes, *over)


if __name__ == "__main__":
    main()
