"""uv: where it is found, how it is run, and what its complaints mean."""

import base64
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from parakeet_worker.bootstrap.choices import Choices
from parakeet_worker.bootstrap.owner import die_with_parent
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.volume import Volume, remove
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

Tell = Callable[[str], None]

PROGRESS_SECONDS = 10.0
_PROBE_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_OPTIONAL_SECONDS = 300.0
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
    """uv with the operator's choices, and someone who says whether to go on."""

    uv: Path
    choices: Choices
    volume: Volume
    go_on: Callable[[], None]
    """Raises when what is being done is no longer wanted."""
    tell: Tell

    def make(self, profile: Profile, folder: Path) -> None:
        """An environment at `folder` that holds the lock's packages; raises a `SetupError`."""
        venv = ["venv", "--quiet", "--relocatable", "--python", str(profile.python)]
        self._run([*venv, str(folder)])
        python = str(folder / "bin" / "python")
        into = ["pip", "install", "--python", python, "--no-progress", "--compile-bytecode"]
        lock = ["--require-hashes", "--no-deps", "--requirement", str(profile.lock)]
        build = profile.lock.with_name("build.txt")
        hashed = ["--build-constraints", str(build)] if build.exists() else []
        self._run([*into, *lock, *hashed, *_sources(self.choices)])
        chosen = self.choices.optional_wheels
        for wheel in profile.optional if chosen is None else chosen:
            name = re.split("[?#]", wheel)[0].rpartition("/")[2]
            if "://" in wheel and not _HASHED.search(wheel):
                self.tell(
                    f"warning: left out {name}, nothing needs it: nothing is installed from an "
                    "address without its hash; name it in PARAKEET_OPTIONAL_WHEELS with "
                    "#sha256=DIGEST behind it"
                )
                continue
            try:
                self._run([*into, "--no-deps", wheel], limit_seconds=_OPTIONAL_SECONDS)
            except SetupError as failure:
                self.tell(f"warning: left out {name}, nothing needs it: {failure}")

    def _run(self, arguments: Sequence[str], limit_seconds: float | None = None) -> None:
        limit = limit_seconds or self.choices.install_timeout_seconds
        ours = ["--cache-dir", str(self.volume.uv_cache), "--no-python-downloads"]
        command = [str(self.uv), *arguments, *ours]
        _run(command, limit, self.go_on, self.volume.home, tell=self.tell)


def find_uv(
    choices: Choices, volume: Volume, requirements: Path, go_on: Callable[[], None]
) -> Path:
    """The uv that was named, or lies on the volume or the path; else pip fetches it."""
    if choices.uv is not None:
        if not _works(choices.uv):
            raise UvMissing(str(choices.uv))
        return choices.uv
    lock = requirements / "uv.txt"
    pinned = lock.read_text().split()[0].replace("==", "-")
    kept = volume.tools / pinned / "bin" / "uv"
    on_path = shutil.which("uv")
    for candidate in (kept, Path(on_path) if on_path else None):
        if candidate is not None and _works(candidate):
            return candidate
    _fetch_uv(choices, volume, lock, kept.parent.parent, go_on)
    return kept


def _fetch_uv(
    choices: Choices, volume: Volume, lock: Path, into: Path, go_on: Callable[[], None]
) -> None:
    aside = into.with_name(f".building-{secrets.token_hex(4)}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip.append("--no-cache-dir")
    hashed = ["--no-deps", "--require-hashes", "--requirement", str(lock)]
    if choices.index_url == "none":
        pip.append("--no-index")
    elif choices.index_url:
        pip += ["--index-url", choices.index_url]
    if choices.find_links:
        pip += ["--find-links", choices.find_links]
    into.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run(
            [*pip, *hashed, "--target", str(aside)],
            choices.install_timeout_seconds, go_on, volume.home,
        )  # fmt: skip
        remove(into)
        aside.rename(into)
    finally:
        remove(aside)


def check_reachable(choices: Choices) -> None:
    """Ask the index and the links that were named for an answer, whichever it is."""
    for url in (choices.index_url, choices.find_links):
        if url is None or not url.startswith(("http://", "https://")):
            continue
        try:
            ask(url, _PROBE_SECONDS)
        except OSError as failure:
            raise IndexUnreachable(without_secrets(url), str(failure)) from None


def ask(url: str, timeout_seconds: float) -> None:
    """Ask an operator's address for any answer, with the credentials in it as a header.

    Raises `OSError`, whose text and cause hold no credentials.
    """
    try:
        parts, headers = urlsplit(url), {}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        request = urllib.request.Request(without_secrets(url), headers=headers)  # noqa: S310
        urllib.request.urlopen(request, timeout=timeout_seconds).close()  # noqa: S310  # operator's
    except urllib.error.HTTPError as answered:
        answered.close()
    except (OSError, HTTPException, ValueError) as failure:
        reason = str(getattr(failure, "reason", failure)) or type(failure).__name__
        raise OSError(redacted(reason)) from None


def without_secrets(url: str) -> str:
    """A URL without the user and password in it, also where they hold a slash."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
    if "@" not in host and port and not port.isdigit():
        return f"{scheme}{mark}{rest.rpartition('@')[2]}"
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def redacted(text: str) -> str:
    """A text without the credentials of the addresses in it."""
    return re.sub(r"(?<=://)[^\s/@]*(/[^\s@]*)?@(?=[^\s@]*)", "", text)


def _sources(choices: Choices) -> list[str]:
    said = []
    if choices.index_url == "none":
        said.append("--no-index")
    elif choices.index_url:
        said += ["--default-index", choices.index_url]
    if choices.find_links:
        said += ["--find-links", choices.find_links]
    return said


def _works(uv: Path) -> bool:
    try:
        ran = subprocess.run([uv, "--version"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0 and ran.stdout.startswith(b"uv ")


def _run(
    command: Sequence[str],
    limit_seconds: float,
    go_on: Callable[[], None],
    home: Path,
    tell: Tell | None = None,
) -> None:
    """Run to the end, or kill it when it takes too long or is no longer wanted."""
    began = told = time.monotonic()
    go_on()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a signal to the group is this process's to handle
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, nothing is allocated
    ) as running:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    said, _ = running.communicate(timeout=_LOOK_SECONDS)
                    break
                go_on()
                now = time.monotonic()
                if now - began > limit_seconds:
                    raise InstallTimeout(limit_seconds, "installing")
                if tell is not None and now - told > PROGRESS_SECONDS:
                    told = now
                    tell(f"still installing ({now - began:.0f} s)")
        finally:
            running.kill()
    if running.returncode != 0:
        go_on()  # who took over may have removed what this one was writing to
        raise complaint(said, running.returncode, home)


def complaint(said: str, status: int, home: Path) -> SetupError:
    """What an installer's last words mean."""
    lowered = said.lower()
    lines = [line.strip() for line in redacted(said).splitlines() if line.strip()]
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
