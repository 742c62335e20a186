"""Accuracy, speed and memory of speaker labels, and of pyannote.audio's and senko's pipelines.

Conversations of recorded digits and of synthesised voices, split into a tuning set, on which
thresholds were chosen, and a held-out set with other takes, voices, seeds, and one speaker who is
in every conversation of recorded digits and in none of the tuning set. A third set has long
conversations of held-out digits, a fourth twelve more of synthesised voices, a fifth 20 more of
held-out digits and 20 of further synthesised voices.
The recordings (Free Spoken Digit Dataset, CC BY-SA 4.0) are not part of the project.
"""

import argparse
import asyncio
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate
from scipy.optimize import linear_sum_assignment

from bench import dialogues, diarizers, harness
from bench.alignment import aligned
from bench.dialogues import Dialogue, Kind, Source
from bench.diarizers import Diarizer
from bench.spoken import ReferenceWord, plain
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.model import open_model
from parakeet_worker.options import SpeakerCount
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition.speaker_labels import labelled
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.request import FileSource, Request
from parakeet_worker.settings import Settings
from parakeet_worker.speakers.diarization import FRAME_SECONDS, activity
from parakeet_worker.speakers.networks import default_device
from parakeet_worker.speakers.recording import Diarized
from parakeet_worker.speakers.windows import HOP_FRAMES, WINDOW_FRAMES, Window
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.worker import open_pipeline
from recordings import wav
from training import flite

_COLLAR_SECONDS = 0.25
_SYNTHESISED = 4
"""Conversations of each group of synthesised voices."""
_TUNING_SPEAKERS = ("jackson", "nicolas", "yweweler")
_HELD_OUT_SPEAKER = "george"
_TAKES = {"tuning": range(25), "held-out": range(25, 50)}
_VARIANTS = {
    "tuning": ("m1", "f2", "klatt2", "croak", "Andrea", "grandma", "Denis", "belinda"),
    "held-out": ("m7", "f3", "klatt4", "grandpa", "linda", "Nguyen", "rob", "steph3"),
}
# One of each family of variants, drawn at random from those of no other set.
_MORE_VARIANTS = (
    ("Marco", "victor", "Gene", "caleb", "Lee", "pedro", "norbert", "boris"),
    ("f4", "anika", "marcelo", "Jacky", "Diogo", "paul", "Alex", "quincy"),
    ("aunty", "edward", "kaukovalta", "benjamin", "zac", "sandro", "miguel", "ed"),
)
_FURTHER_VARIANTS = (
    ("f5", "m3", "Annie", "Mario", "Hugo", "adam", "iven2", "klatt6"),
    ("m2", "f1", "Alicia", "Gene2", "antonio", "john", "travis", "shelby"),
    ("m5", "Andy", "iven4", "pablo", "robert", "max", "steph", "klatt3"),
    ("m4", "Michael", "Henrique", "david", "edward2", "gustave", "michel", "iven"),
    ("m6", "m8", "iven3", "klatt", "steph2", "RicishayMax", "announcer", "Storm"),
)
_FLITE = {"tuning": ("awb", "slt"), "held-out": ("rms", "kal16")}
_FIRST_SEED = {
    "tuning": 1000,
    "held-out": 3000,
    "long": 4000,
    "synthesised": 5000,
    "further": 17000,
}
_HOUR_SECONDS = 3600.0
_MEMORY_SPEAKERS = 20
_HOP_SECONDS = HOP_FRAMES * FRAME_SECONDS


def kinds(part: str) -> list[Kind]:
    """The kinds of conversations in a set."""
    if part == "long":
        return [Kind("human", 2, 10, 0.1, 6), Kind("human", 4, 30, 0.1, 6)]
    human = [
        Kind("human", speakers, minutes, overlap, decibels)
        for speakers, minutes, overlap, decibels in (
            (2, 1, 0.0, 0), (2, 2, 0.2, 6), (2, 3, 0.1, 12), (2, 1, 0.3, 3),
            (3, 2, 0.0, 6), (3, 3, 0.2, 6), (3, 1.5, 0.1, 12),
            (4, 2, 0.0, 3), (4, 3, 0.2, 6), (4, 4, 0.1, 10),
        )
    ]  # fmt: skip
    if part == "tuning":
        limit = len(_TUNING_SPEAKERS)
        human = [Kind(**{**asdict(kind), "speakers": min(kind.speakers, limit)}) for kind in human]
    synthesised = [
        Kind("synthesised", 2, 2, 0.1, 6, crowd_decibels=25),
        Kind("synthesised", 2, 1, 0.0, 3, room=True),
        Kind("synthesised", 3, 2, 0.2, 6, crowd_decibels=20),
        Kind("synthesised", 4, 3, 0.1, 6, crowd_decibels=25, room=True),
    ]
    if part == "synthesised":
        return synthesised * len(_MORE_VARIANTS)
    if part == "further":
        return [*human, *human, *synthesised * len(_FURTHER_VARIANTS)]
    return [*human, *synthesised]


