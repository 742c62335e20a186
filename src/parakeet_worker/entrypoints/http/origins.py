"""Which names the server answers to, and which web pages may use it.

A browser lets any web page send requests to a server on the same machine. Those of another site
carry that site in `Origin`; a site that has its own name resolve to a loopback address (DNS
rebinding) carries its name in `Host`.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from parakeet_worker.entrypoints.http.responses import refusal
from parakeet_worker.errors import HostForbidden, InvalidSetting, OriginForbidden
from parakeet_worker.settings import Settings, variable

EVERY = "*"
_LOOPBACK = "localhost,127.0.0.1,::1"
_PREFLIGHT_SECONDS = 600


def for_address(settings: Settings, host: str) -> Settings:
    """The settings of a server that listens at `host`: on loopback, to loopback names alone."""
    if not _is_loopback(host):
        return settings
    names = ",".join(filter(None, (_LOOPBACK, host, settings.allowed_hosts)))
    return settings.model_copy(update={"allowed_hosts": names})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listed(text: str | None) -> list[str]:
    """What a setting lists with commas between."""
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` for allowed hosts and origins; raises `InvalidSetting` for an impossible origin."""
    origins = [_origin(item) for item in listed(settings.cors_origins)]
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "X-Model", "X-Request-ID", "X-Warnings"],
            max_age=_PREFLIGHT_SECONDS,
        )
    hosts = [name.strip("[]").lower() for name in listed(settings.allowed_hosts)]
    return _Guard(app, hosts, origins) if hosts and EVERY not in hosts else app


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text not in (EVERY, f"{parts.scheme}://{parts.netloc}"):
        reason = f"an origin is of the form https://example.com, got '{text}'"
        raise InvalidSetting(variable("cors_origins"), reason)
    return text


class _Guard:
    """Answers 403 to other hosts, and to other web pages' requests."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            error: HostForbidden | OriginForbidden | None = None
            if _name(host) not in self._hosts:
                error = HostForbidden(host)
            elif origin is not None and not self._allows(origin, host):
                error = OriginForbidden(origin)
            if error is not None:
                await refusal(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allows(self, origin: str, host: str) -> bool:
        """A page of this server's own, whatever proxy adds TLS to it, or one that is listed."""
        if EVERY in self._origins or origin in self._origins:
            return True
        return origin.partition("://")[2].lower() == host.lower() != ""


def _name(host: str) -> str:
    """The name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
