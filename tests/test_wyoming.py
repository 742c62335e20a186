"""The Wyoming adapter as a process, used by the protocol's own client."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop, wav_to_chunks
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from faulty_worker import FaultyEngine, faulty_pipeline
from http_server import running_server, until
from parakeet_worker.entrypoints.wyoming.main import Address, OnLost, recognizing, serve
from parakeet_worker.entrypoints.wyoming.session import Recognize
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.language import LANGUAGES
from parakeet_worker.settings import Settings
from recordings import decode, wav
from speech import sample

PATIENCE_SECONDS = 120.0
ENGLISH = sample("en")


@dataclass(frozen=True, slots=True)
class Adapter:
    uri: str
    process: "subprocess.Popen[str]"
    scratch: Path
    log: Path

    @property
    def port(self) -> int:
        return int(self.uri.rpartition(":")[2])


@contextmanager
def running_adapter(
    home: Path, *arguments: str, uri: str = "tcp://127.0.0.1:0", **variables: str
) -> Iterator[Adapter]:
    """`parakeet wyoming` with these variables and nothing else."""
    scratch = home / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    log = home / "log"
    command = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "wyoming", "--uri", uri]
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1",
        "PARAKEET_MODEL": "demo", "PARAKEET_SCRATCH": str(scratch), **variables,
    }  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments], env=environment, stdout=output, stderr=output, text=True
        )
        try:
            yield Adapter(_bound(process, log), process, scratch, log)
        finally:
            process.kill()
            process.wait()


def _bound(process: "subprocess.Popen[str]", log: Path) -> str:
    ends = time.monotonic() + PATIENCE_SECONDS
    while (match := re.search(r"listening on (\S+://\S+)", log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends
        time.sleep(0.02)
    return match[1]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    limits = {"PARAKEET_MAX_AUDIO_SECONDS": "60", "PARAKEET_MAX_REQUESTS": "8"}
    with running_adapter(tmp_path_factory.mktemp("wyoming"), **limits) as running:
        yield running


@asynccontextmanager
async def connected(adapter: Adapter) -> AsyncIterator[AsyncClient]:
    async with AsyncClient.from_uri(adapter.uri) as client:
        client.read_timeout = PATIENCE_SECONDS
        yield client


def spoken(path: Path, folder: Path) -> list[Event]:
    """The events of a sample, as PCM of 16 kHz."""
    (folder / "speech.wav").write_bytes(wav(decode(path)))
    with wave.open(str(folder / "speech.wav"), "rb") as file:
        chunks = wav_to_chunks(file, 1024, start_event=True, stop_event=True)
        return [chunk.event() for chunk in chunks]


async def answer(client: AsyncClient, events: list[Event]) -> Event:
    for event in events:
        await client.write_event(event)
    event = await client.read_event()
    assert event is not None
    return event


def error(event: Event) -> Error:
    assert Error.is_type(event.type), event
    return Error.from_event(event)


async def test_a_recording_becomes_its_words(adapter: Adapter, tmp_path: Path) -> None:
    async with connected(adapter) as client:
        events = [Transcribe(language="en-GB").event(), *spoken(ENGLISH.path, tmp_path)]
        ended = await answer(client, events)
        assert Transcript.from_event(ended).text == ENGLISH.text
        again = await answer(client, spoken(ENGLISH.path, tmp_path))
        assert Transcript.from_event(again).text == ENGLISH.text
    await until(lambda: not list(adapter.scratch.iterdir()))


async def test_the_description_names_the_model_and_its_languages(adapter: Adapter) -> None:
    async with connected(adapter) as client:
        event = await answer(client, [Describe().event()])
        (program,) = Info.from_event(event).asr
        assert [model.name for model in program.models] == ["demo"]
        assert program.models[0].languages == sorted(LANGUAGES)
        pong = await answer(client, [Ping("a").event()])
        assert Pong.from_event(pong).text == "a"


async def test_clients_are_served_at_the_same_time(adapter: Adapter, tmp_path: Path) -> None:
    languages = ("de", "en", "es", "fr")

    async def one(tag: str) -> str:
        (tmp_path / tag).mkdir()
        async with connected(adapter) as client:
            ended = await answer(client, spoken(sample(tag).path, tmp_path / tag))
            return Transcript.from_event(ended).text

    texts = await asyncio.gather(*map(one, languages))
    assert texts == [sample(tag).text for tag in languages]


@pytest.mark.parametrize(("rate", "width", "channels"), [(48_000, 2, 2), (8_000, 1, 1)])
async def test_any_rate_width_and_number_of_channels(
    adapter: Adapter, rate: int, width: int, channels: int
) -> None:
    """Silence of five seconds is five seconds of silence in any of them."""
    silence = b"\x80" if width == 1 else b"\0"
    chunk = AudioChunk(rate, width, channels, silence * (rate * width * channels)).event()
    start = AudioStart(rate, width, channels).event()
    async with connected(adapter) as client:
        ended = await answer(client, [start, *[chunk] * 5, AudioStop().event()])
        assert Transcript.from_event(ended).text == ""


async def test_chunks_may_differ_from_the_start(adapter: Adapter, tmp_path: Path) -> None:
    """Home Assistant's satellites may declare one format and send another."""
    start = AudioStart(16_000, 2, 2).event()
    async with connected(adapter) as client:
        ended = await answer(client, [start, *spoken(ENGLISH.path, tmp_path)[1:]])
        assert Transcript.from_event(ended).text == ENGLISH.text


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b"no line",
        b"null\n",
        b'{"data": {}}\n',
        b'{"type": "describe", "data_length": "many"}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "audio-chunk", "data_length": 2}\n[]',
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
        bytes(range(256)),
        b"more than the buffers hold\n" + bytes(1 << 23),
        b'{"type": "ping", "data": {"text": "\\ud800"}}\n',
    ],
    ids=lambda sent: sent[:12].decode("latin-1"),
)
async def test_what_is_no_event_is_answered_by_an_error(adapter: Adapter, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", adapter.port)
    writer.write(sent)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
    writer.close()
    with suppress(ConnectionError):  # not all that was sent has been read
        await writer.wait_closed()
    header = json.loads(received.splitlines()[0])
    assert header["type"] == "error"
    assert b"invalid_request" in received
    assert "Traceback" not in adapter.log.read_text()


@pytest.mark.parametrize(
    "event",
    [
        Event("audio-start", {}),
        Event("audio-start", {"rate": 0, "width": 2, "channels": 1}),
        Event("audio-start", {"rate": 16_000, "width": 2, "channels": "one"}),
        Event("audio-chunk", {"rate": 16_000, "width": 9, "channels": 1}, b"12"),
        Event("audio-stop"),
    ],
    ids=str,
)
async def test_an_invalid_field_leaves_the_connection_usable(
    adapter: Adapter, event: Event, tmp_path: Path
) -> None:
    async with connected(adapter) as client:
        assert error(await answer(client, [event])).code == "invalid_request"
        ended = await answer(client, spoken(ENGLISH.path, tmp_path))
        assert Transcript.from_event(ended).text == ENGLISH.text


async def test_a_chunk_is_bounded_as_it_is_converted(adapter: Adapter) -> None:
    async with connected(adapter) as client:
        start = AudioStart(rate=768_000, width=4, channels=64)
        chunk = AudioChunk(rate=8000, width=1, channels=1, audio=bytes(100_000))
        refused = error(await answer(client, [start.event(), chunk.event()]))
        assert (refused.code, "exceeds" in refused.text) == ("invalid_request", True)


async def test_an_unknown_event_is_ignored(adapter: Adapter) -> None:
    async with connected(adapter) as client:
        event = await answer(client, [Event("select-program", {"name": "x"}), Describe().event()])
        assert Info.is_type(event.type)


async def test_audio_beyond_the_limit_is_refused_once(adapter: Adapter, tmp_path: Path) -> None:
    second = AudioChunk(16_000, 2, 1, bytes(32_000)).event()
    start = AudioStart(16_000, 2, 1).event()
    async with connected(adapter) as client:
        refused = await answer(client, [start, *[second] * 65])
        assert error(refused).code == "audio_too_long"
        await client.write_event(AudioStop().event())
        ended = await answer(client, spoken(ENGLISH.path, tmp_path))
        assert Transcript.from_event(ended).text == ENGLISH.text


async def test_an_unknown_language_is_an_error(adapter: Adapter, tmp_path: Path) -> None:
    async with connected(adapter) as client:
        events = [Transcribe(language="xx").event(), *spoken(ENGLISH.path, tmp_path)]
        assert error(await answer(client, events)).code == "invalid_request"
        ended = await answer(client, spoken(ENGLISH.path, tmp_path))
        assert Transcript.from_event(ended).text == ENGLISH.text


async def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    least = {"PARAKEET_ENGINE": "tones", "PARAKEET_SCRATCH_LEAST_BYTES": str(1 << 60)}
    with running_adapter(tmp_path, **least) as adapter:
        async with connected(adapter) as client:
            event = await answer(client, [AudioStart(16_000, 2, 1).event()])
            assert error(event).code == "scratch_full"


async def test_recordings_of_a_killed_process_are_removed_at_the_next_start(
    tmp_path: Path,
) -> None:
    elsewhere = ("--endpoint", "http://127.0.0.1:9")
    with running_adapter(tmp_path, *elsewhere) as adapter:
        async with connected(adapter) as client:
            start = AudioStart(16_000, 2, 1).event()
            await answer(client, [start, Ping("a").event()])
            (folder,) = adapter.scratch.iterdir()
            adapter.process.kill()
            adapter.process.wait()
    assert (folder / "recording.wav").exists()
    with running_adapter(tmp_path, *elsewhere):
        assert not folder.exists()


async def test_a_lost_engine_ends_the_process(tmp_path: Path) -> None:
    settings = Settings.of({"engine": "tones", "scratch": tmp_path})
    path = tmp_path / "socket"

    @asynccontextmanager
    async def opening(settings: Settings, on_lost: OnLost) -> AsyncIterator[Recognize]:
        with faulty_pipeline(settings, FaultyEngine(0, batches=0)) as pipeline:
            yield recognizing(pipeline, on_lost)

    serving = asyncio.create_task(serve(Address.read(f"unix://{path}"), settings, opening))
    await until(path.exists)
    async with AsyncClient.from_uri(f"unix://{path}") as client:
        ended = await answer(client, spoken(ENGLISH.path, tmp_path))
        assert error(ended).code == "engine_lost"
        assert not await serving


async def test_a_dropped_connection_leaves_nothing(adapter: Adapter, tmp_path: Path) -> None:
    for number in (1, 5, 40):
        async with connected(adapter) as client:
            for event in spoken(ENGLISH.path, tmp_path)[:number]:
                await client.write_event(event)
    await until(lambda: not list(adapter.scratch.iterdir()))
    assert "Traceback" not in adapter.log.read_text()


async def test_connections_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    with running_adapter(tmp_path, PARAKEET_ENGINE="tones", PARAKEET_MAX_REQUESTS="1") as adapter:
        async with connected(adapter) as first:
            await answer(first, [Describe().event()])
            async with connected(adapter) as second:
                event = await second.read_event()
                assert event is not None
                assert error(event).code == "busy"


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    idle = {"PARAKEET_ENGINE": "tones", "PARAKEET_IDLE_TIMEOUT_SECONDS": "0.2"}
    with running_adapter(tmp_path, **idle) as adapter:
        async with connected(adapter) as client:
            assert await client.read_event() is None


async def test_a_signal_ends_it_after_the_answers_in_progress(tmp_path: Path) -> None:
    with running_adapter(tmp_path / "home") as adapter:
        async with connected(adapter) as idle, connected(adapter) as client:
            await answer(idle, [Describe().event()])
            *first, stop = spoken(ENGLISH.path, tmp_path)
            for event in first:
                await client.write_event(event)
            pong = await answer(client, [Ping("a").event()])
            assert Pong.is_type(pong.type)
            adapter.process.send_signal(signal.SIGTERM)
            assert await idle.read_event() is None
            ended = await answer(client, [stop])
            assert Transcript.from_event(ended).text == ENGLISH.text
        assert await asyncio.to_thread(adapter.process.wait, PATIENCE_SECONDS) == 0
        assert not list(adapter.scratch.iterdir())


def test_a_signal_ends_it_while_its_model_is_downloaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        command = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "wyoming"]
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PARAKEET_MODEL": "none/none",
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
        }  # fmt: skip
        with subprocess.Popen(command, env=environment) as process:
            try:
                hub.settimeout(PATIENCE_SECONDS)
                with hub.accept()[0]:  # never answered
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
            finally:
                process.kill()


