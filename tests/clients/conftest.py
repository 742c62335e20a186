"""A server with the demo checkpoint, and the clients' calls to it, each client in one process."""

import shutil
from collections.abc import Iterator

import pytest
from cases import HERE, available

from http_server import Process, running_server

MODULE = "parakeet_worker.entrypoints.http"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-page", action="store_true", help="write docs/clients.md")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("server")
    with running_server(home, {"PARAKEET_MODEL": "demo"}, module=MODULE) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that rejects hints."""
    home = tmp_path_factory.mktemp("strict")
    variables = {"PARAKEET_ENGINE": "tones", "PARAKEET_STRICT": "true"}
    with running_server(home, variables, module=MODULE) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def needs_node() -> None:
    available(present=shutil.which("node") is not None and (HERE / "node_modules").is_dir())
