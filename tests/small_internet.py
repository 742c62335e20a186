"""An internet of one's own: a public machine, a loopback one, and a name server between them.

A program for namespaces that it has to itself (see `run`): there it may take a public address and
answer for every name, so that the worker's own `download`, unchanged, crosses a real border.
"""

import asyncio
import fcntl
import json
import socket
import struct
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from parakeet_worker.errors import ParakeetError
from parakeet_worker.request import UrlSource
from parakeet_worker.settings import Settings
from parakeet_worker.sources import url

UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
PUBLIC, LOOPBACK = "93.184.215.14", "127.0.0.1"
# The addresses that a name has, one set for each time that it is looked up.
NAMES: dict[str, list[list[str]]] = {
    "public.test": [[PUBLIC]],
    "inside.test": [[LOOPBACK]],
    "both.test": [[LOOPBACK, PUBLIC]],
    "turncoat.test": [[PUBLIC], [LOOPBACK]],
}
REDIRECTS = {
    "/to-loopback": f"http://{LOOPBACK}/",
    "/to-name": "http://inside.test/",
    "/to-public": "http://both.test/",
}


def run(folder: Path, addresses: list[str]) -> "subprocess.CompletedProcess[str]":
    """Download `addresses` in fresh namespaces for users, network and mounts."""
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {LOOPBACK}\n")
    inside = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    return subprocess.run(
        [*UNSHARE, "sh", "-c", inside, "sh", str(resolver), sys.executable, __file__, *addresses],
        capture_output=True,
        text=True,
        check=False,
    )


class Machine:
    """A web server that counts who connects."""

    def __init__(self) -> None:
        self.connections = 0

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if path in REDIRECTS:
            head = f"HTTP/1.1 302 Found\r\nLocation: {REDIRECTS[path]}\r\nContent-Length: 0\r\n\r\n"
        else:
            head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        writer.write(head.encode())
        await writer.drain()
        writer.close()


class NameServer(asyncio.DatagramProtocol):
    """Answers queries for `NAMES` and counts them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew with every name's first addresses."""
        self.lookups = 0
        self._left = deepcopy(NAMES)

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        question = data[12:end]
        addresses = self._addresses(question) if question[-3] == 1 else []
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
            for address in addresses
        )
        self._transport.sendto(head + question + records, addr)

    def _addresses(self, question: bytes) -> list[str]:
        self.lookups += 1
        labels, rest = [], question
        while rest[0]:
            labels.append(rest[1 : rest[0] + 1].decode())
            rest = rest[rest[0] + 1 :]
        answers = self._left[".".join(labels).lower()]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _take(interface: str, address: str) -> None:
    """Give an interface an address and switch it on."""
    name, family = interface.encode(), socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as control:
        placed = struct.pack("16sHH4s16x", name, family, 0, socket.inet_aton(address))
        fcntl.ioctl(control, 0x8916, placed)
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", name, 0x41))


async def _outcome(address: str, inside: Machine, names: NameServer, target: Path) -> object:
    inside.connections = 0
    names.reset()
    try:
        await url.download(UrlSource(address), target, Settings(stall_timeout_seconds=5))
        became = target.read_text()
    except ParakeetError as error:
        became = error.code
    return {"became": became, "inside": inside.connections, "lookups": names.lookups}


async def _main(addresses: list[str]) -> None:
    _take("lo", LOOPBACK)
    _take("lo:1", PUBLIC)
    outside, inside = Machine(), Machine()
    loop = asyncio.get_running_loop()
    _, names = await loop.create_datagram_endpoint(NameServer, local_addr=(LOOPBACK, 53))
    await asyncio.start_server(outside.greet, PUBLIC, 80)
    await asyncio.start_server(inside.greet, LOOPBACK, 80)
    with TemporaryDirectory() as folder:
        target = Path(folder, "audio")
        outcomes = [await _outcome(address, inside, names, target) for address in addresses]
    print(json.dumps(outcomes))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
