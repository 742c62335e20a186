"""Servers on loopback: a web server with configurable paths, a TCP listener, and S3."""

import asyncio
import gzip
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import MappingProxyType, TracebackType
from typing import Self, TypeAlias

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Behaviour: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """An HTTP server; `at` gives a path its behaviour."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.received: list[str] = []
        """Raw paths with queries, one per request."""
        self.headers: list[Mapping[str, str]] = []
        """Headers of each request."""
        self.reached = asyncio.Event()
        """Set when a request arrives."""
        self.left = asyncio.Event()
        """Set when a client disconnects before the response is complete."""
        self._behaviours: dict[str, Behaviour] = {}

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            application,
            handler_cancellation=True,
            shutdown_timeout=0.1,
            access_log=None,
            max_line_size=64 << 10,
            max_field_size=64 << 10,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    @property
    def address(self) -> str:
        host, port = self._runner.addresses[0]
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    def at(self, path: str, behaviour: Behaviour) -> str:
        """Set the behaviour of `path`; return its URL."""
        self._behaviours[path] = behaviour
        return f"{self.address}{path}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.received.append(request.raw_path)
        self.headers.append({"method": request.method, **request.headers})
        self.reached.set()
        behaviour = self._behaviours.get(request.raw_path.partition("?")[0], answers(404))
        try:
            return await behaviour(request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise


def sends(
    content: bytes, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
) -> Behaviour:
    """Respond with the content."""

    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, status=status, headers=headers)

    return behave


def takes(into: list[bytes], status: int = 200) -> Behaviour:
    """Store the body and respond with `status`."""

    async def behave(request: web.Request) -> web.StreamResponse:
        into.append(b"".join([chunk async for chunk in request.content.iter_any()]))
        return web.Response(status=status)

    return behave


def chunks(content: bytes, times: int = 1) -> Behaviour:
    """Send the content `times` times, without a declared length."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(times):
            await response.write(content)
        return response

    return behave


def gzips(content: bytes) -> Behaviour:
    """The content, packed for the way."""

    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(content), headers={"Content-Encoding": "gzip"})

    return behave


def answers(
    status: int, body: str = "", headers: Mapping[str, str] = MappingProxyType({})
) -> Behaviour:
    """A status and, it may be, a page about it."""

    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, headers=headers)

    return behave


def redirects(to: str, status: int = 302) -> Behaviour:
    """Another place to look, with the letters of `to` as they are."""

    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": to})

    return behave


def stalls(first: bytes = b"") -> Behaviour:
    """Nothing at all, or the beginning of an answer and then nothing more."""

    async def behave(request: web.Request) -> web.StreamResponse:
        if first:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(first)
        await asyncio.Event().wait()
        raise AssertionError

    return behave


def trickles(content: bytes, pause_seconds: float, step: int = 1) -> Behaviour:
    """The content byte by byte, or in other steps, never still for longer than the pause."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for first in range(0, len(content), step):
            await response.write(content[first : first + step])
            await asyncio.sleep(pause_seconds)
        return response

    return behave


def drops(first: bytes = b"", declared: int | None = None) -> Behaviour:
    """Drop the connection, immediately or within a body of `declared` bytes."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        response = web.StreamResponse()
        if declared is not None:
            response.content_length = declared
            await response.prepare(request)
            await response.write(first)
            request.transport.close()
        else:
            request.transport.abort()
        return response

    return behave


def babbles(words: bytes) -> Behaviour:
    """Something that is not HTTP."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(words)
        request.transport.close()
        return web.Response()

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One behaviour for each request, and the last for all after it."""
    left = list(behaviours)

    async def behave(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return behave


class Listener:
    """A port on the loopback addresses that counts who connects, and answers every request."""

    def __init__(self) -> None:
        self.connections = 0

    async def __aenter__(self) -> Self:
        ipv4 = await asyncio.start_server(self._greet, "127.0.0.1", 0)
        self.port: int = ipv4.sockets[0].getsockname()[1]
        self._servers = [ipv4]
        with suppress(OSError):
            self._servers.append(await asyncio.start_server(self._greet, "::1", self.port))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            await writer.drain()
        writer.close()


class S3Server:
    """A whole S3 API with one bucket."""

    access_key = "testing-access"
    secret_key = "testing-secret"
    bucket = "recordings"

    def __enter__(self) -> Self:
        # Imported here: these take a second, and few test files need them.
        import boto3
        from botocore.config import Config
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self._client = boto3.session.Session().client(
            "s3",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )
        self._client.create_bucket(Bucket=self.bucket)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        self._server.stop()

    def put(self, key: str, content: bytes) -> None:
        """Store `content` in the bucket."""
        self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        """Read an object of the bucket."""
        return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def content_type(self, key: str) -> str:
        """Return the stored content type."""
        return self._client.head_object(Bucket=self.bucket, Key=key)["ContentType"]

    def presigned(self, key: str, method: str = "get_object") -> str:
        """Return a URL for reading or writing, valid for an hour."""
        named = {"Bucket": self.bucket, "Key": key}
        return str(self._client.generate_presigned_url(method, Params=named, ExpiresIn=3600))


def self_signed_certificate() -> str:
    """A certificate for 127.0.0.1 and localhost, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + private).decode()
