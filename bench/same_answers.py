"""Whether a change of the pipeline changed any answer: text, times or confidences.

Every sample, clips of up to ten minutes in many formats and with all kinds of options, and forty
minutes of MP3 are transcribed one after the other in float32. `--write FILE` keeps the answers,
`--against FILE` compares with those that another commit wrote: text and
times exactly, probabilities but for their last digit.
"""

import argparse
import asyncio
import json
import sys
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import recordings
from bench import clips, harness
from parakeet_worker import answers
from parakeet_worker.errors import ParakeetError
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

_SEED = 5
_ONE_PIECE_SECONDS = 0.01
_PROBABILITIES = ("avg_logprob", "confidence")
_LAST_DIGITS = 3e-4
_CLIPS, _SHORTEST_SECONDS, _LONGEST_SECONDS = 16, 3.0, 600.0
_LONG_SECONDS = 2400.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="as PARAKEET_MODEL")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--against", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    # One chunk per batch: other chunks in a batch change the last digits.
    settings = Settings(
        model=arguments.model, device="cpu", precision="fp32", batch_seconds=_ONE_PIECE_SECONDS
    )
    with TemporaryDirectory() as kept, open_pipeline(settings) as pipeline:
        lengths = clips.lengths(_CLIPS, _SHORTEST_SECONDS, _LONGEST_SECONDS)
        made = [*clips.made(Path(kept), lengths, _SEED), _long(Path(kept))]
        answers = asyncio.run(_answers(pipeline, made))
    if arguments.write:
        arguments.write.write_text(json.dumps(answers, indent=1, sort_keys=True))
    if arguments.against:
        expected = json.loads(arguments.against.read_text())
        different = sorted(
            name
            for name in {*expected, *answers}
            if not _same(expected.get(name), answers.get(name))
        )
        print(f"{len(answers)} answers, {len(different)} different: {' '.join(different)}")
        sys.exit(bool(different))


def _long(folder: Path) -> clips.Clip:
    """Long enough to be decoded in several sections."""
    path = folder / "long.mp3"
    recordings.encode(path, "-b:a", "64k", samples=clips.row(_LONG_SECONDS, _SEED))
    return clips.Clip(path, _LONG_SECONDS, {}, inline=True)


def _same(one: Any, other: Any) -> bool:
    """Alike but for the last digit of a probability, which differs from run to run."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            abs(one[key] - other[key]) < _LAST_DIGITS
            if key in _PROBABILITIES and None not in (one[key], other[key])
            else _same(one[key], other[key])
            for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


async def _answers(pipeline: Pipeline, made: Sequence[clips.Clip]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for path in sorted((harness.ROOT / "samples").iterdir()):
        if path.suffix == ".json":
            continue
        content = b64encode(path.read_bytes()).decode()
        for vad in ("auto", "off"):
            payload = {
                "audio_base64": content,
                "vad": vad,
                "format": "verbose_json",
                "timestamp": True,
            }
            answers[f"{path.name} {vad}"] = await _answer(pipeline, payload)
    for clip in made:
        payload = {**clip.whole(), "format": "verbose_json", "timestamp": True}
        answers[clip.path.name] = await _answer(pipeline, payload)
    return answers


async def _answer(pipeline: Pipeline, payload: dict[str, Any]) -> Any:
    """The answer as JSON has it, or the error's."""
    try:
        answer: Any = await answers.answer(pipeline, {**payload, "debug": True})
    except ParakeetError as error:
        answer = error.document()
    document: dict[str, Any] = json.loads(json.dumps(answer))
    document.get("debug", {}).pop("seconds", None)
    return document


if __name__ == "__main__":
    main()
