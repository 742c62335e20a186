"""Makes `samples/`: synthesised recordings in held-out voices with known text and word times.

`python -m training.samples --into samples`, then with `--check demo.nemo` to transcribe them.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

import parakeet_worker
from parakeet_worker import open_model
from training.augment import Wave, coloured_noise
from training.clips import SAMPLE_RATE, Clip, spoken
from training.espeak import Setting, Synthesiser
from training.utterances import Assembly, SpokenWord
from training.voices import ACCENTS, HELD_OUT_VARIANTS
from training.words import Lexicon, lexicons

SEED = 20
TAKES: dict[str, int] = {"de": 4, "en": 45}
"""Samples drawn again after an error in the first: name to number of the draw."""

CHECKPOINTS = Path(parakeet_worker.__file__).parent / "checkpoints"
PEAK = 0.5

WAV = ("wav", "-c:a", "pcm_s16le")
FLAC = ("flac", "-c:a", "flac")
MP3 = ("mp3", "-c:a", "libmp3lame", "-b:a", "64k")
VORBIS = ("ogg", "-c:a", "libvorbis", "-q:a", "3")
OPUS = ("opus", "-c:a", "libopus", "-b:a", "32k")
AAC = ("m4a", "-c:a", "aac", "-b:a", "64k")
SHORT_FORMATS = (
    WAV, MP3, (*FLAC, "-ar", "16000"), OPUS, (*AAC, "-ar", "44100"), (*VORBIS, "-ar", "44100"),
    (*MP3, "-ar", "44100", "-ac", "2"), (*OPUS, "-ac", "2"), (*AAC, "-ar", "48000", "-ac", "2"),
    (*VORBIS, "-ar", "48000", "-ac", "2"),
)  # fmt: skip
SMALL_OPUS = ("opus", "-c:a", "libopus", "-b:a", "20k")
SMALL_MP3 = ("mp3", "-c:a", "libmp3lame", "-b:a", "32k")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the manifest."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the manifest."""

    file: str
    language: str | None
    """Two letters, `mul` for several languages, null for none."""
    text: str
    seconds: float
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A sample before it is encoded."""

    name: str
    language: str | None
    wave: Wave
    words: tuple[SpokenWord, ...]
    encoding: tuple[str, ...]
    """File suffix, then ffmpeg's output options."""


class Narrator:
    """Synthesises sentences in held-out voices."""

    def __init__(self, synthesiser: Synthesiser) -> None:
        self._synthesiser = synthesiser

    def setting(self, language: str, randomness: np.random.Generator) -> Setting:
        """Choose a reading voice."""
        accent = ACCENTS.get(language, (language,))[0]
        return Setting(
            voice=f"{accent}+{randomness.choice(HELD_OUT_VARIANTS)}",
            words_per_minute=int(randomness.integers(125, 176)),
            pitch=int(randomness.integers(35, 66)),
            pitch_range=int(randomness.integers(35, 66)),
            word_gap=int(randomness.choice((0, 1, 2))),
        )

    def breath(
        self, words: Sequence[str], counts: tuple[int, int], setting: Setting,
        randomness: np.random.Generator,
    ) -> Clip:  # fmt: skip
        """Synthesise different words, drawn again if espeak-ng reports no word times."""
        while True:
            count = int(randomness.integers(counts[0], counts[1] + 1))
            chosen = tuple(str(word) for word in randomness.choice(words, count, replace=False))
            clip = spoken(self._synthesiser, chosen, ".", setting)
            if clip:
                return clip

    def passage(
        self, assembly: Assembly, lexicon: Lexicon, sentences: int, randomness: np.random.Generator
    ) -> None:
        """Compose alternating sentences of everyday words and digits, with pauses."""
        setting = self.setting(lexicon.language, randomness)
        for index in range(sentences):
            words, counts = (
                (lexicon.words[:10], (2, 5)) if index % 2 else (lexicon.words[10:], (2, 3))
            )
            assembly.speak(self.breath(words, counts, setting, randomness))
            assembly.end_sentence()
            assembly.pause(float(randomness.uniform(0.55, 1.0)))


def started(seconds: float) -> Assembly:
    """Create an assembly that starts with silence."""
    assembly = Assembly(speed=1.0)
    assembly.pause(seconds)
    return assembly


def noisy(wave: Wave, snr_decibels: float | None, randomness: np.random.Generator) -> Wave:
    """Scale the wave to the samples' level, with pink noise if an SNR is given."""
    level = float(np.sqrt(np.mean(np.square(wave[np.abs(wave) > 0]))))
    if snr_decibels is not None:
        noise = coloured_noise(len(wave), 0.5, randomness)
        wave = wave + noise * np.float32(level * 10 ** (-snr_decibels / 20))
    return wave * np.float32(PEAK / np.abs(wave).max())


def drawing(name: str) -> np.random.Generator:
    """Seed the generator of one sample."""
    return np.random.default_rng([SEED, TAKES.get(name, 0), *name.encode()])


