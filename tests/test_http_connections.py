"""Connections that are idle, do not read, send no HTTP, or exceed the limit."""

import asyncio
import errno
import socket
from pathlib import Path

import psutil
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

import recordings
from http_server import serving, until
from parakeet_worker.entrypoints.http import connections, routes
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.settings import Settings
from test_http_routes import TEXT, TONE

IDLE = 1000


async def test_a_thousand_idle_connections_do_not_block_requests(tmp_path: Path) -> None:
    async with serving(tmp_path, idle_timeout_seconds=2) as server:
        before = psutil.Process().memory_info().rss
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(IDLE)]
        for _, writer in opened[: IDLE // 2]:
            writer.write(b"POST /transcribe HTTP/1.1\r\nHost: x\r\n")
        answers = await asyncio.gather(
            *(server.client.post("/transcribe", files={"file": TONE}) for _ in range(8))
        )
        assert [answer.json() for answer in answers] == [{"text": TEXT}] * 8
        # Both ends of every connection are this process's.
        assert psutil.Process().memory_info().rss - before < 200 << 20
        async with asyncio.timeout(60):
            for reader, writer in opened:
                assert await reader.read() == b""
                writer.close()


async def test_headers_that_trickle_buy_no_time(tmp_path: Path) -> None:
    async with serving(tmp_path, idle_timeout_seconds=0.5) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /ping HTTP/1.1\r\n")
        for _ in range(200):
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
        assert reader.at_eof()
        writer.close()


async def test_headers_without_an_end_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /ping HTTP/1.1\r\n" + b"X: y\r\n" * 50_000)
        assert (await reader.read(64)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_connections_beyond_the_limit_are_shed_with_a_word(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections=5) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        output = await reader.read()
        assert output.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in output
        for _, each in (*held, (reader, writer)):
            each.close()

        async def answered() -> bool:
            return (await server.client.get("/ping")).status_code == 200

        await until(answered)


async def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    def held(port: int) -> bool:
        """Whether the server still has a connection."""
        return any(
            each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port
            for each in psutil.Process().net_connections("tcp")
        )

    async with serving(tmp_path, idle_timeout_seconds=1) as server:
        with socket.socket() as caller:
            # So small that the answers stay with the server.
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", server.port))
            caller.sendall(b"GET /page/page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 1500)
            await until(lambda: held(server.port))
            await until(lambda: not held(server.port))
        assert (await server.client.get("/ping")).status_code == 200


async def test_a_connection_is_used_again_after_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for hertz in (300, 400):
            content = recordings.wav(recordings.tone(hertz, 0.5))
            answer = await server.client.post("/transcribe", files={"file": content})
            assert answer.json()["text"] == f"{hertz}."
            assert answer.headers.get("connection") != "close"


async def test_a_lack_of_descriptors_is_one_warning_and_any_other_failure_a_traceback(caplog):
    loop, handler = asyncio.get_running_loop(), connections._AcceptErrors()
    failure = OSError(errno.EMFILE, "Too many open files")
    for _ in range(1000):
        handler(loop, {"message": "socket.accept() out of system resource", "exception": failure})
    assert [record.getMessage() for record in caplog.records] == [
        "a connection was not accepted: Too many open files"
    ]
    handler(loop, {"message": "a bug", "exception": ValueError("odd")})
    assert caplog.records[-1].exc_info is not None


async def test_a_server_reports_a_lack_of_descriptors_once(caplog) -> None:
    settings = Settings(engine="tones")
    server = connections.server(routes.application(Service(settings)), settings)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        running = asyncio.create_task(server.serve([bound]))
        await until(lambda: server.started)
        failure = OSError(errno.ENFILE, "Too many open files in system")
        for _ in range(100):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "socket.accept() out of system resource", "exception": failure}
            )
        server.should_exit = True
        await running
    warnings = [record for record in caplog.records if record.levelname != "INFO"]
    assert [record.getMessage() for record in warnings] == [
        "a connection was not accepted: Too many open files in system"
    ]


def test_the_private_names_of_uvicorn_are_those_in_use() -> None:
    connections.check_protocol(H11Protocol)


@pytest.mark.parametrize("name", ["pause_writing", "timeout_keep_alive_handler"])
def test_a_uvicorn_without_a_method_in_use_is_detected(name: str) -> None:
    changed = type("Changed", (H11Protocol,), {name: None})
    with pytest.raises(connections.ProtocolChanged, match=f"Changed has no {name}$"):
        connections.check_protocol(changed)


def test_a_uvicorn_without_the_attributes_in_use_is_detected() -> None:
    class Changed(H11Protocol):
        def __init__(self) -> None:
            self.loop = None

    with pytest.raises(connections.ProtocolChanged, match="no connections, cycle, timeout_keep"):
        connections.check_protocol(Changed)
