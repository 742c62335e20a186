"""Long recordings, decoded in concurrent sections: the samples equal those of one ffmpeg."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from parakeet_worker.audio import child_process
from parakeet_worker.audio.channels import Mixer
from parakeet_worker.audio.decoder_report import Report
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding, find_ffmpeg
from parakeet_worker.audio.sections import CORES, Cores, Plan, Sections
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import DecoderKilled
from parakeet_worker.request import Clip
from recordings import cut, decode, encode, silence, tone, wav
from speech import named

pytestmark = pytest.mark.usefixtures("children")

SECTION_SECONDS = 20
SECONDS = 44
Children = Callable[[], list[psutil.Process]]

# Divisible formats, and others: AAC may contain generated noise, Opus has unbounded state, and
# the clock of Matroska counts milliseconds.
DIVIDED: dict[str, tuple[str, ...]] = {
    "44100.wav": ("-ar", "44100", "-ac", "2"),
    "16000.wav": (),
    "ulaw.wav": ("-c:a", "pcm_mulaw", "-ar", "8000"),
    "22050.aiff": ("-ar", "22050"),
    "44100.flac": ("-ar", "44100"),
    "constant.mp3": ("-ar", "44100", "-ac", "2", "-b:a", "96k"),
    "variable.mp3": ("-ar", "48000", "-q:a", "5"),
    "headless.mp3": ("-q:a", "4", "-write_xing", "0", "-id3v2_version", "0"),
    "alac.m4a": ("-c:a", "alac", "-ar", "44100"),
    "vorbis.ogg": ("-c:a", "libvorbis", "-ar", "44100"),
}
WHOLE: dict[str, tuple[str, ...]] = {
    "aac.m4a": ("-ar", "44100", "-b:a", "64k"),
    "opus.ogg": ("-c:a", "libopus", "-b:a", "24k"),
    "flac.mka": ("-c:a", "flac", "-ar", "44100"),
}


@pytest.fixture(autouse=True)
def nothing_taken() -> Iterator[None]:
    """However a recording ends, it gives back what it took."""
    before = CORES._busy, CORES._left_bytes
    yield
    assert (CORES._busy, CORES._left_bytes) == before


@pytest.fixture(scope="module")
def spoken() -> Samples:
    """More than two sections of speech, in which no second is like another."""
    return different_minutes(1)[: SECONDS * SAMPLE_RATE]


def different_minutes(count: int) -> Samples:
    minute = decode(named("minute").path)
    shifts = np.random.default_rng(0).integers(0, len(minute), count)
    return np.concatenate([np.roll(minute, int(shift)) for shift in shifts])


@pytest.fixture(scope="module")
def eleven_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that is divided at 300 s, where the worker divides."""
    path = tmp_path_factory.mktemp("long") / "long.mp3"
    samples = different_minutes(11)[: 660 * SAMPLE_RATE]
    return encode(path, "-b:a", "64k", samples=samples)


@pytest.fixture(scope="module")
def shelf(
    tmp_path_factory: pytest.TempPathFactory, spoken: Samples
) -> Callable[[str, tuple[str, ...]], Path]:
    folder = tmp_path_factory.mktemp("shelf")

    def get(name: str, options: tuple[str, ...]) -> Path:
        path = folder / name
        return path if path.exists() else encode(path, *options, samples=spoken)

    return get


def decoding(path: Path, ffmpeg: Path, **options: Any) -> Decoding:
    options = {"section_seconds": SECTION_SECONDS, **options}
    return Decoding(path, ffmpeg=ffmpeg, max_seconds=3600, timeout_seconds=60, **options)


def decoding_by_default(path: Path, ffmpeg: Path) -> Decoding:
    return Decoding(path, ffmpeg=ffmpeg, max_seconds=3600, timeout_seconds=60)