def short_recordings(narrator: Narrator) -> list[Recording]:
    """Compose one per language: two or three sentences, a third of them in mild noise."""
    recordings = []
    for index, lexicon in enumerate(lexicons().values()):
        randomness = drawing(lexicon.language)
        assembly = started(float(randomness.uniform(0.2, 0.5)))
        narrator.passage(assembly, lexicon, 2 + index % 2, randomness)
        wave = noisy(assembly.wave(), 22.0 if index % 3 == 2 else None, randomness)
        encoding = SHORT_FORMATS[index % len(SHORT_FORMATS)]
        recordings.append(
            Recording(lexicon.language, lexicon.language, wave, assembly.words(), encoding)
        )
    return recordings


def english_minute(narrator: Narrator) -> Recording:
    """Compose about 75 s of English in five voices."""
    randomness = drawing("minute")
    assembly = started(0.4)
    while len(assembly.wave()) < 72 * SAMPLE_RATE:
        narrator.passage(assembly, lexicons()["en"], 4, randomness)
    wave = noisy(assembly.wave(), 30.0, randomness)
    return Recording("minute", "en", wave, assembly.words(), SMALL_MP3)


def all_languages(narrator: Narrator) -> Recording:
    """Compose more than five minutes: every language twice, in order and reversed."""
    randomness = drawing("languages")
    assembly = started(0.4)
    order = list(lexicons().values())
    for lexicon in [*order, *reversed(order)]:
        narrator.passage(assembly, lexicon, 3, randomness)
        assembly.pause(0.3)
    wave = noisy(assembly.wave(), 30.0, randomness)
    return Recording("languages", "mul", wave, assembly.words(), SMALL_OPUS)


def long_pause(narrator: Narrator) -> Recording:
    """Compose speech, eight seconds of faint noise, speech."""
    randomness = drawing("pause")
    assembly = started(0.3)
    narrator.passage(assembly, lexicons()["en"], 2, randomness)
    assembly.pause(8.0)
    narrator.passage(assembly, lexicons()["en"], 2, randomness)
    wave = noisy(assembly.wave(), 35.0, randomness)
    return Recording("pause", "en", wave, assembly.words(), MP3)


def noise_only() -> Recording:
    """Generate six seconds of pink noise."""
    wave = coloured_noise(6 * SAMPLE_RATE, 0.5, drawing("noise")) * np.float32(0.03)
    return Recording("noise", None, wave, (), OPUS)


def encode(recording: Recording, folder: Path) -> Path:
    """Encode the recording with ffmpeg, without dates, so that runs are reproducible."""
    suffix, *options = recording.encoding
    path = folder / f"{recording.name}.{suffix}"
    with tempfile.NamedTemporaryFile(suffix=".wav") as plain:
        soundfile.write(plain.name, recording.wave, SAMPLE_RATE, subtype="PCM_16")
        subprocess.run(
            ("ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-i", plain.name,
             "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact",
             *options, str(path)),
            check=True,
        )  # fmt: skip
    return path


def described(recording: Recording, path: Path) -> Sample:
    """Build the manifest's entry."""
    words = tuple(
        Word(word.written, round(word.start, 2), round(word.end, 2)) for word in recording.words
    )
    return Sample(
        file=path.name,
        language=recording.language,
        text=" ".join(word.word for word in words),
        seconds=round(len(recording.wave) / SAMPLE_RATE, 2),
        words=words,
    )


def make(folder: Path) -> list[Sample]:
    """Write all recordings and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    narrator = Narrator(Synthesiser())
    recordings = [
        *short_recordings(narrator), english_minute(narrator), all_languages(narrator),
        long_pause(narrator), noise_only(),
    ]  # fmt: skip
    samples = [described(recording, encode(recording, folder)) for recording in recordings]
    manifest = json.dumps([asdict(sample) for sample in samples], ensure_ascii=False, indent=1)
    (folder / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
    return samples


def errors(folder: Path, checkpoint: Path, precision: str) -> dict[str, str]:
    """Return the transcripts that differ from the reference, by file."""
    with open_model(str(checkpoint), precision=precision) as model:
        texts = {
            sample["file"]: (sample["text"], model.transcribe(folder / sample["file"]).text)
            for sample in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        }
    return {file: text for file, (reference, text) in texts.items() if text != reference}


def check(folder: Path, checkpoint: Path) -> int:
    """Print wrong transcripts in either precision; return their number."""
    wrong: set[str] = set()
    for precision in ("fp32", "int8"):
        for file, text in errors(folder, checkpoint, precision).items():
            print(f"{file} in {precision}: {text}")
            wrong.add(file)
    return len(wrong)


def write_clip(folder: Path) -> None:
    """Write the clip of `parakeet verify`: the English sample."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (text,) = (one["text"] for one in manifest if one["file"] == "en.ogg")
    shutil.copyfile(folder / "en.ogg", CHECKPOINTS / "clip.ogg")
    (CHECKPOINTS / "clip.txt").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Make the samples, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("samples"))
    parser.add_argument("--check", type=Path, metavar="CHECKPOINT")
    arguments = parser.parse_args()
    if arguments.check:
        wrong = check(arguments.into, arguments.check)
        raise SystemExit(f"{wrong} wrong transcripts" if wrong else 0)
    made = make(arguments.into)
    write_clip(arguments.into)
    print(f"{len(made)} samples, {sum(sample.seconds for sample in made):.0f} s")


if __name__ == "__main__":
    main()
