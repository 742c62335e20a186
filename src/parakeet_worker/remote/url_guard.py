"""Which addresses may be connected to, and how one is shown."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

# IPv6 forms that carry an IPv4 address, which is then the one that must be public.
_NAT64 = ip_network("64:ff9b::/96")
# Taken for public by `ipaddress`, of some versions of Python or of all: site-local addresses, and
# what was set apart for protocols and for documentation since.
_NOT_PUBLIC = tuple(map(ip_network, ("fec0::/10", "192.0.0.0/24", "3fff::/20", "5f00::/16")))


def exact(url: str) -> URL:
    """The URL to the letter where it is encoded already: a signature may cover every one."""
    encoded = url.isascii() and url.isprintable() and " " not in url
    return URL(url, encoded=encoded)


def connector(*, allow_private: bool) -> aiohttp.TCPConnector:
    """A connector that opens sockets to public addresses only.

    The check sits where the socket is made, on the very address that it will connect to: names
    are resolved once, every redirect passes here, and nothing is looked up again after.
    """

    def open_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, (host, *_) = address
        if not allow_private and not _is_public(host):
            raise _ForbiddenAddress("it has no public address")
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        return opened

    return aiohttp.TCPConnector(socket_factory=open_socket, force_close=True)


def forbidden(failure: BaseException) -> str | None:
    """Why a connection was not opened; None if it failed for another reason."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, _ForbiddenAddress):
            return str(cause)
        cause = getattr(cause, "os_error", None) or cause.__cause__
    return None


class _ForbiddenAddress(OSError):
    """Raised inside the connector, where only an OSError passes through as it is.

    It says the same of every address: where a name has several, only one word passes through.
    """


def _is_public(host: str) -> bool:
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    odd = address.is_multicast or address.is_reserved or any(address in net for net in _NOT_PUBLIC)
    return address.is_global and not odd


def shown(url: str) -> str:
    """The address without its query and credentials, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