async def test_an_endpoint_may_do_the_work(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    variables = {"PARAKEET_MODEL": "demo"}
    with running_server(tmp_path / "server", variables) as server:
        server.wait_until_ready()
        with running_adapter(tmp_path / "home", "--endpoint", server.url) as adapter:
            async with connected(adapter) as client:
                ended = await answer(client, spoken(ENGLISH.path, tmp_path))
                assert Transcript.from_event(ended).text == ENGLISH.text


async def test_a_socket_of_the_file_system_is_an_address(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running_adapter(
        tmp_path / "home", uri=f"unix://{path}", PARAKEET_ENGINE="tones"
    ) as adapter:
        async with connected(adapter) as client:
            assert Info.is_type((await answer(client, [Describe().event()])).type)


@pytest.mark.parametrize("uri", ["", "tcp://", "tcp://host", "tcp://host:99999", "http://a:1"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest, match="uri"):
        Address.read(uri)


def test_an_address_in_use_is_named(adapter: Adapter, tmp_path: Path) -> None:
    environment: Mapping[str, str] = {**os.environ, "PARAKEET_ENGINE": "tones"}
    ended = subprocess.run(
        [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "wyoming", "--uri", adapter.uri],
        check=False, env=environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"cannot listen on {adapter.uri}" in ended.stderr