def by_one(path: Path, ffmpeg: Path, sample_format: str = "dblp") -> Samples:
    """What a single ffmpeg makes of it, from the beginning to the end, frame by frame."""
    written = ("-ar", str(SAMPLE_RATE), "-internal_sample_fmt", sample_format, "-f", "f32le")
    command = [ffmpeg, "-i", path, "-map", "0:a:0", *written, "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    samples = np.frombuffer(done.stdout, dtype="<f4")
    count = Report.read(done.stderr.decode()).channels
    if count == 1:
        return samples
    mixer = Mixer()
    return np.concatenate((mixer.mix(samples.reshape(-1, count)), mixer.rest()))


def all_of(run: Decoding) -> Samples:
    return np.concatenate([*run.blocks()])


@pytest.mark.parametrize("name", DIVIDED)
def test_the_samples_of_a_divided_recording_are_those_of_one_ffmpeg(
    name: str, ffmpeg: Path, shelf: Callable[[str, tuple[str, ...]], Path]
) -> None:
    path = shelf(name, DIVIDED[name])
    run = decoding(path, ffmpeg)
    assert np.array_equal(all_of(run), by_one(path, ffmpeg))
    assert run.sections == 2
    assert run.warnings == ()


@pytest.mark.parametrize("name", DIVIDED)
def test_so_are_those_of_a_resampler_in_single_precision(
    name: str, ffmpeg: Path, shelf: Callable[[str, tuple[str, ...]], Path]
) -> None:
    path = shelf(name, DIVIDED[name])
    run = decoding(path, ffmpeg, precision="single")
    samples = all_of(run)
    assert np.array_equal(samples, by_one(path, ffmpeg, "fltp"))
    assert run.sections == 2
    difference = np.abs(samples - by_one(path, ffmpeg)).max()
    assert difference < 1e-6
    assert (difference > 0) == ("-ar" in DIVIDED[name])


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_entered_in_the_middle_is_decoded_by_one_ffmpeg(
    name: str, ffmpeg: Path, shelf: Callable[[str, tuple[str, ...]], Path]
) -> None:
    path = shelf(name, WHOLE[name])
    run = decoding(path, ffmpeg)
    assert np.array_equal(all_of(run), by_one(path, ffmpeg))
    assert run.sections == 1


def test_at_a_clock_jump_the_first_ffmpeg_continues(
    ffmpeg: Path, spoken: Samples, tmp_path: Path
) -> None:
    """What lies behind a gap in the timestamps is elsewhere for who looks for it by time."""
    shift = ("-af", "asetpts='PTS+if(gt(T,7),0.7/TB,0)'", "-c:a", "alac", "-ar", "44100")
    path = encode(tmp_path / "gap.m4a", *shift, samples=spoken)
    run = decoding(path, ffmpeg)
    result, plain = all_of(run), by_one(path, ffmpeg)
    assert run.sections == 1
    (gap,) = run.warnings
    assert (gap.start_seconds, gap.end_seconds) == pytest.approx((7, 7.7), abs=0.1)
    first = round((gap.start_seconds or 0) * SAMPLE_RATE)
    length = len(result) - len(plain)
    assert length == pytest.approx(0.7 * SAMPLE_RATE, abs=2)
    assert np.array_equal(result[:first], plain[:first])
    assert not result[first : first + length].any()
    assert np.array_equal(result[first + length :], plain[first:])


def test_digital_silence_at_a_bound_proves_nothing_and_the_next_bound_counts(
    ffmpeg: Path, spoken: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "silent.wav"
    silent = np.concatenate((spoken, spoken[: 20 * SAMPLE_RATE]))
    silent[18 * SAMPLE_RATE : 24 * SAMPLE_RATE] = 0
    path.write_bytes(wav(silent))
    run = decoding(path, ffmpeg)
    assert np.array_equal(all_of(run), by_one(path, ffmpeg))
    assert run.sections == 2, "three begin, at 0, 20 and 40 s"


def test_by_default_eleven_minutes_are_two_sections(eleven_minutes: Path) -> None:
    run = decoding_by_default(eleven_minutes, find_ffmpeg())
    assert np.array_equal(all_of(run), by_one(eleven_minutes, find_ffmpeg()))
    assert run.sections == 2


def test_an_ffmpeg_ahead_that_is_killed_costs_no_sample(
    eleven_minutes: Path, children: Children
) -> None:
    ffmpeg = find_ffmpeg()
    expected = by_one(eleven_minutes, ffmpeg)
    for _ in range(5):
        run = decoding_by_default(eleven_minutes, ffmpeg)
        with closing(run.blocks()) as blocks:
            result = [next(blocks), next(blocks)]
            ahead = [child for child in children() if "-ss" in child.cmdline()]
            assert ahead, "the second section has started"
            for child in ahead:
                child.kill()
            try:
                result += [*blocks]
            except DecoderKilled:
                continue  # it had decoded enough to be the current one
        assert np.array_equal(np.concatenate(result), expected)
        if run.sections == 1:
            return
    raise AssertionError("it was never killed before it had decoded anything")


def test_who_stops_listening_leaves_no_ffmpeg_and_no_core_taken(
    eleven_minutes: Path, children: Children
) -> None:
    run = decoding_by_default(eleven_minutes, find_ffmpeg())
    blocks = run.blocks()
    for _ in range(3):
        next(blocks)
    assert len(children()) == 2
    blocks.close()
    assert children() == []


def test_a_clip_is_exact_over_a_bound(
    shelf: Callable[[str, tuple[str, ...]], Path],
) -> None:
    path = shelf("variable.mp3", DIVIDED["variable.mp3"])
    run = decoding(path, find_ffmpeg(), clip=Clip(17.5, 33.25))
    whole = by_one(path, find_ffmpeg())
    assert np.array_equal(all_of(run), whole[round(17.5 * SAMPLE_RATE) : 33 * SAMPLE_RATE + 4000])
    assert run.sections == 2


def test_a_file_that_ends_early_is_reported_by_its_last_section(
    shelf: Callable[[str, tuple[str, ...]], Path], tmp_path: Path
) -> None:
    broken = cut(shelf("16000.wav", ()), tmp_path / "cut.wav", 0.8)
    run = decoding(broken, find_ffmpeg())
    assert len(all_of(run)) == pytest.approx(0.8 * SECONDS * SAMPLE_RATE, abs=1600)
    (cut_off,) = run.warnings
    assert cut_off.code == "audio_cut"
    assert cut_off.start_seconds == pytest.approx(0.8 * SECONDS, abs=0.1)
    assert cut_off.end_seconds == pytest.approx(SECONDS, abs=0.1)
    assert run.sections == 2


def test_a_pure_silence_is_one_section(tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    path.write_bytes(wav(silence(50)))
    run = decoding(path, find_ffmpeg())
    assert len(all_of(run)) == 50 * SAMPLE_RATE
    assert run.sections == 1


def test_a_short_recording_is_not_divided(tmp_path: Path, children: Children) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(wav(tone(440, 27)))
    counts = list(counted(decoding(path, find_ffmpeg()), children))
    assert set(counts) == {1}


def counted(run: Decoding, children: Children) -> Iterator[int]:
    """The number of ffmpeg processes at each block."""
    for _ in run.blocks():
        yield len(children())


def test_cores_are_taken_while_there_are_free_ones() -> None:
    cores = Cores(2, memory_bytes=100)
    with cores.recording():
        assert [cores.taken(10), cores.taken(10), cores.taken(10)] == [True, True, False]
        cores.release()
        assert cores.taken(10)
    with cores.recording(), cores.recording(), cores.recording():
        assert not cores.taken(10), "as many recordings as there are cores have them"


def test_sections_decoded_ahead_reserve_memory_until_dropped() -> None:
    cores = Cores(4, memory_bytes=100)
    assert [cores.taken(60), cores.taken(60), cores.taken(40)] == [True, False, True]
    cores.release()
    assert not cores.taken(60), "it is decoded, but not read yet"
    cores.dropped(60)
    assert cores.taken(60)


def test_sections_for_all_cores_and_the_one_that_is_read_fit_into_the_memory() -> None:
    cores = Cores(2, memory_bytes=90)
    assert [cores.taken(cores.section_bytes) for _ in range(4)] == [True, True, True, False]


def test_memory_of_a_section_is_released_while_it_is_read(tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(800)
    path = tmp_path / "bytes"
    path.write_bytes(content)

    def command(begin: int) -> list[str]:
        return ["tail", "-c", f"+{begin + 1}", str(path)]

    left = [CORES._left_bytes]
    with child_process.Children() as children:
        sections = Sections(children, children.start(["cat", str(path)]), 60)
        plan = Plan([400], 300, 100, command, skipped_bytes=0, sample_bytes=4)
        with closing(sections):
            sections.divide(plan)
            read = bytearray()
            while part := sections.read(100, 60):
                read += part
                left.append(CORES._left_bytes - left[0])
    assert bytes(read) == content
    assert left[1:] == [-400, -400, -400, -400, -200, -100, 0, 0]
