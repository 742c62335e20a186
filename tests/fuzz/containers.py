"""Recordings in every container that the packaged ffmpeg writes and the worker reads; mutations.

All come from one run of ffmpeg, and hold the same tone.
"""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg

SECONDS = 1.5
_AAC, _MP3 = ("-c:a", "aac"), ("-c:a", "libmp3lame")
CONTAINERS: dict[str, tuple[str, ...]] = {
    "pcm.wav": ("-c:a", "pcm_s16le"),
    "float.wav": ("-c:a", "pcm_f32le"),
    "adpcm.wav": ("-c:a", "adpcm_ms"),
    "mulaw.wav": ("-c:a", "pcm_mulaw"),
    "pcm.w64": (),
    "pcm.aiff": (),
    "pcm.au": (),
    "pcm.caf": ("-c:a", "pcm_s16be"),
    "alac.caf": ("-c:a", "alac"),
    "alac.m4a": ("-c:a", "alac"),
    "plain.flac": (),
    "flac.ogg": ("-c:a", "flac"),
    "plain.mp3": _MP3,
    "plain.mp2": (),
    "aac.m4a": _AAC,
    "fragments.mp4": (*_AAC, "-movflags", "frag_keyframe+empty_moov"),
    "pcm.mov": ("-c:a", "pcm_s16le"),
    "amr.3gp": ("-c:a", "libopencore_amrnb", "-ar", "8000", "-b:a", "12.2k"),
    "plain.amr": ("-c:a", "libopencore_amrnb", "-ar", "8000", "-b:a", "12.2k"),
    "adts.aac": _AAC,
    "latm.latm": _AAC,
    "plain.ac3": (),
    "plain.eac3": (),
    "dca.dts": ("-c:a", "dca", "-strict", "-2", "-ar", "48000"),
    "plain.thd": ("-c:a", "truehd", "-strict", "-2", "-ar", "48000", "-f", "truehd"),
    "plain.tta": (),
    "plain.wv": (),
    "vorbis.ogg": ("-c:a", "libvorbis"),
    "plain.opus": ("-c:a", "libopus"),
    "speex.ogg": ("-c:a", "libspeex"),
    "opus.webm": ("-c:a", "libopus"),
    "vorbis.mka": ("-c:a", "libvorbis"),
    "plain.nut": _MP3,
    "wma.asf": ("-c:a", "wmav2"),
    "mp3.avi": _MP3,
    "mp3.flv": (*_MP3, "-ar", "44100"),
    "mp2.ts": ("-c:a", "mp2"),
    "mp2.mpeg": ("-c:a", "mp2", "-f", "mpeg"),
    "plain.voc": ("-c:a", "pcm_u8"),
    "plain.sox": ("-c:a", "pcm_s32le"),
}


def made(folder: Path) -> dict[str, bytes]:
    """The content of each, by name."""
    outputs = [
        part
        for name, options in CONTAINERS.items()
        for part in ("-map", "0:a", "-t", str(SECONDS), *options, f"file:{folder / name}")
    ]
    tone = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=16000")
    quiet = ("-hide_banner", "-loglevel", "error", "-y")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *quiet, *tone, *outputs], check=True)
    return {name: (folder / name).read_bytes() for name in CONTAINERS}


def _flipped(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 40)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _flipped_in_header(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(min(len(content), 200))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))


def _large_number(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(max(1, min(len(content), 400) - 8))
    size = chance.choice((2, 3, 4, 8))
    content[at : at + size] = chance.choice((b"\xff", b"\x7f", b"\x00", b"\x80")) * size


def _truncated(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(1, len(content)) :]


def _hole(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    del content[at : at + chance.randint(1, 3000)]


def _repeated(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    part = bytes(content[at : at + chance.randint(1, 3000)])
    content[at:at] = part * chance.randint(1, 30)


def _noise(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    part = chance.randbytes(chance.randint(1, 2000))
    content[at : at + len(part)] = part


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flipped, _flipped_in_header, _large_number, _truncated, _hole, _repeated, _noise,
)  # fmt: skip


def mutated(content: bytes, other: bytes, seed: int) -> bytes:
    """The recording with one to three mutations, or with the header of the other."""
    chance = random.Random(seed)  # noqa: S311  # the same for a seed
    changed = bytearray(content)
    if chance.random() < 0.1:
        size = chance.randint(4, 400)
        changed[:size] = other[:size]
    for _ in range(chance.randint(1, 3)):
        chance.choice(MUTATIONS)(changed, chance)
        if not changed:
            return b"\0"
    return bytes(changed)
