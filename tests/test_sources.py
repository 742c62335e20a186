from base64 import b64encode
from pathlib import Path

import pytest

from loopback import S3Server, WebServer, sends
from parakeet_worker.errors import AudioEmpty, SourceNotFound
from parakeet_worker.request import (
    FileSource,
    InlineSource,
    Request,
    S3Source,
    SamplesSource,
    Source,
    UrlSource,
)
from parakeet_worker.settings import Settings
from parakeet_worker.sources import fetch
from recordings import RATE, tone, wav

CONTENT = wav(tone(440, 1))


@pytest.fixture
def settings(s3: S3Server) -> Settings:
    return Settings(
        allow_private_addresses=True,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_bucket=s3.bucket,
        s3_endpoint=s3.endpoint,
    )


def source(kind: str, content: bytes, web: WebServer, s3: S3Server, folder: Path) -> Source:
    """The same content from a source of `kind`."""
    if kind == "inline":
        return InlineSource(b64encode(content).decode())
    if kind == "url":
        return UrlSource(web.at("/talk.wav", sends(content)))
    if kind == "s3":
        s3.put("talk.wav", content)
        return S3Source("talk.wav")
    (folder / "mine.wav").write_bytes(content)
    return FileSource(folder / "mine.wav")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", ["inline", "url", "s3"])
async def test_what_comes_from_afar_lies_in_the_scratch_folder_of_the_job(
    kind: str, web: WebServer, s3: S3Server, scratch: Path, settings: Settings
) -> None:
    requested = Request(source(kind, CONTENT, web, s3, scratch.parent))
    path = await fetch(requested, scratch, settings)
    assert path.read_bytes() == CONTENT
    assert path.parent == scratch


async def test_samples_lie_in_the_scratch_folder_of_the_job(
    scratch: Path, settings: Settings
) -> None:
    path = await fetch(Request(SamplesSource(tone(440, 1), RATE)), scratch, settings)
    assert path.read_bytes()[:4] == b"RIFF"
    assert path.parent == scratch


async def test_a_file_of_this_machine_stays_where_it_is(
    tmp_path: Path, scratch: Path, settings: Settings
) -> None:
    mine = tmp_path / "mine.wav"
    mine.write_bytes(CONTENT)
    assert await fetch(Request(FileSource(mine)), scratch, settings) == mine
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["inline", "url", "s3", "file"])
async def test_nothing_at_all_is_empty_audio_wherever_it_comes_from(
    kind: str, web: WebServer, s3: S3Server, scratch: Path, settings: Settings
) -> None:
    requested = Request(source(kind, b"", web, s3, scratch.parent))
    with pytest.raises(AudioEmpty):
        await fetch(requested, scratch, settings)


@pytest.mark.parametrize("name", ["none.wav", "scratch"])
async def test_a_file_that_is_not_there_is_named(
    name: str, scratch: Path, settings: Settings
) -> None:
    path = scratch.parent / name
    with pytest.raises(SourceNotFound) as caught:
        await fetch(Request(FileSource(path)), scratch, settings)
    assert caught.value.facts["source"] == str(path)


async def test_the_hint_is_the_ending_of_the_file(scratch: Path, settings: Settings) -> None:
    requested = Request(InlineSource(b64encode(CONTENT).decode()), audio_format="mp3")
    assert (await fetch(requested, scratch, settings)).suffix == ".mp3"
