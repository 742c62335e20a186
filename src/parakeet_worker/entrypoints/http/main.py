"""The HTTP server: `parakeet serve`, or a container that listens on every address.

Exit status: 0 after a signal, 1 if the model cannot be loaded or the engine is lost.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event, Thread
from typing import TypeAlias

from parakeet_worker.bootstrap import variables
from parakeet_worker.container import Container, fitted
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.errors import InvalidSetting, SetupError
from parakeet_worker.logs import NonBlockingHandler, PlainLines
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.remote import retries
from parakeet_worker.settings import Settings, variable
from parakeet_worker.worker import VARIABLES, open_pipeline

log = logging.getLogger(__name__)

ALL_ADDRESSES = "0.0.0.0"  # noqa: S104  # containers publish ports explicitly
_BACKLOG = 2048

Open: TypeAlias = Callable[[Settings], AbstractContextManager[Pipeline]]


class _Model(Thread):
    """Loads the model in the background and holds it until the server stops."""

    def __init__(self, service: Service, opening: Open, on_failure: Callable[[], None]) -> None:
        super().__init__(name="model", daemon=True)
        self._service, self._opening, self._on_failure = service, opening, on_failure
        self._closed = Event()
        self._loaded = Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._opening(self._service.settings) as pipeline:
                _check(pipeline)
                self._service.open(pipeline)
                self._loaded.set()
                self._closed.wait()
        except BaseException as failure:  # noqa: BLE001  # re-raised by `serve`
            self.failure = failure
            self._on_failure()

    def close(self) -> None:
        """Release the model; one that is still loading is released by process exit."""
        self._closed.set()
        if self._loaded.is_set():
            self.join()


def _check(pipeline: Pipeline) -> None:
    """Exit if ffmpeg does not run: every request would fail, most as the caller's fault."""
    from parakeet_worker.checks import fitness

    try:
        asyncio.run(fitness.check_ffmpeg(pipeline))
    except fitness.FitnessError as failure:
        sys.exit(f"parakeet: {failure}")


def serve(settings: Settings, host: str, opening: Open = open_pipeline) -> None:
    """Serve until a signal, or until the model cannot be loaded or its engine fails."""
    sockets = _listen(host, settings)
    _raise_descriptor_limit()
    # Imported after listening, so that early connections wait instead of being refused.
    from parakeet_worker.entrypoints.http import connections, origins, routes

    def stop() -> None:
        server.should_exit = True

    service = Service(settings, on_lost=stop)
    app = origins.restrict(routes.application(service), origins.for_address(settings, host))
    server = connections.server(app, settings)
    model = _Model(service, opening, on_failure=stop)
    model.start()
    server.run(sockets)
    model.close()
    if model.failure is not None:
        raise model.failure
    if service.state == "lost":
        sys.exit("parakeet: the engine is lost; exiting so that the worker is replaced")


def _listen(host: str, settings: Settings) -> list[socket.socket]:
    """Bind the sockets before anything is loaded."""
    ports = {variable("port"): settings.port}
    if settings.port_health is not None and settings.port_health != settings.port:
        ports[variable("port_health")] = settings.port_health
    sockets = [_bound(host, port, name) for name, port in ports.items()]
    for each in sockets:
        log.info("listening on http://%s:%d", host, each.getsockname()[1])
    return sockets


def _bound(host: str, port: int, name: str) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
    except OSError as failure:
        bound.close()
        reason = f"cannot listen on {host}:{port}: {failure.strerror}"
        raise InvalidSetting(name, reason) from failure
    return bound


def _raise_descriptor_limit() -> None:
    """Idle connections must not exhaust descriptors needed by ffmpeg and uploads."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(host: str = ALL_ADDRESSES, *, port: int | None = None, model: str | None = None) -> None:
    """Read the settings from the environment, override them by the arguments, and serve."""
    # Until uvicorn installs its own handlers.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    retries.log_retries()
    lines = NonBlockingHandler(2)
    lines.setFormatter(PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    for warning in variables.clean(os.environ):
        log.warning("%s", warning)
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        settings = Settings.from_environment(os.environ)
        chosen = {"port": port, "model": model}
        overrides = {name: value for name, value in chosen.items() if value is not None}
        if settings.api_key is not None and settings.api_keys is None:
            log.warning(
                "%s is for clients; the server reads %s, which is unset, and requires no key",
                variable("api_key"), variable("api_keys"),
            )  # fmt: skip
        container = Container.read()
        log.info("%s", container)
        serve(fitted(settings.model_copy(update=overrides), container), host)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")
    finally:
        lines.close()  # before the exit message is printed
