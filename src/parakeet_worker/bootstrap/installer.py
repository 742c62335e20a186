"""Run uv: find or download it, install a lock file, and classify its failures."""

import base64
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.settings import BootstrapSettings
from parakeet_worker.errors import (
    IndexUnreachable,
    InstallFailed,
    InstallTimeout,
    PackageUntrusted,
    SetupError,
    UvMissing,
    VolumeFull,
    VolumeReadonly,
)
from parakeet_worker.volume.files import remove, supports_flock
from parakeet_worker.volume.layout import Volume
from parakeet_worker.volume.owner import die_with_parent

Log = Callable[[str], None]

PROGRESS_SECONDS = 10.0
"""Interval of log lines while an installation runs."""
_PROBE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_OPTIONAL_TIMEOUT_SECONDS = 300.0
_HASHED = re.compile(r"#(.*&)?sha256=[0-9a-f]{64}\b")

_FULL = ("no space left", "os error 28", "os error 122", "disk quota", "errno 28", "os error 27")
_READONLY = ("read-only file system", "os error 30", "errno 30")
_UNTRUSTED = (
    "hash mismatch", "do not match the hashes", "bad uncompressed size", "failed to extract",
    "failed to read from zip", "invalid zip", "bad magic number", "not a zip",
)  # fmt: skip
_UNREACHABLE = (
    "failed to fetch", "dns error", "error sending request", "connection refused", "tcp connect",
    "connection reset", "timed out", "network unreachable",
    "request failed after", "max retries exceeded", "failed to download",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Installer:
    """uv with the operator's settings and a cancellation check."""

    uv: Path
    settings: BootstrapSettings
    volume: Volume
    cache: Path
    """Folder of downloads."""
    check_cancelled: Callable[[], None]
    """Called often; raises if the installation must stop."""
    log: Log

    def install(self, profile: Profile, folder: Path) -> None:
        """Create a virtual environment at `folder` from the lock; raises `SetupError`.

        Every file that is downloaded has a hash. A package without a wheel is built without
        isolation, by the packages of `build.txt`: an isolated build would install its
        requirements without hashes. `pip sync` removes these packages again.
        """
        venv = ["venv", "--quiet", "--relocatable", "--python", str(profile.python)]
        self._run([*venv, str(folder)])
        target = ["--python", str(folder / "bin" / "python"), "--no-progress"]
        locked = [*target, "--require-hashes", *_index_options(self.settings)]
        build = profile.lock.with_name("build.txt")
        if build.exists():
            self._run(["pip", "install", *locked, "--no-deps", "--requirement", str(build)])
        sync = ["pip", "sync", *locked, "--no-build-isolation", "--compile-bytecode"]
        self._run([*sync, str(profile.lock)])
        chosen = self.settings.optional_wheels
        for wheel in profile.optional if chosen is None else chosen:
            self._install_optional(wheel, target)

    def _install_optional(self, wheel: str, target: Sequence[str]) -> None:
        """Install a wheel that nothing depends on; log a warning if it fails or has no hash."""
        name = re.split("[?#]", wheel)[0].rpartition("/")[2]
        if "://" in wheel and not _HASHED.search(wheel):
            self.log(
                f"warning: skipped the optional {name}: a wheel from a URL needs a hash; set "
                "PARAKEET_OPTIONAL_WHEELS to its URL with the suffix #sha256=DIGEST"
            )
            return
        command = ["pip", "install", *target, "--compile-bytecode", "--no-deps", wheel]
        try:
            self._run(command, timeout_seconds=_OPTIONAL_TIMEOUT_SECONDS)
        except SetupError as failure:
            self.log(f"warning: skipped the optional {name}: {failure}")

    def _run(self, arguments: Sequence[str], timeout_seconds: float | None = None) -> None:
        timeout = timeout_seconds or self.settings.install_timeout_seconds
        options = ["--cache-dir", str(self.cache), "--no-python-downloads"]
        command = [str(self.uv), *arguments, *options]
        _run(command, timeout, self.check_cancelled, self.volume.home, log=self.log)


@contextmanager
def download_cache(volume: Volume, log: Log) -> Iterator[Path]:
    """The cache on the volume, or a temporary one if the volume does not support flock.

    uv locks files in its cache, and fails where it cannot.
    """
    if supports_flock(volume.home):
        yield volume.uv_cache
        return
    with tempfile.TemporaryDirectory(prefix="parakeet-uv-") as folder:
        log(f"warning: {volume.home} does not support flock; downloads go to {folder}")
        yield Path(folder)


def find_uv(
    settings: BootstrapSettings,
    volume: Volume,
    requirements: Path,
    check_cancelled: Callable[[], None],
) -> Path:
    """Return `PARAKEET_UV`, the uv on the volume or on the path, or download it with pip."""
    if settings.uv is not None:
        if not _works(settings.uv):
            raise UvMissing(str(settings.uv))
        return settings.uv
    lock = requirements / "uv.txt"
    pinned = lock.read_text().split()[0].replace("==", "-")
    kept = volume.tools / pinned / "bin" / "uv"
    on_path = shutil.which("uv")
    for candidate in (kept, Path(on_path) if on_path else None):
        if candidate is not None and _works(candidate):
            return candidate
    _download_uv(settings, volume, lock, kept.parent.parent, check_cancelled)
    return kept


def _download_uv(
    settings: BootstrapSettings,
    volume: Volume,
    lock: Path,
    target: Path,
    check_cancelled: Callable[[], None],
) -> None:
    temporary = target.with_name(f".building-{secrets.token_hex(4)}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip.append("--no-cache-dir")
    locked = ["--no-deps", "--require-hashes", "--requirement", str(lock)]
    if settings.index_url == "none":
        pip.append("--no-index")
    elif settings.index_url:
        pip += ["--index-url", settings.index_url]
    if settings.find_links:
        pip += ["--find-links", settings.find_links]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run(
            [*pip, *locked, "--target", str(temporary)],
            settings.install_timeout_seconds, check_cancelled, volume.home,
        )  # fmt: skip
        remove(target)
        temporary.rename(target)
    finally:
        remove(temporary)


def check_reachable(settings: BootstrapSettings) -> None:
    """Probe the configured index and links; any HTTP status counts as reachable.

    Raises `IndexUnreachable`.
    """
    for url in (settings.index_url, settings.find_links):
        if url is None or not url.startswith(("http://", "https://")):
            continue
        try:
            probe(url, _PROBE_SECONDS)
        except OSError as failure:
            raise IndexUnreachable(without_credentials(url), str(failure)) from None


def probe(url: str, timeout_seconds: float) -> None:
    """Request a URL, with credentials in it sent as a header; any HTTP status is a success.

    Raises `OSError`, whose message and cause contain no credentials.
    """
    try:
        parts, headers = urlsplit(url), {}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        request = urllib.request.Request(without_credentials(url), headers=headers)  # noqa: S310
        urllib.request.urlopen(request, timeout=timeout_seconds).close()  # noqa: S310  # operator's
    except urllib.error.HTTPError as response:
        response.close()
    except (OSError, HTTPException, ValueError) as failure:
        reason = str(getattr(failure, "reason", failure)) or type(failure).__name__
        raise OSError(redact_credentials(reason)) from None


def without_credentials(url: str) -> str:
    """Remove user and password from a URL, also if the password contains a slash."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
    if "@" not in host and port and not port.isdigit():
        return f"{scheme}{mark}{rest.rpartition('@')[2]}"
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def redact_credentials(text: str) -> str:
    """Remove the credentials of every URL in a text."""
    return re.sub(r"(?<=://)[^\s/@]*(/[^\s@]*)?@(?=[^\s@]*)", "", text)


def _index_options(settings: BootstrapSettings) -> list[str]:
    options = []
    if settings.index_url == "none":
        options.append("--no-index")
    elif settings.index_url:
        options += ["--default-index", settings.index_url]
    if settings.find_links:
        options += ["--find-links", settings.find_links]
    return options


def _works(uv: Path) -> bool:
    try:
        completed = subprocess.run([uv, "--version"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return completed.returncode == 0 and completed.stdout.startswith(b"uv ")


def _run(
    command: Sequence[str],
    timeout_seconds: float,
    check_cancelled: Callable[[], None],
    home: Path,
    log: Log | None = None,
) -> None:
    """Run a command; kill it on timeout or cancellation. Raises `SetupError`."""
    started = logged = time.monotonic()
    check_cancelled()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # signals to the process group reach only this process
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no allocation
    ) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=_POLL_SECONDS)
                    break
                check_cancelled()
                now = time.monotonic()
                if now - started > timeout_seconds:
                    raise InstallTimeout(timeout_seconds, "installing")
                if log is not None and now - logged > PROGRESS_SECONDS:
                    logged = now
                    log(f"still installing ({now - started:.0f} s)")
        finally:
            process.kill()
    if process.returncode != 0:
        # A worker that took over the lease may have removed the target: not a failure of uv.
        check_cancelled()
        raise classify_failure(output, process.returncode, home)


def classify_failure(output: str, status: int, home: Path) -> SetupError:
    """Map the output of uv or pip to an error."""
    lowered = output.lower()
    lines = [line.strip() for line in redact_credentials(output).splitlines() if line.strip()]
    last = " ".join(lines)[-600:] or f"exit status {status}"
    if any(sign in lowered for sign in _FULL):
        return VolumeFull(str(home))
    if any(sign in lowered for sign in _READONLY):
        return VolumeReadonly(str(home), "Read-only file system")
    if any(sign in lowered for sign in _UNTRUSTED):
        return PackageUntrusted(last)
    if any(sign in lowered for sign in _UNREACHABLE):
        return IndexUnreachable("the package index", last)
    return InstallFailed(last)
