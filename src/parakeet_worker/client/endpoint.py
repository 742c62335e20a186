"""Endpoints: RunPod's queue API, or the HTTP API of `parakeet serve`."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from parakeet_worker.errors import InvalidRequest

Kind: TypeAlias = Literal["queue", "http"]

RUNPOD = "https://api.runpod.ai/v2"
"""Base URL of queue endpoints."""

MAX_RUN_BYTES = 10_000_000
"""Largest request to `/run`; 10 MB in RunPod's documentation of August 2026."""

MAX_RUNSYNC_BYTES = 20_000_000
"""Largest request to `/runsync`."""

MAX_BALANCED_BYTES = 30_000_000
"""Largest request to a load-balancing endpoint."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_QUEUE_PATH = re.compile(r"(/v2/[^/]+)(/run|/runsync|/health)?")
BALANCED_HOST = ".api.runpod.ai"
# The request around the audio: its fields, or the headers of a form's parts.
_AROUND_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Route:
    """One route of an endpoint, and its largest request; None is no limit."""

    path: str
    max_bytes: int | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL, its API, and its routes, the preferred first."""

    url: str
    kind: Kind
    routes: tuple[Route, ...]

    @classmethod
    def read(cls, text: str, base: str = RUNPOD) -> "Endpoint":
        """From an id of RunPod's, or a URL; raises `InvalidRequest`."""
        if _ID.fullmatch(text):
            return cls.queue(f"{base.rstrip('/')}/{text}")
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname, parts.port
        except ValueError as failure:
            raise InvalidRequest("endpoint", f"not a URL: {failure}") from failure
        if parts.scheme not in ("http", "https") or not host:
            raise InvalidRequest("endpoint", f"'{text}' is neither an id nor an http address")
        queue = _QUEUE_PATH.fullmatch(parts.path.rstrip("/"))
        root = f"{parts.scheme}://{parts.netloc}"
        if queue is not None:
            return cls.queue(root + queue[1])
        limit = MAX_BALANCED_BYTES if host.endswith(BALANCED_HOST) else None
        url = root + parts.path.rstrip("/").removesuffix("/transcribe")
        return cls(url, "http", (Route("transcribe", limit),))

    @classmethod
    def queue(
        cls,
        url: str,
        max_run_bytes: int = MAX_RUN_BYTES,
        max_runsync_bytes: int = MAX_RUNSYNC_BYTES,
    ) -> "Endpoint":
        """A queue endpoint.

        `/runsync` accepts larger requests; `wait=1000` makes it return the job's id after a second,
        so that the job is polled and can be cancelled like any other.
        """
        routes = (Route("run", max_run_bytes), Route("runsync?wait=1000", max_runsync_bytes))
        return cls(url, "queue", routes)

    @property
    def runpod(self) -> bool:
        """Whether it needs a RunPod API key."""
        host = urlsplit(self.url).hostname or ""
        return self.kind == "queue" or host.endswith(BALANCED_HOST)

    @property
    def max_audio_bytes(self) -> int | None:
        """The largest file that fits into a request."""
        return self._room(self.routes[-1])

    def narrowed(self, max_audio_bytes: int) -> "Endpoint":
        """The same with a lower limit on files."""
        routes = tuple(Route(route.path, max_audio_bytes + _AROUND_BYTES) for route in self.routes)
        return Endpoint(self.url, self.kind, routes)

    def reserving(self, fields_bytes: int) -> "Endpoint":
        """The same with less room for a file, next to fields of that size."""
        routes = tuple(
            Route(
                route.path,
                None if route.max_bytes is None else max(0, route.max_bytes - fields_bytes),
            )
            for route in self.routes
        )
        return Endpoint(self.url, self.kind, routes)

    def route(self, audio_bytes: int) -> Route | None:
        """The first route that a file of that size fits into."""
        for route in self.routes:
            room = self._room(route)
            if room is None or audio_bytes <= room:
                return route
        return None

    def _room(self, route: Route) -> int | None:
        if route.max_bytes is None:
            return None
        left = max(0, route.max_bytes - _AROUND_BYTES)
        # JSON carries a file as base64: four characters for three bytes.
        return left // 4 * 3 if self.kind == "queue" else left
