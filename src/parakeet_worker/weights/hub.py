"""Models from the Hugging Face hub, downloaded once into its cache by one of many workers.

Downloads are verified against the hub's digests, and a note of the verified files is kept in the
cache. With a note, later starts need no network.
"""

import errno
import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import stamina

from parakeet_worker.errors import (
    SetupError,
    VolumeFull,
    VolumeReadonly,
    VolumeUnusable,
    WeightsCorrupt,
    WeightsMissing,
    one_line,
)
from parakeet_worker.remote.retries import is_transient, retry_after_seconds
from parakeet_worker.volume.files import read_json, translate_os_errors, write_atomic
from parakeet_worker.volume.lease import Fenced, Leases
from parakeet_worker.weights.checkpoints import (
    EXTRACTOR,
    MAIN,
    RUNPOD_CACHE,
    SAFETENSORS,
    Kind,
    checkpoint_in,
    model_folder,
    snapshot,
)
from parakeet_worker.weights.digests import check_files, digest

log = logging.getLogger(__name__)

FETCH_TIMEOUT_SECONDS = 3600.0
"""Default timeout of a whole download."""

# In the folder of a model, next to those of the hub's library.
_METADATA_DIR = ".parakeet"
LEASE_SECONDS = 30.0
_PROGRESS_SECONDS = 30.0
_POLL_SECONDS = 0.5
ATTEMPTS = 5
_WAIT_SECONDS = 0.5
_MAX_RETRY_AFTER_SECONDS = 300.0
_REASON_CHARACTERS = 300
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.ENAMETOOLONG}
)
_ABANDONED_SECONDS = 3600.0


def find_or_download(
    model: str, revision: str | None, kinds: Sequence[Kind], timeout_seconds: float
) -> Path:
    """A checkpoint in the Hugging Face cache, downloaded under a lease if it is missing.

    Raises `WeightsMissing`, `WeightsCorrupt` and errors of the volume.
    """
    from huggingface_hub import constants

    folder = model_folder(Path(constants.HF_HUB_CACHE), model)
    branch = revision or MAIN
    leases = Leases(folder / _METADATA_DIR / "leases", LEASE_SECONDS)
    logged = False
    while True:
        verified = _verified_snapshot(folder, branch, kinds)
        if verified is not None:
            return verified
        try:
            with translate_os_errors(folder):
                lease = leases.try_acquire()
                if lease is not None:
                    with suppress(Fenced), lease:
                        download = partial(_download, model, branch, kinds, folder)
                        # Another worker may have finished between the search and the lease.
                        verified = _verified_snapshot(folder, branch, kinds)
                        return verified or _with_timeout(download, model, timeout_seconds)
        except (VolumeFull, VolumeReadonly, VolumeUnusable, WeightsMissing) as failure:
            return _unverified_snapshot(folder, branch, kinds, failure)
        if not logged:
            log.info("waiting for %s, which downloads %s", leases.holder(), model)
            logged = True
        time.sleep(_POLL_SECONDS)


def _verified_snapshot(folder: Path, revision: str, kinds: Sequence[Kind]) -> Path | None:
    """A checkpoint with a note, if all files in the note still have their sizes."""
    path = snapshot(folder, revision)
    if path is None:
        return None
    for kind in kinds:
        note = read_json(folder / _METADATA_DIR / f"{path.name}-{kind}.json")
        if note and all(_size(path / name) == size for name, size in note.items()):
            return checkpoint_in(path, [kind])
    return None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _unverified_snapshot(
    folder: Path, revision: str, kinds: Sequence[Kind], failure: SetupError
) -> Path:
    """A checkpoint that another program cached, used if the hub fails; else raises `failure`."""
    path = snapshot(folder, revision)
    checkpoint = checkpoint_in(path, kinds) if path is not None else None
    if checkpoint is None:
        raise failure
    for check in check_files(checkpoint):
        if check.status == "corrupt":
            raise WeightsCorrupt(
                str(check.path), "differs from the digest that is its name in the cache: delete it"
            )
    log.warning("%s; using %s without verification", failure, checkpoint)
    return checkpoint


def _with_timeout(download: Callable[[], Path], model: str, timeout_seconds: float) -> Path:
    """Run a download in a daemon thread; raises `WeightsMissing` on timeout.

    The thread is then abandoned, since its locks and sockets cannot be cancelled: the start fails,
    and the process exits.
    """
    done: Future[Path] = Future()

    def run() -> None:
        try:
            done.set_result(download())
        except BaseException as failure:  # noqa: BLE001  # re-raised in the waiting thread
            done.set_exception(failure)

    threading.Thread(target=run, name="download", daemon=True).start()
    started = time.monotonic()
    while True:
        left = started + timeout_seconds - time.monotonic()
        try:
            return done.result(min(_PROGRESS_SECONDS, max(0.0, left)))
        except TimeoutError:
            if done.done():
                raise  # raised by the download itself
            if left <= _PROGRESS_SECONDS:
                reason = f"Hugging Face: no complete download within {timeout_seconds:g} s"
                raise WeightsMissing(model, [reason]) from None
            log.info("downloading %s (%.0f s)", model, time.monotonic() - started)


