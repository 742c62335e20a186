"""By size: as it is, as FLAC, as Opus, through a bucket, or not at all; the limits are small."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from loopback import S3Server
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.payload import Payload, prepare
from parakeet_worker.client.store import Store
from parakeet_worker.errors import (
    AudioEmpty,
    AudioTruncated,
    AudioUndecodable,
    PayloadTooLarge,
    SourceNotFound,
    SourceRefused,
    SourceUnreachable,
)
from parakeet_worker.settings import Settings
from recordings import cut, decode, encode, headerless, noise, pitch, silence, tone, wav

MELODY = np.concatenate([tone(440, 4.0), silence(1.0), noise(1.0, level=0.1), tone(880, 4.0)])
"""As 16-bit WAV 320 kB, as FLAC half of that or so, as Opus some 40 kB."""


def limited(max_audio_bytes: int) -> Endpoint:
    """A queue endpoint whose larger limit is this number of bytes of audio."""
    most = max_audio_bytes * 4 // 3 + 4096 + 8
    return Endpoint.queue("http://127.0.0.1/v2/loopback", most // 2, most)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(MELODY))
    return path


@pytest.fixture
def store(s3: S3Server) -> Store:
    result = Store.of(bucket_settings(s3))
    assert result is not None
    return result


def bucket_settings(s3: S3Server, **changed: str) -> Settings:
    return Settings(
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_endpoint=changed.get("endpoint", s3.endpoint),
        s3_bucket=s3.bucket,
    )


@pytest.mark.parametrize(
    ("limit", "form", "name"),
    [
        (400_000, "as it is", "talk.wav"),
        (250_000, "as FLAC", "talk.flac"),
        (60_000, "as Opus", "talk.ogg"),
    ],
)
async def test_a_recording_takes_the_first_form_that_fits(
    talk, tmp_path, children, limit, form, name
):
    payload = await prepare(talk, limited(limit), ffmpeg=None)
    assert (payload.encoding, payload.name) == (form, name)
    assert 0 < payload.size <= limit
    assert payload.size == len(payload.content)
    sent = tmp_path / f"sent-{name}"
    sent.write_bytes(payload.content)
    again = decode(sent)
    assert len(again) == pytest.approx(len(MELODY), abs=800)
    assert pitch(again[: 4 * 16000]) == pytest.approx(440, abs=5)
    assert pitch(again[-4 * 16000 :]) == pytest.approx(880, abs=5)
    assert children() == []


async def test_a_recording_without_a_header_is_encoded_with_its_format(tmp_path):
    path = tmp_path / "talk.raw"
    path.write_bytes(headerless(MELODY))
    for audio_format, expected in (("s16le:16000", 440), ("s16le:32000", 880)):
        payload = await prepare(path, limited(60_000), audio_format=audio_format)
        assert payload.encoding != "as it is"
        again = decode(await pack_to(payload, tmp_path))
        assert pitch(again[: 4 * 16000]) == pytest.approx(expected, abs=5)


async def test_what_fits_in_no_form_goes_through_the_bucket_and_can_be_read_there(talk, store):
    payload = await prepare(talk, limited(3000), store=store)
    assert (payload.encoding, payload.path, payload.recoded) == ("through a bucket", None, None)
    assert payload.url is not None
    assert payload.stored is not None
    async with httpx.AsyncClient() as http:
        assert (await http.get(payload.url)).content == talk.read_bytes()
        await store.remove(payload.stored.key)
        assert (await http.get(payload.url)).status_code == 404


async def test_a_missing_bucket_names_the_settings_to_set(talk, children):
    with pytest.raises(PayloadTooLarge, match="S3_BUCKET") as raised:
        await prepare(talk, limited(3000))
    assert raised.value.facts["bytes"] == talk.stat().st_size
    assert raised.value.facts["limit"] <= 3010
    assert children() == []


async def test_a_smaller_form_is_preferred_to_the_bucket(talk, store):
    assert (await prepare(talk, limited(60_000), store=store)).encoding == "as Opus"


async def test_a_missing_bucket_is_reported(talk, s3):
    missing = Store.of(bucket_settings(s3, endpoint="http://127.0.0.1:9"))
    with pytest.raises(SourceUnreachable):
        await prepare(talk, limited(3000), store=missing)


def test_there_is_no_store_without_all_of_its_settings(s3):
    settings = bucket_settings(s3)
    assert Store.of(settings) is not None
    for field in ("s3_access_key", "s3_secret_key", "s3_bucket"):
        assert Store.of(settings.model_copy(update={field: None})) is None


async def test_separate_channels_stay_separate(tmp_path):
    both = np.stack([tone(440, 4.0), tone(880, 4.0)], axis=1)
    path = encode(tmp_path / "call.wav", samples=both.reshape(-1), channels=2)
    payload = await prepare(path, limited(100_000), channels="separate")
    assert payload.encoding != "as it is"
    again = await pack_to(payload, tmp_path)
    left = encoded_channel(again, tmp_path, "c0")
    right = encoded_channel(again, tmp_path, "c1")
    assert (pitch(decode(left)), pitch(decode(right))) == (
        pytest.approx(440, abs=5),
        pytest.approx(880, abs=5),
    )


async def pack_to(payload: Payload, folder: Path) -> Path:
    path = folder / f"sent-{payload.name}"
    await asyncio.to_thread(path.write_bytes, payload.content)
    return path


def encoded_channel(path: Path, folder: Path, channel: str) -> Path:
    import subprocess

    import imageio_ffmpeg

    target = folder / f"{channel}.wav"
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path),
            "-af", f"pan=mono|c0={channel}", str(target),
        ],
        check=True,
    )  # fmt: skip
    return target


async def test_a_file_that_is_cut_off_is_found_out_before_it_is_encoded_again(
    tmp_path, store, children
):
    flac = encode(tmp_path / "whole.flac", samples=MELODY)
    broken = cut(flac, tmp_path / "broken.flac")
    (warning,) = (await prepare(broken, limited(60_000))).warnings
    assert "before its declared end" in warning
    with pytest.raises(AudioTruncated):
        await prepare(broken, limited(60_000), on_damage="refuse")
    stored = await prepare(broken, limited(60_000), on_damage="refuse", store=store)
    assert stored.encoding == "through a bucket"
    assert children() == []


async def test_an_unsendable_payload_is_reported(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no audio\n" * 1000)
    with pytest.raises(SourceNotFound):
        await prepare(tmp_path / "none.wav", limited(1000))
    with pytest.raises(SourceNotFound):
        await prepare(tmp_path, limited(1000))
    with pytest.raises(AudioEmpty):
        await prepare(tmp_path / "empty.wav", limited(1000))
    with pytest.raises(AudioUndecodable):
        await prepare(tmp_path / "text.mp3", limited(1000))


async def test_cancelling_during_encoding_kills_ffmpeg(tmp_path, children):
    path = encode(tmp_path / "long.wav", samples=noise(600, level=0.1), channels=2)
    packing = asyncio.create_task(prepare(path, limited(9_000_000)))
    async with asyncio.timeout(30):
        # Both are in sessions of their own: Ctrl-C in a terminal is the client's to handle.
        while [  # noqa: ASYNC110  # the system has no notification
            os.getpgid(child.pid) == os.getpgid(0) for child in children()
        ] != [False] * 2:
            await asyncio.sleep(0.01)
    packing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await packing
    assert children() == []


@pytest.mark.parametrize(
    "key",
    [
        "recordings/precious.wav",
        "parakeet/precious.wav",
        "parakeet/../precious.wav",
        f"parakeet/{'a' * 32}/deep/er.wav",
        f"x/parakeet/{'a' * 32}/talk.wav",
    ],
)
async def test_only_uploads_are_removed_from_a_bucket(key, s3, store):
    s3.put(key, b"precious")
    with pytest.raises(SourceRefused):
        await store.remove(key)
    assert s3.get(key) == b"precious"


async def test_a_name_that_is_not_utf_8_goes_under_a_safe_key(tmp_path, store):
    path = tmp_path / os.fsdecode(b"bad\xff\x01name.wav")
    path.write_bytes(wav(MELODY))
    payload = await prepare(path, limited(3000), store=store)
    assert payload.stored is not None
    assert payload.stored.key.endswith("/bad\ufffd_name.wav")
    async with httpx.AsyncClient() as http:
        assert (await http.get(payload.url or "")).content == path.read_bytes()
    await store.remove(payload.stored.key)
    assert (await prepare(path, limited(400_000))).name.encode()


async def test_a_silent_bucket_keeps_no_process_from_ending(tmp_path):
    path = tmp_path / "talk.wav"
    path.write_bytes(bytes(1 << 20))

    async def reads_and_never_answers(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(reads_and_never_answers, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    program = f"""
import asyncio
from pathlib import Path
from parakeet_worker.client.store import Store
from parakeet_worker.settings import Settings
settings = Settings(s3_access_key="a", s3_secret_key="b", s3_bucket="talks",
                    s3_endpoint="http://127.0.0.1:{port}", stall_timeout_seconds=600)
async def main():
    async with asyncio.timeout(1):
        await Store.of(settings).put(Path({str(path)!r}))
try:
    asyncio.run(main())
except TimeoutError:
    print("abandoned", flush=True)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output.split() == [b"abandoned"]
    server.close()
    await asyncio.sleep(0)  # its connection sees the end
