"""Allowed host names and CORS origins.

A browser allows any web page to send requests to a server on the same machine. Cross-site
requests name the page's site in `Origin`; a site whose name resolves to a loopback address (DNS
rebinding) appears in `Host`.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from parakeet_worker.entrypoints.http.responses import error_response
from parakeet_worker.errors import HostForbidden, InvalidSetting, OriginForbidden
from parakeet_worker.settings import Settings, variable

ANY = "*"
_LOOPBACK = "localhost,127.0.0.1,::1"
_PREFLIGHT_SECONDS = 600


def for_address(settings: Settings, host: str) -> Settings:
    """Settings for a server on `host`: on loopback only loopback names are allowed."""
    if not _is_loopback(host):
        return settings
    names = ",".join(filter(None, (_LOOPBACK, host, settings.allowed_hosts)))
    return settings.model_copy(update={"allowed_hosts": names})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_list(text: str | None) -> list[str]:
    """What a setting lists with commas between."""
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def restrict(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Restrict `app` to allowed hosts and origins; raises `InvalidSetting`."""
    origins = [_origin(item) for item in split_list(settings.cors_origins)]
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "X-Model", "X-Request-ID", "X-Warnings"],
            max_age=_PREFLIGHT_SECONDS,
        )
    hosts = [name.strip("[]").lower() for name in split_list(settings.allowed_hosts)]
    return _Guard(app, hosts, origins) if hosts and ANY not in hosts else app


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text not in (ANY, f"{parts.scheme}://{parts.netloc}"):
        reason = f"an origin is of the form https://example.com, got '{text}'"
        raise InvalidSetting(variable("cors_origins"), reason)
    return text


class _Guard:
    """Answers 403 for other hosts and origins."""

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
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allows(self, origin: str, host: str) -> bool:
        """Same origin regardless of scheme (a proxy may add TLS), or a configured origin."""
        if ANY in self._origins or origin in self._origins:
            return True
        return origin.partition("://")[2].lower() == host.lower() != ""


def _name(host: str) -> str:
    """The name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