def composed(part: str, digits: Path) -> Iterator[Dialogue]:
    """Every conversation of a set."""
    voices = "tuning" if part == "tuning" else "held-out"
    speakers = _TUNING_SPEAKERS if part == "tuning" else ()
    human = dialogues.recorded(digits, _TAKES[voices], speakers)
    more = {"synthesised": _MORE_VARIANTS, "further": _FURTHER_VARIANTS}
    variants = more.get(part, (_VARIANTS[voices],))
    synthesised = [
        dialogues.Synthesised(each, _FLITE[voices], _FIRST_SEED[part] + number)
        for number, each in enumerate(variants)
    ]
    of_voices = itertools.chain.from_iterable(zip(*[synthesised] * _SYNTHESISED, strict=True))
    for number, kind in enumerate(kinds(part)):
        source: Source = human if kind.source == "human" else next(of_voices)
        always = _HELD_OUT_SPEAKER if kind.source == "human" and part != "tuning" else None
        yield dialogues.made(kind, source, _FIRST_SEED[part] + number, always)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One pipeline on one conversation."""

    part: str
    pipeline: str
    kind: str
    speakers: int
    counted: int
    speech_seconds: float
    error_seconds: float
    missed_seconds: float
    false_alarm_seconds: float
    confused_seconds: float
    collar_speech_seconds: float
    collar_error_seconds: float
    jaccard_error_rate: float
    words: int = 0
    matched_words: int = 0
    right_speaker_words: int = 0
    word_errors: int = 0
    speaker_word_errors: int = 0


def annotation(turns: Iterable[tuple[float, float, str]]) -> Annotation:
    """Turns as pyannote.metrics reads them."""
    result = Annotation()
    for number, (start, end, speaker) in enumerate(turns):
        result[Segment(start, end), number] = speaker
    return result


def accuracy(
    part: str, name: str, dialogue: Dialogue, diarized: Diarized, words: Transcript | None
) -> Accuracy:
    turns = [(each.start_seconds, each.end_seconds, each.speaker) for each in diarized.turns]
    reference, hypothesis = annotation(dialogue.turns()), annotation(turns)
    whole = annotation([(0.0, dialogue.seconds, "")]).get_timeline()
    exact = DiarizationErrorRate()(reference, hypothesis, uem=whole, detailed=True)
    collared = DiarizationErrorRate(collar=2 * _COLLAR_SECONDS)
    lenient = collared(reference, hypothesis, uem=whole, detailed=True)
    jaccard = JaccardErrorRate()(reference, hypothesis, uem=whole)
    return Accuracy(
        part=part,
        pipeline=name,
        kind=dialogue.kind.source,
        speakers=dialogue.kind.speakers,
        counted=len({speaker for _, _, speaker in turns}),
        speech_seconds=exact["total"],
        error_seconds=_errors(exact),
        missed_seconds=exact["missed detection"],
        false_alarm_seconds=exact["false alarm"],
        confused_seconds=exact["confusion"],
        collar_speech_seconds=lenient["total"],
        collar_error_seconds=_errors(lenient),
        jaccard_error_rate=float(jaccard),
        **({} if words is None else word_figures(dialogue, diarized, words)),
    )


def _errors(detail: dict[str, float]) -> float:
    return detail["missed detection"] + detail["false alarm"] + detail["confusion"]


def word_figures(dialogue: Dialogue, diarized: Diarized, transcript: Transcript) -> dict[str, int]:
    """The recognised words with their speakers against the reference."""
    result = labelled(replace(transcript, turns=diarized.turns), diarized.similarities)
    recognised = [
        ReferenceWord(plain(word.text), word.start_seconds, word.end_seconds)
        for word in result.words
    ]
    speakers = [word.speaker.name if word.speaker else "" for word in result.words]
    reference = [each.word for each in dialogue.words]
    alignment = aligned(reference, recognised)
    pairs = [
        (dialogue.words[index].speaker, speakers[partner])
        for index, partner in enumerate(alignment.partners)
        if partner is not None
    ]
    names, labels = (sorted(set(column)) for column in zip(*pairs, strict=True))
    shared = np.array([[pairs.count((one, other)) for other in labels] for one in names])
    rows, columns = linear_sum_assignment(-shared)
    by_reference = _by_speaker([each.speaker for each in dialogue.words], reference)
    by_hypothesis = _by_speaker(speakers, recognised)
    return {
        "words": len(reference),
        "matched_words": len(pairs),
        "right_speaker_words": int(shared[rows, columns].sum()),
        "word_errors": alignment.errors,
        "speaker_word_errors": concatenated_errors(by_reference, by_hypothesis),
    }


def _by_speaker(speakers: Sequence[str], words: Sequence[ReferenceWord]) -> list[list[str]]:
    return [
        [word.text for name, word in zip(speakers, words, strict=True) if name == speaker]
        for speaker in sorted(set(speakers))
    ]


def concatenated_errors(reference: list[list[str]], hypothesis: list[list[str]]) -> int:
    """Word errors of cpWER: the words of each speaker in a row, under the best assignment."""
    count = max(len(reference), len(hypothesis))
    reference = reference + [[]] * (count - len(reference))
    hypothesis = hypothesis + [[]] * (count - len(hypothesis))
    costs = np.array([[distance(one, other) for other in hypothesis] for one in reference])
    return int(costs[linear_sum_assignment(costs)].sum())


def distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance in words."""
    numbers = {word: index for index, word in enumerate({*first, *second})}
    other = np.array([numbers[word] for word in second], dtype=np.int64)
    steps = np.arange(len(second) + 1)
    row = steps.copy()
    for word in first:
        replaced = row[:-1] + (other != numbers[word])
        new = np.concatenate(([row[0] + 1], np.minimum(replaced, row[1:] + 1)))
        # Insertions: each place is at most one more than the place before.
        row = np.minimum.accumulate(new - steps) + steps
    return int(row[-1])


