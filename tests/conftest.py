"""Fixtures that several test files use."""

import gc
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import imageio_ffmpeg
import psutil
import pytest
import stamina

from loopback import Listener, S3Server, WebServer, self_signed_certificate
from programs import require
from selection import (  # noqa: F401  # hooks of pytest
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
)

# As scripts/test does; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no limit of time on a machine under load.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Exclude modules and tests, a million objects, from the collections of garbage that follow."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A separate HOME, so that converted models do not stay in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Restore SIGINT, which background shells ignore, for child processes to inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


SYSTEM_PATH = os.environ["PATH"]


@pytest.fixture(scope="session", autouse=True)
def packaged_ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged ffmpeg, first on the path for tests that need any; or TESTED_FFMPEG.

    Debian's needs 70 ms of processor time to start, and the tests start thousands.
    """
    programs = tmp_path_factory.mktemp("programs")
    tested = os.environ.get("TESTED_FFMPEG") or imageio_ffmpeg.get_ffmpeg_exe()
    (programs / "ffmpeg").symlink_to(tested)
    os.environ["PATH"] = f"{programs}{os.pathsep}{SYSTEM_PATH}"
    return programs / "ffmpeg"


@pytest.fixture(scope="session", params=["system", "packaged"])
def ffmpeg(request: pytest.FixtureRequest, packaged_ffmpeg: Path) -> Path:
    """The ffmpegs that a worker may use."""
    if request.param == "packaged":
        return packaged_ffmpeg
    return require("ffmpeg", SYSTEM_PATH)


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with WebServer() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    path.write_text(self_signed_certificate())
    return path


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[WebServer]:
    """A web server with an untrusted certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with WebServer(context) as server:
        yield server


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def without_waits() -> Iterator[None]:
    """Retry without delays, as often as in production."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


@pytest.fixture
def children() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Child processes that a test started and that have not ended; none may remain at its end."""
    me = psutil.Process()
    before = set(me.children(recursive=True))

    def started() -> list[psutil.Process]:
        return [child for child in me.children(recursive=True) if child not in before]

    yield started
    assert started() == []
