"""SSRF protection: network addresses that may be connected to, and URLs redacted for messages."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

# IPv6 forms that carry an IPv4 address, which is then the one that must be public.
_NAT64 = ip_network("64:ff9b::/96")
# `ipaddress` treats these as public in some or all versions of Python: site-local addresses, and
# ranges reserved for protocols and documentation since.
_NOT_PUBLIC = tuple(map(ip_network, ("fec0::/10", "192.0.0.0/24", "3fff::/20", "5f00::/16")))


def to_url(url: str) -> URL:
    """Parse a URL without re-encoding it if it is already encoded: a signature may cover it."""
    encoded = url.isascii() and url.isprintable() and " " not in url
    return URL(url, encoded=encoded)


def connector(*, allow_private: bool) -> aiohttp.TCPConnector:
    """A connector that opens sockets to public addresses only.

    The check runs where the socket is created, on the address that it connects to: names are
    resolved once, every redirect is checked, and DNS rebinding has no second lookup to exploit.
    """

    def open_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, (host, *_) = address
        if not allow_private and not _is_public(host):
            raise _ForbiddenAddress("its address is not public")
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        return opened

    return aiohttp.TCPConnector(socket_factory=open_socket, force_close=True)


def blocked_reason(failure: BaseException) -> str | None:
    """Why the guard blocked a connection; None if it failed for another reason."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, _ForbiddenAddress):
            return str(cause)
        cause = getattr(cause, "os_error", None) or cause.__cause__
    return None


class _ForbiddenAddress(OSError):
    """Raised inside the connector, which passes only OSError through unchanged.

    The message is the same for every address: for a name with several, aiohttp keeps only one.
    """


def _is_public(host: str) -> bool:
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    excluded = (
        address.is_multicast or address.is_reserved or any(address in net for net in _NOT_PUBLIC)
    )
    return address.is_global and not excluded


def redacted(url: str) -> str:
    """The URL without query and credentials, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