def _download(model: str, revision: str, kinds: Sequence[Kind], folder: Path) -> Path:
    """Download with retries; raises `WeightsMissing`, `WeightsCorrupt` and `OSError`."""
    _remove_abandoned(folder)
    _remove_stale_locks(folder)
    try:
        for attempt in stamina.retry_context(
            on=_is_transient, attempts=ATTEMPTS, timeout=None, wait_initial=_WAIT_SECONDS
        ):
            with attempt:
                return _download_once(model, revision, kinds, folder)
    except _Mismatch as failure:
        raise WeightsCorrupt(
            str(failure), "differs from the digest that the hub declares, after several downloads"
        ) from None
    except SetupError:
        raise
    # The hub's libraries raise an open set of types: RuntimeError, JSONDecodeError and others.
    except Exception as failure:
        if isinstance(failure, OSError) and _is_disk_error(failure, folder):
            raise
        reason = f"Hugging Face, revision {revision}: {_reason(failure)}"
        raise WeightsMissing(model, [str(RUNPOD_CACHE), str(folder), reason]) from failure
    raise AssertionError  # the last attempt returns or raises


def _is_disk_error(failure: OSError, folder: Path) -> bool:
    """Whether the disk of the cache failed, and not the network or another file."""
    if failure.filename is not None:
        return str(failure.filename).startswith(str(folder.parent))
    return failure.errno in _DISK_ERRORS


def _reason(failure: Exception) -> str:
    """Class and message of a third-party exception, on one line."""
    message = one_line(str(failure), _REASON_CHARACTERS)
    kind = type(failure).__name__
    return f"{kind}: {message}" if message else kind


def network_fault() -> str | None:
    """Why no HTTP client can be created (proxy or certificate variables are invalid), else None."""
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as failure:
        return _reason(failure)
    return None


def _is_transient(failure: Exception) -> bool | float:
    """Whether to retry, or the seconds of a `Retry-After` header."""
    import httpx
    from huggingface_hub import errors

    if isinstance(failure, errors.HfHubHTTPError):
        response = failure.response
        seconds = retry_after_seconds(response.headers.get("Retry-After"))
        if not is_transient(response.status_code):
            return False
        return True if seconds is None else min(seconds, _MAX_RETRY_AFTER_SECONDS)
    if isinstance(failure, errors.OfflineModeIsEnabled):
        return False
    if isinstance(failure, (errors.LocalEntryNotFoundError, httpx.TransportError, _Mismatch)):
        return True
    return isinstance(failure, OSError) and failure.errno is None  # an unexpected size


class _Mismatch(Exception):
    """A downloaded file differs from the hub's size or digest; it was deleted."""


def _download_once(model: str, revision: str, kinds: Sequence[Kind], folder: Path) -> Path:
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(model, revision=revision, files_metadata=True)
    offered = {each.rfilename: each for each in info.siblings or ()}
    for kind in kinds:
        names = _file_names(kind, list(offered))
        if not names:
            continue
        paths = {name: _download_file(model, name, revision) for name in names}
        for name, path in paths.items():
            _compare(path, offered[name])
        target = next(iter(paths.values())).parent
        # A mirror may omit the commit; all files must be of the same one in any case.
        commits = {path.parent.name for path in paths.values()}
        if commits != {info.sha or target.name}:
            raise _Mismatch(f"{target}: the branch was moved during the download")
        note = {name: path.stat().st_size for name, path in paths.items()}
        write_atomic(folder / _METADATA_DIR / f"{target.name}-{kind}.json", json.dumps(note))
        log.info("downloaded %s at %s: %d bytes", model, target.name, sum(note.values()))
        checkpoint = checkpoint_in(target, [kind])
        if checkpoint is not None:
            return checkpoint
    raise WeightsMissing(model, [f"Hugging Face, revision {revision}: it holds no checkpoint"])


def _download_file(model: str, name: str, revision: str) -> Path:
    """Download one file; fall back to plain HTTP if xet, which has a host of its own, fails."""
    import huggingface_hub
    from huggingface_hub import constants

    def download() -> Path:
        return Path(huggingface_hub.hf_hub_download(model, name, revision=revision))

    try:
        return download()
    except RuntimeError as failure:  # hf_xet has no exception class of its own
        if constants.HF_HUB_DISABLE_XET:
            raise
        log.warning("%s; falling back to plain HTTP", _reason(failure))
        constants.HF_HUB_DISABLE_XET = True
    return download()


def _file_names(kind: Kind, offered: Sequence[str]) -> list[str]:
    """Files of a checkpoint of that kind; empty if the repository lacks a required one."""
    if kind == "nemo":
        return sorted(name for name in offered if name.endswith(".nemo") and "/" not in name)[:1]
    if kind == "prepacked" or not set(SAFETENSORS) <= set(offered):
        return []
    return [name for name in (*SAFETENSORS, *EXTRACTOR) if name in offered]


def _compare(path: Path, offered: Any) -> None:
    """Compare a file with the hub's size and digest; raises `_Mismatch`."""
    content = path.resolve()
    expected = offered.lfs.sha256 if offered.lfs else offered.blob_id
    same_size = offered.size in (None, content.stat().st_size)
    if not same_size or (expected and digest(content, expected) != expected):
        path.unlink()
        content.unlink(missing_ok=True)
        raise _Mismatch(str(path))


def _remove_stale_locks(folder: Path) -> None:
    """Remove lock files of the hub's library that no process holds.

    On a volume without flock the library falls back to lock files that a killed process leaves
    behind. The lease excludes other downloads; with flock, a held lock is not removed.
    """
    for lock in (folder.parent / ".locks" / folder.name).glob("**/*.lock"):
        with suppress(OSError), lock.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # flock is not supported
                log.warning("removing %s, left behind by a killed process", lock)
            lock.unlink()


def _remove_abandoned(folder: Path) -> None:
    """Remove partial files of killed downloads: the library does not resume them."""
    for partial_file in folder.glob("blobs/*.incomplete"):
        with suppress(OSError):
            if time.time() - partial_file.stat().st_mtime > _ABANDONED_SECONDS:
                partial_file.unlink()
