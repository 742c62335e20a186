"""What the client sends to whom, and how long it waits, against servers on loopback."""

import asyncio
import os
import sys
import time
from pathlib import Path

import httpx
import pytest

from loopback import WebServer, answers, babbles, redirects, stalls, trickles
from parakeet_worker import AsyncClient
from parakeet_worker.client.http_client import HttpClient, checked_key, is_loopback
from parakeet_worker.errors import (
    EndpointRefused,
    EndpointUnreachable,
    InvalidRequest,
    InvalidSetting,
    ParakeetError,
)
from parakeet_worker.settings import Settings
from recordings import tone, wav

KEY = "secretkey123"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(tone(440, 1.0)))
    return path


# Keys


@pytest.mark.parametrize("url", ["https://a.test", "http://localhost:1", "http://[::1]:1"])
async def test_a_key_is_sent_without_the_blanks_around_it(url: str) -> None:
    assert checked_key(f" {KEY}\n", url, insecure=False) == KEY
    assert checked_key("\n", url, insecure=False) is None
    assert checked_key(None, url, insecure=False) is None


async def test_a_key_from_a_file_opens_the_endpoint(web: WebServer, talk: Path) -> None:
    web.at("/transcribe", answers(200, '{"text": "440."}'))
    async with AsyncClient(web.address, f"{KEY}\n") as client:
        assert (await client.transcribe(talk)).text == "440."
    assert web.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [f"{KEY}\nX: 1", f"{KEY}ü", f"\x00{KEY}"])
def test_a_key_that_is_no_header_is_refused_and_never_shown(key: str) -> None:
    with pytest.raises(InvalidRequest, match="api_key") as raised:
        AsyncClient("http://127.0.0.1:9", key)
    assert KEY not in str(raised.value.document())


@pytest.mark.parametrize(
    "url", ["http://a.test", "http://10.0.0.1:8000", "http://localhost.a.test"]
)
def test_a_key_is_not_sent_over_plain_http_to_another_machine(url: str) -> None:
    assert not is_loopback(url)
    with pytest.raises(InvalidRequest, match="plain http") as raised:
        AsyncClient(url, KEY)
    assert KEY not in str(raised.value.document())
    assert checked_key(KEY, url, insecure=True) == KEY
    AsyncClient(url, KEY, settings=Settings(allow_insecure_keys=True))
    AsyncClient(url)


async def test_a_key_does_not_follow_a_redirect(web: WebServer, talk: Path) -> None:
    async with WebServer() as other:
        web.at("/transcribe", redirects(f"{other.address}/transcribe", 307))
        async with AsyncClient(web.address, KEY) as client:
            with pytest.raises(EndpointRefused, match="307"):
                await client.transcribe(talk)
        assert other.received == []


# Waiting


@pytest.mark.parametrize(
    "silent", [stalls(), stalls(b"{"), trickles(b" " * 1000, 0.05)],
    ids=["silent", "silent in the body", "trickles"],
)  # fmt: skip
async def test_a_missing_answer_times_out(silent, web, talk):
    web.at("/transcribe", silent)
    started = time.monotonic()
    async with AsyncClient(web.address, answer_seconds=3.0, retry_seconds=60) as client:
        with pytest.raises(EndpointUnreachable):
            await client.transcribe(talk)
    assert time.monotonic() - started < 10
    assert await asyncio.wait_for(web.left.wait(), 60), "the connection is closed"


async def test_a_connection_is_kept_alive_by_the_system(web: WebServer) -> None:
    import socket

    seen: list[int] = []
    web.at("/a", answers(200, "{}"))
    wire = HttpClient(web.address, None)

    async def look(request: httpx.Request, *_: object) -> None:
        request.extensions["trace"] = trace

    async def trace(event: str, info: dict[str, object]) -> None:
        if event == "connection.connect_tcp.complete":
            stream = info["return_value"]
            opened = stream.get_extra_info("socket")  # type: ignore[attr-defined]
            seen.append(opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    wire._http.event_hooks["request"].append(look)
    assert await wire.call("GET", f"{web.address}/a") == {}
    await wire.close()
    assert seen == [1]


# What comes from outside


async def test_a_binary_answer_is_shown_as_one_printable_line(web: WebServer, talk: Path) -> None:
    web.at("/transcribe", answers(418, "\x1b[31m\x00bad\n\nlines" + "x" * 5000))
    async with AsyncClient(web.address) as client:
        with pytest.raises(EndpointRefused) as raised:
            await client.transcribe(talk)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 350


async def test_an_answer_that_is_nested_too_deeply_is_no_answer(web: WebServer, talk: Path) -> None:
    web.at("/transcribe", answers(200, "[" * 100_000))
    async with AsyncClient(web.address) as client:
        with pytest.raises(ParakeetError) as raised:
            await client.transcribe(talk)
    assert len(str(raised.value)) < 350


async def test_what_is_not_http_is_one_line(web: WebServer) -> None:
    web.at("/a", babbles(b"\x00\x01\n" * 20_000))
    wire = HttpClient(web.address, None, retry_seconds=0.1)
    with pytest.raises(ParakeetError) as raised:
        await wire.call("GET", f"{web.address}/a")
    await wire.close()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 350


# Proxies and certificates of the environment

ODD = {
    "socks5": {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    "socks": {"ALL_PROXY": "socks://127.0.0.1:1080"},
    "no proxy": {"NO_PROXY": "::1,fd00::/8", "HTTPS_PROXY": "http://127.0.0.1:9"},
    "certificates": {"SSL_CERT_FILE": "/missing/ca.pem"},
}


@pytest.mark.parametrize("case", ODD)
async def test_variables_for_other_machines_do_not_keep_from_this_one(
    case: str, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ODD[case].items():
        monkeypatch.setenv(name, value)
    web.at("/a", answers(200, "{}"))
    wire = HttpClient(web.address, KEY)
    assert await wire.call("GET", f"{web.address}/a") == {}
    await wire.close()


@pytest.mark.parametrize(
    ("case", "named"),
    [("socks5", "ALL_PROXY"), ("socks", "ALL_PROXY"), ("certificates", "SSL_CERT_FILE")],
)
def test_a_variable_that_cannot_be_used_is_named(
    case: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ODD[case].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match=named) as raised:
        HttpClient("https://a.test", KEY)
    assert "\n" not in str(raised.value)


async def test_the_command_line_reports_it_in_its_last_line(talk: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "parakeet_worker.entrypoints.cli",
        "transcribe", str(talk), "-e", "https://a.test",
        env={**os.environ, "ALL_PROXY": "socks5://127.0.0.1:1"},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, reported = await asyncio.wait_for(process.communicate(), 30)
    assert b"Traceback" not in reported
    last = reported.decode().splitlines()[-1]
    assert last.startswith("parakeet: invalid_setting: ")
    assert "ALL_PROXY" in last


async def test_a_proxy_of_the_environment_is_used(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", web.address)
    wire = HttpClient("http://a.test", None, retry_seconds=0.1)
    with pytest.raises(EndpointRefused, match="404"):
        await wire.call("GET", "http://a.test/a")
    await wire.close()
    assert web.received == ["http://a.test/a"]