def pipelines(arguments: argparse.Namespace) -> dict[str, Diarizer]:
    """The compared pipelines by name."""
    tuned, published = diarizers.TUNED_THRESHOLD, diarizers.PUBLISHED_THRESHOLD
    device = default_device(arguments.device)
    reference = diarizers.Pyannote(device, published, cached=True)

    def with_threshold(threshold: float) -> Diarizer:
        def diarized(samples: Samples) -> Diarized:
            reference.set_threshold(threshold)
            return reference(samples)

        return diarized

    made: dict[str, Callable[[], Diarizer]] = {
        "project": lambda: diarizers.Project(device),
        "pyannote": lambda: with_threshold(published),
        "pyannote tuned": lambda: with_threshold(tuned),
        "senko": lambda: diarizers.Senko(device),
    }
    return {name: made[name]() for name in arguments.pipelines}


def measured_accuracy(arguments: argparse.Namespace) -> Iterator[Accuracy]:
    compared = pipelines(arguments)
    with open_model(model=arguments.model, device=arguments.device) as model:
        for part in arguments.sets:
            for dialogue in composed(part, arguments.digits):
                words = model.transcribe(dialogue.samples)
                for name, diarize in compared.items():
                    yield accuracy(part, name, dialogue, diarize(dialogue.samples), words)


def show_accuracy(figures: Sequence[Accuracy]) -> None:
    heads = (
        "set", "voices", "pipeline", "DER %", "missed", "false", "confused", "DER collar %",
        "JER %", "count right", "right speaker %", "WER %", "cpWER %",
    )  # fmt: skip
    ordered = sorted(figures, key=_group)
    rows = [_row(key, list(group)) for key, group in groupby(ordered, key=_group)]
    harness.table(heads, rows)


def _group(figure: Accuracy) -> tuple[str, str, str]:
    return figure.part, figure.kind, figure.pipeline


