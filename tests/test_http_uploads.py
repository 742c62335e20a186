"""Uploads that are too large, too slow, broken off or no form at all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from http_server import Serving, serving, until
from test_http_routes import TEXT, TONE, encoded

BOUNDARY = b"--b\r\n"
FILE = BOUNDARY + b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
HEAD = b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"


async def sent(server: Serving, *parts: bytes, pause_seconds: float = 0.0) -> bytes:
    """The server's response to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_seconds)
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Serving]:
    limits = {
        "idle_timeout_seconds": 0.5,
        "upload_timeout_seconds": 1.5,
        "max_audio_bytes": 200_000,
        "max_json_bytes": 100_000,
    }
    async with serving(tmp_path, **limits) as server:
        yield server
        assert list(tmp_path.iterdir()) == []
        assert (await server.client.post("/transcribe", files={"file": TONE})).json() == {
            "text": TEXT
        }
        assert server.inside == 0


async def test_a_declared_size_is_refused_before_anything_is_read(hasty: Serving) -> None:
    declared = HEAD + b"Content-Length: 99999999999\r\nConnection: close\r\n"
    message = await sent(hasty, declared + b"Expect: 100-continue\r\n\r\n")
    assert message.startswith(b"HTTP/1.1 413 ")
    assert b"audio_too_large: more than 200000 bytes, limit 200000 bytes" in message


async def test_an_undeclared_excess_is_rejected_during_the_upload(hasty: Serving) -> None:
    begin = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked(FILE)
    message = await sent(hasty, begin, *[chunked(b"x" * 50_000)] * 6, b"0\r\n\r\n")
    assert message.startswith(b"HTTP/1.1 413 ")


async def test_a_refused_upload_can_read_why_though_it_is_still_being_sent(hasty: Serving) -> None:
    # A connection that is closed with bytes unread is reset, and writing to it fails.
    size = 30 << 20
    head = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % size
    message = await sent(hasty, head, *[b"x" * (1 << 20)] * (size >> 20))
    assert message.startswith(b"HTTP/1.1 413 ")
    answer = await hasty.client.post("/transcribe", files={"file": b"x" * size})
    assert (answer.status_code, answer.json()["code"]) == (413, "audio_too_large")


async def test_json_has_a_limit_of_its_own(hasty: Serving) -> None:
    answer = await hasty.client.post("/transcribe", json={"audio_base64": "A" * 120_000})
    assert (answer.status_code, answer.json()["field"]) == (400, "body")

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"A" * 50_000

    headers = {"content-type": "application/json"}
    answer = await hasty.client.post("/transcribe", content=parts(), headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (400, "body")


async def test_an_idle_upload_times_out(hasty: Serving) -> None:
    message = await sent(hasty, HEAD + b"Content-Length: 9999\r\nConnection: close\r\n\r\n" + FILE)
    assert message.startswith(b"HTTP/1.1 408 ")
    assert b"upload_timeout: the request body was not received within 0.5 s" in message


async def test_a_slow_upload_times_out(hasty: Serving) -> None:
    head = HEAD + b"Content-Length: 9999\r\nConnection: close\r\n\r\n" + FILE
    message = await sent(hasty, head, *[b"x"] * 20, pause_seconds=0.1)
    assert b"upload_timeout: the request body was not received within 1.5 s" in message


async def test_a_dropped_upload_leaves_nothing(hasty: Serving) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
    writer.write(HEAD + b"Content-Length: 99999\r\n\r\n" + FILE + b"x" * 1000)
    await writer.drain()
    await until(lambda: hasty.inside == 1)
    writer.close()
    await until(lambda: hasty.inside == 0)


END = b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (FILE + TONE, b"body: the multipart form ends before its last boundary"),
        (BOUNDARY, b"body: the multipart form ends before its last boundary"),
        (b"", b"body: the multipart form ends before its last boundary"),
        (b"no form at all", b"body: not a multipart form"),
        (b"--b--\r\n", b"file: is required"),
        (
            BOUNDARY + b'Content-Disposition: form-data; name="vad"\r\n\r\n\xff' + END,
            b"vad: is not UTF-8",
        ),
        (
            BOUNDARY + b'Content-Disposition: form-data; name="vad"\r\n\r\n' + b"x" * 70_000 + END,
            b"vad: all fields together exceed 65536 bytes",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 65,
            b"body: more than 64 parts",
        ),
        (BOUNDARY + b"X: " + b"y" * 70_000, b"body: not a multipart form"),
    ],
    ids=("cut", "unfinished", "empty", "text", "no parts", "no utf-8", "fields", "parts", "header"),
)
async def test_a_form_that_is_none_is_refused(hasty: Serving, body: bytes, code: bytes) -> None:
    head = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    message = await sent(hasty, head + body)
    assert message.startswith(b"HTTP/1.1 400 "), message
    assert b"invalid_request: " + code in message


async def test_a_form_without_a_boundary_is_refused(hasty: Serving) -> None:
    headers = {"content-type": "multipart/form-data"}
    answer = await hasty.client.post("/transcribe", content=b"x", headers=headers)
    assert answer.json()["field"] == "content-type"


async def test_a_file_without_a_name_is_a_file(hasty: Serving) -> None:
    body = BOUNDARY + b'Content-Disposition: form-data; name="file"\r\n\r\n' + TONE + END
    head = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    assert TEXT.encode() in await sent(hasty, head + body)


async def test_large_uploads_are_not_held_in_memory(tmp_path: Path) -> None:
    size, callers = 64 << 20, 6
    async with serving(tmp_path, max_audio_bytes=2 * size) as server:
        await server.client.post("/transcribe", files={"file": TONE})
        own = psutil.Process()
        sizes = [own.memory_info().rss]

        async def look() -> None:
            while True:
                sizes.append(own.memory_info().rss)
                await asyncio.sleep(0.01)

        async def parts() -> AsyncIterator[bytes]:
            yield FILE
            piece = b"\0" * (1 << 18)
            for _ in range(size // len(piece)):
                yield piece
            yield END

        async def upload() -> int:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            answer = await server.client.post("/transcribe", content=parts(), headers=headers)
            return answer.status_code

        looking = asyncio.create_task(look())
        assert await asyncio.gather(*(upload() for _ in range(callers))) == [415] * callers
        looking.cancel()
    grown = max(sizes) - sizes[0]
    assert len(sizes) > 10
    assert grown < size, f"{grown >> 20} MiB more for {callers * size >> 20} MiB of uploads"
    assert list(tmp_path.iterdir()) == []


async def test_what_came_as_base64_waits_on_disk(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        payload = {"inputs": [{"audio_base64": encoded(TONE), "audio_format": "wav"}] * 3}
        answer = await server.client.post("/transcribe", json=payload)
        assert answer.json() == [{"text": TEXT}] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [71, 300, 5000])
async def test_a_boundary_longer_than_the_standard_has_it_is_refused(
    hasty: Serving, size: int
) -> None:
    kind = {"content-type": f"multipart/form-data; boundary={'b' * size}"}
    answer = await hasty.client.post("/transcribe", content=b"x", headers=kind)
    assert (answer.status_code, answer.json()["field"]) == (400, "content-type")


@pytest.mark.parametrize("name", ["\ud800", "x" * 60_000, "clip"])
async def test_a_part_of_an_odd_name_or_content_is_refused(hasty: Serving, name: str) -> None:
    value = name.encode(errors="surrogatepass")
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % value
    content = head + b"[" * 20_000 + b"\r\n" + FILE + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = await hasty.client.post("/transcribe", content=content, headers=kind)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert len(answer.content) < 1000