def _row(key: tuple[str, str, str], those: Sequence[Accuracy]) -> tuple[object, ...]:
    def total(field: str) -> float:
        return sum(getattr(each, field) for each in those)

    def percent(part: str, whole: str) -> float:
        return 100 * total(part) / max(total(whole), 1e-9)

    right = sum(each.counted == each.speakers for each in those)
    return (
        *key,
        percent("error_seconds", "speech_seconds"),
        percent("missed_seconds", "speech_seconds"),
        percent("false_alarm_seconds", "speech_seconds"),
        percent("confused_seconds", "speech_seconds"),
        percent("collar_error_seconds", "collar_speech_seconds"),
        100 * total("jaccard_error_rate") / len(those),
        f"{right} of {len(those)}",
        percent("right_speaker_words", "matched_words"),
        percent("word_errors", "words"),
        percent("speaker_word_errors", "words"),
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """One pipeline on the same audio, interleaved with the others."""

    pipeline: str
    audio_seconds: float
    seconds: list[float]
    cpu_seconds: list[float]


def measured_speed(arguments: argparse.Namespace) -> list[Speed]:
    """Every pipeline in turn on one conversation, after a short one that counts nothing."""
    human = dialogues.recorded(arguments.digits, _TAKES["tuning"])
    dialogue = dialogues.made(Kind("human", 4, arguments.speed_minutes, 0.1, 6), human, 1)
    device = default_device(arguments.device)
    makers: dict[str, Callable[[], Diarizer]] = {
        "project": lambda: diarizers.Project(device),
        "pyannote": lambda: diarizers.Pyannote(device, diarizers.PUBLISHED_THRESHOLD),
        "senko": lambda: diarizers.Senko(device),
    }
    compared = {name: make() for name, make in makers.items() if name in arguments.pipelines}
    for diarize in compared.values():
        diarize(dialogue.samples[: 30 * SAMPLE_RATE])
    figures = {name: Speed(name, dialogue.seconds, [], []) for name in compared}
    for _ in range(arguments.repeats):
        for name, diarize in compared.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            diarize(dialogue.samples)
            figures[name].seconds.append(time.perf_counter() - begin)
            figures[name].cpu_seconds.append(time.process_time() - begin_cpu)
    return list(figures.values())


def show_speed(figures: Sequence[Speed]) -> None:
    def speed(figure: Speed, seconds: list[float]) -> float:
        return figure.audio_seconds / min(seconds)

    reference = next((each for each in figures if each.pipeline == "pyannote"), figures[0])
    rows = [
        (
            each.pipeline,
            speed(each, each.seconds),
            speed(each, each.seconds) / speed(reference, reference.seconds),
            speed(each, each.cpu_seconds),
            speed(each, each.cpu_seconds) / speed(reference, reference.cpu_seconds),
        )
        for each in figures
    ]
    heads = ("pipeline", "audio s per s", "x pyannote", "audio s per cpu s", "x pyannote, cpu")
    harness.table(heads, rows)


@dataclass(frozen=True, slots=True)
class FirstWords:
    """How long the first words of a recording take, by turns with and without speakers."""

    audio_seconds: float
    seconds: list[float]
    seconds_with_speakers: list[float]


def measured_first_words(arguments: argparse.Namespace) -> FirstWords:
    """Of a stream, in a worker without other work."""
    human = dialogues.recorded(arguments.digits, _TAKES["tuning"])
    dialogue = dialogues.made(Kind("human", 4, arguments.speed_minutes, 0.1, 6), human, 1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    settings = Settings(model=arguments.model, device=arguments.device)
    with TemporaryDirectory() as folder, open_pipeline(settings) as pipeline:
        path = Path(folder, "conversation.wav")
        path.write_bytes(wav(dialogue.samples))
        plain_request = Request(FileSource(path))
        requests = {False: plain_request, True: replace(plain_request, speakers=SpeakerCount())}
        for number in range(arguments.repeats + 1):
            for speakers, request in requests.items():
                took = asyncio.run(_first_words_seconds(pipeline, request))
                if number:  # the first one loads the networks
                    seconds[speakers].append(took)
    return FirstWords(dialogue.seconds, seconds[False], seconds[True])


async def _first_words_seconds(pipeline: Pipeline, request: Request) -> float:
    started = time.perf_counter()
    # To its end: windows that are computed would delay the next stream.
    async with aclosing(pipeline.partials(request, Stopwatch())) as partials:
        seconds = [time.perf_counter() - started async for each in partials if each.words]
    return seconds[0]


@dataclass(frozen=True, slots=True)
class Memory:
    """The clustering of a long recording, made by repetition of computed windows."""

    hours: float
    speakers: int
    counted: int
    windows: int
    held_mebibytes: float
    """What the networks computed, until the recording ends."""
    peak_mebibytes: float
    """The same and the clustering."""
    seconds: float


def measured_memory(arguments: argparse.Namespace) -> Memory:
    """The networks compute a conversation of 20 voices; the clustering sees copies of it."""
    # In a process of its own: what the networks release would hide what the clustering takes.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        computed = apart.submit(_computed, arguments.memory_minutes, arguments.device).result()
    repeats = math.ceil(arguments.hours * _HOUR_SECONDS / (len(computed) * _HOP_SECONDS))
    before, begin = harness.reset_peak(), time.perf_counter()
    many = [_copied(window) for _ in range(repeats) for window in computed]
    held = harness.resident_mebibytes("VmRSS")
    frames = HOP_FRAMES * (len(many) - 1) + WINDOW_FRAMES
    counted = activity(many, SpeakerCount(), frames).speakers
    return Memory(
        hours=len(many) * _HOP_SECONDS / _HOUR_SECONDS,
        speakers=_MEMORY_SPEAKERS,
        counted=counted,
        windows=len(many),
        held_mebibytes=held - before,
        peak_mebibytes=harness.resident_mebibytes("VmHWM") - before,
        seconds=time.perf_counter() - begin,
    )


def _computed(minutes: float, device: str) -> list[Window]:
    chosen = _VARIANTS["tuning"] + _VARIANTS["held-out"]
    voices = dialogues.Synthesised(chosen, tuple(flite.VOICES), 7)
    kind = Kind("synthesised", _MEMORY_SPEAKERS, minutes, 0.0, 6)
    return diarizers.windows(dialogues.made(kind, voices, 3).samples, device)


def _copied(window: Window) -> Window:
    """A window with memory of its own."""
    return Window(
        window.active.copy(),
        window.pitch.copy(),
        tuple(replace(piece) for piece in window.pieces),
        window.embeddings.copy(),
        window.steps.copy(),
        window.step_embeddings.copy(),
        window.used,
    )


def main(command_line: Sequence[str] | None = None) -> None:
    """Print a table for each part, and write the figures."""
    arguments = _arguments(command_line)
    torch.set_num_threads(arguments.threads)
    figures: list[Any] = []
    if "memory" in arguments.parts:
        memory = measured_memory(arguments)
        harness.table(tuple(asdict(memory)), [tuple(asdict(memory).values())])
        figures.append(memory)
    if "accuracy" in arguments.parts:
        accuracies = list(measured_accuracy(arguments))
        show_accuracy(accuracies)
        figures += accuracies
    if "speed" in arguments.parts:
        speeds = measured_speed(arguments)
        show_speed(speeds)
        figures += speeds
    if "first-words" in arguments.parts:
        first = measured_first_words(arguments)
        medians = [statistics.median(each) for each in (first.seconds, first.seconds_with_speakers)]
        harness.table(("first words, s", "with speakers, s"), [medians])
        figures.append(first)
    arguments.digits = arguments.digits.name
    harness.write("-".join(("speakers", *arguments.parts)), arguments, {"name": "demo"}, figures)


def _arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument

    def several(value: str) -> list[str]:
        return value.split(",")

    add("--digits", type=Path, required=True, metavar="FOLDER", help="{digit}_{speaker}_{take}.wav")
    add(
        "--parts",
        type=several,
        default=["accuracy", "speed"],
        help="accuracy,speed,memory,first-words",
    )
    add(
        "--sets",
        type=several,
        default=["held-out"],
        help="tuning,held-out,long,synthesised,further",
    )
    add("--pipelines", type=several, default=["project", "pyannote", "pyannote tuned", "senko"])
    add("--model", default="demo", help="of the words")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--repeats", type=int, default=3, help="in the parts speed and first-words")
    add("--speed-minutes", type=float, default=2.0)
    add("--hours", type=float, default=10.0, help="of the recording in the part memory")
    add("--memory-minutes", type=float, default=10.0, help="of it that the networks compute")
    add("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    return harness.resolved(parser.parse_args(command_line))


if __name__ == "__main__":
    main()
