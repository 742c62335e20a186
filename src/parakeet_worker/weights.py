"""The model on disk: finds it, or fetches it once.

What was fetched is verified against the hub's own digests and noted down. Whoever finds such a
note asks no hub any more: later starts are offline.
"""

import errno
import fcntl
import hashlib
import json
import logging
import re
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

import stamina

from parakeet_worker.bootstrap.lease import Fenced, Leases
from parakeet_worker.bootstrap.volume import problems_told, read_json, write_whole
from parakeet_worker.errors import (
    InvalidSetting,
    SetupError,
    VolumeFull,
    VolumeReadonly,
    VolumeUnusable,
    WeightsCorrupt,
    WeightsMissing,
    one_line,
)
from parakeet_worker.remote.retries import is_transient, retry_after_seconds

log = logging.getLogger(__name__)

DEMO = "demo"
"""The name of the small checkpoint that comes with the package."""

# RunPod keeps models that an endpoint names in this layout of the Hugging Face cache.
_RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")
_SAFETENSORS = ("model.safetensors", "config.json", "tokenizer.json")
_EXTRACTOR = ("preprocessor_config.json", "processor_config.json")

# What nvidia/parakeet-tdt-0.6b-v3 held at revision 541d1f99c6b0c3cd0b11a95167540bb8edefd82b, as
# Hugging Face names contents: sha256 of large files, git's sha1 of small ones.
_PUBLISHED: Mapping[str, str] = {
    "model.safetensors": "3a2026366188c8c68598edbbff92f8d11590a08e0ae2e6775544e7b07d6a5e11",
    "config.json": "969c65410a736e4a3922f968b3481b2418aba786",
    "processor_config.json": "7acffca89b7dd12e0ebcd085c7181c91cae6575c",
    "tokenizer.json": "a10a554cf61e38108756650018d5781ae9675c1d",
}
_SHA256_DIGITS = 64
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_MAIN = "main"
_MAX_HEADER_BYTES = 100 << 20
_GZIP = b"\x1f\x8b"
# Beside the hub's own folders of a model in a cache.
_OURS = ".parakeet"
_PATIENCE_SECONDS = 30.0
_TELL_SECONDS = 30.0
FETCH_SECONDS = 3600.0
"""How long a fetch may take in all."""
_POLL_SECONDS = 0.5
_ATTEMPTS = 5
_WAIT_SECONDS = 0.5
# What a hub may ask for between two attempts.
_MAX_WAIT_SECONDS = 300.0
_REASON_CHARACTERS = 300
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.ENAMETOOLONG}
)
_ABANDONED_SECONDS = 3600.0

# What `parakeet convert` writes into an image, by the name that it has in a folder.
PREPACKED = "prepacked.safetensors"

Kind: TypeAlias = Literal["prepacked", "safetensors", "nemo"]
ANY_KIND: tuple[Kind, ...] = ("prepacked", "safetensors", "nemo")


def find(
    model: str,
    kinds: Sequence[Kind] = ANY_KIND,
    *,
    revision: str | None = None,
    timeout_seconds: float = FETCH_SECONDS,
) -> Path:
    """A checkpoint of one of `kinds`, the first preferred; raises `SetupError`s.

    `model` is `demo`, a path, or a Hugging Face name, with `@revision` at will, which is looked for
    in RunPod's model cache, then in the Hugging Face cache, and is downloaded last, for as long as
    `timeout_seconds`.
    """
    if model == DEMO:
        return Path(str(files("parakeet_worker") / "checkpoints" / "demo.nemo"))
    named = Path(model).expanduser()
    if named.exists():
        return _inside(model, named, kinds)
    name, _, said = model.partition("@")
    if named.suffix == ".nemo" or named.is_absolute() or name.count("/") != 1:
        raise WeightsMissing(model, [str(named)])
    if said and revision and said != revision:
        reason = f"says {revision}, and PARAKEET_MODEL says {said}; leave one of them out"
        raise InvalidSetting("PARAKEET_MODEL_REVISION", reason)
    wanted = said or revision
    for snapshot in _snapshots(_RUNPOD_CACHE, name, wanted):
        found = _checkpoint_in(snapshot, kinds)
        if found is None:
            continue
        if _is_whole(found):
            return found
        log.warning("%s is incomplete; looking elsewhere", found)
    return _in_hub_cache(name, wanted, kinds, timeout_seconds)


def _inside(model: str, path: Path, kinds: Sequence[Kind]) -> Path:
    if path.is_file():
        return path
    found = _checkpoint_in(path, kinds)
    if found is None:
        raise WeightsMissing(model, [f"{path}/*.nemo", f"{path}/model.safetensors"])
    return found


def _checkpoint_in(folder: Path, kinds: Sequence[Kind]) -> Path | None:
    served = folder / PREPACKED
    held: dict[Kind, Path | None] = {
        "prepacked": served if served.exists() else None,
        "safetensors": folder if all((folder / name).exists() for name in _SAFETENSORS) else None,
        # A link whose content is gone is in the folder, and does not exist.
        "nemo": next((path for path in sorted(folder.glob("*.nemo")) if path.exists()), None),
    }
    return next((held[kind] for kind in kinds if held[kind] is not None), None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether its files are as long as their own headers say; their content is not read."""
    paths = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
    return all(_has_its_length(path) for path in paths)


def _has_its_length(path: Path) -> bool:
    try:
        if path.suffix == ".nemo":
            return _tar_has_its_length(path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        ends = [each["data_offsets"][1] for name, each in tensors.items() if name[:2] != "__"]
        return bool(path.stat().st_size == 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False


def _tar_has_its_length(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(2) == _GZIP:
            return True  # to know it, all of it would have to be unpacked
    try:
        with tarfile.open(path, "r:") as archive:
            return bool(archive.getmembers())
    except tarfile.TarError:
        return False


def _snapshots(cache: Path, model: str, revision: str | None = None) -> Iterator[Path]:
    """The snapshot of that revision; without one that of `main`, then whatever else is there."""
    folder = _folder(cache, model)
    at = _snapshot(folder, revision or _MAIN)
    if at is not None:
        yield at
    if revision is None and (folder / "snapshots").is_dir():
        yield from sorted((folder / "snapshots").iterdir())


def _folder(cache: Path, model: str) -> Path:
    return cache / f"models--{model.replace('/', '--')}"


def _snapshot(folder: Path, revision: str) -> Path | None:
    """The one that a branch or tag was found to be at, or of a commit."""
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _in_hub_cache(
    model: str, revision: str | None, kinds: Sequence[Kind], timeout_seconds: float
) -> Path:
    """From the Hugging Face cache; fetched into it by one worker while others wait."""
    from huggingface_hub import constants

    folder = _folder(Path(constants.HF_HUB_CACHE), model)
    wanted = revision or _MAIN
    leases = Leases(folder / _OURS / "leases", _PATIENCE_SECONDS)
    told = False
    while True:
        noted = _noted(folder, wanted, kinds)
        if noted is not None:
            return noted
        try:
            with problems_told(folder):
                lease = leases.try_take()
                if lease is not None:
                    with suppress(Fenced), lease:
                        fetch = partial(_fetch, model, wanted, kinds, folder)
                        found = _noted(folder, wanted, kinds)
                        return found or _in_time(fetch, model, timeout_seconds)
        except (VolumeFull, VolumeReadonly, VolumeUnusable, WeightsMissing) as failure:
            return _unproven(folder, wanted, kinds, failure)
        if not told:
            log.info("waiting for %s, who fetches %s", leases.holder(), model)
            told = True
        time.sleep(_POLL_SECONDS)


def _noted(folder: Path, revision: str, kinds: Sequence[Kind]) -> Path | None:
    """A snapshot that was verified when it was fetched, if all of it is still there."""
    snapshot = _snapshot(folder, revision)
    if snapshot is None:
        return None
    for kind in kinds:
        noted = read_json(folder / _OURS / f"{snapshot.name}-{kind}.json")
        if noted and all(_size(snapshot / name) == size for name, size in noted.items()):
            return _checkpoint_in(snapshot, [kind])
    return None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _unproven(folder: Path, revision: str, kinds: Sequence[Kind], failure: SetupError) -> Path:
    """What others laid into the cache, where no hub can be asked about it; raises `failure`."""
    snapshot = _snapshot(folder, revision)
    found = _checkpoint_in(snapshot, kinds) if snapshot is not None else None
    if found is None:
        raise failure
    for check in check_files(found):
        if check.verdict == "corrupt":
            raise WeightsCorrupt(str(check.path), "is not what the cache names it: delete it")
    log.warning("%s; taking %s as it is", failure, found)
    return found


def _in_time(fetch: Callable[[], Path], model: str, timeout_seconds: float) -> Path:
    """What `fetch` returns; raises `WeightsMissing` where it takes too long.

    The thread is left behind then, as no library lets go of a lock or a socket on demand: the start
    fails, and with it the process ends.
    """
    done: Future[Path] = Future()

    def run() -> None:
        try:
            done.set_result(fetch())
        except BaseException as failure:  # noqa: BLE001  # raised again where it is waited for
            done.set_exception(failure)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    began = time.monotonic()
    while True:
        left = began + timeout_seconds - time.monotonic()
        try:
            return done.result(min(_TELL_SECONDS, max(0.0, left)))
        except TimeoutError:
            if done.done():
                raise  # the fetch's own
            if left <= _TELL_SECONDS:
                reason = f"Hugging Face: it took longer than {timeout_seconds:g} s"
                raise WeightsMissing(model, [reason]) from None
            log.info("fetching %s (%.0f s)", model, time.monotonic() - began)


def _fetch(model: str, revision: str, kinds: Sequence[Kind], folder: Path) -> Path:
    """Into the cache, file by file; raises `WeightsMissing`, `WeightsCorrupt` and `OSError`."""
    _clear_abandoned(folder)
    _clear_locks(folder)
    try:
        for attempt in stamina.retry_context(
            on=_passes, attempts=_ATTEMPTS, timeout=None, wait_initial=_WAIT_SECONDS
        ):
            with attempt:
                return _fetch_once(model, revision, kinds, folder)
    except _Mismatch as failure:
        raise WeightsCorrupt(str(failure), "is not what the hub says it is, fetched anew") from None
    except SetupError:
        raise
    # What the hub's libraries raise is no closed list: RuntimeError, JSONDecodeError and others.
    except Exception as failure:
        if isinstance(failure, OSError) and _of_the_volume(failure, folder):
            raise
        searched = [
            str(_RUNPOD_CACHE),
            str(folder),
            f"Hugging Face, revision {revision}: {_reason(failure)}",
        ]
        raise WeightsMissing(model, searched) from failure
    raise AssertionError  # the last attempt returns or raises


def _of_the_volume(failure: OSError, folder: Path) -> bool:
    """Whether the cache's disk failed, and not the network or another file."""
    if failure.filename is not None:
        return str(failure.filename).startswith(str(folder.parent))
    return failure.errno in _DISK_ERRORS


def _reason(failure: Exception) -> str:
    """What the hub's library says, in one line."""
    said = one_line(str(failure), _REASON_CHARACTERS)
    kind = type(failure).__name__
    return f"{kind}: {said}" if said else kind


def network_fault() -> str | None:
    """Why the hub's library could not ask at all: unusable proxies or certificates in variables."""
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as failure:
        return _reason(failure)
    return None


def _passes(failure: Exception) -> bool | float:
    """Whether the hub may do better the next time, and in how many seconds if it says so."""
    import httpx
    from huggingface_hub import errors

    if isinstance(failure, errors.HfHubHTTPError):
        response = failure.response
        asked = retry_after_seconds(response.headers.get("Retry-After"))
        if not is_transient(response.status_code):
            return False
        return True if asked is None else min(asked, _MAX_WAIT_SECONDS)
    if isinstance(failure, errors.OfflineModeIsEnabled):
        return False
    if isinstance(failure, (errors.LocalEntryNotFoundError, httpx.TransportError, _Mismatch)):
        return True
    return isinstance(failure, OSError) and failure.errno is None  # a size that does not fit


class _Mismatch(Exception):
    """A file that arrived as something else; it was removed."""


def _fetch_once(model: str, revision: str, kinds: Sequence[Kind], folder: Path) -> Path:
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(model, revision=revision, files_metadata=True)
    offered = {each.rfilename: each for each in info.siblings or ()}
    for kind in kinds:
        wanted = _wanted(kind, list(offered))
        if not wanted:
            continue
        paths = {name: _downloaded(model, name, revision) for name in wanted}
        for name, path in paths.items():
            _compare(path, offered[name])
        snapshot = next(iter(paths.values())).parent
        # A mirror may not say the commit; then all files are of one.
        commits = {path.parent.name for path in paths.values()}
        if commits != {info.sha or snapshot.name}:
            raise _Mismatch(f"{snapshot}: the branch was moved meanwhile")
        note = {name: path.stat().st_size for name, path in paths.items()}
        write_whole(folder / _OURS / f"{snapshot.name}-{kind}.json", json.dumps(note))
        log.info("fetched %s at %s: %d bytes", model, snapshot.name, sum(note.values()))
        found = _checkpoint_in(snapshot, [kind])
        if found is not None:
            return found
    raise WeightsMissing(model, [f"Hugging Face, revision {revision}: it holds no checkpoint"])


def _downloaded(model: str, name: str, revision: str) -> Path:
    """One file, by plain HTTP where xet, whose host is another one, does not deliver it."""
    import huggingface_hub
    from huggingface_hub import constants

    def download() -> Path:
        return Path(huggingface_hub.hf_hub_download(model, name, revision=revision))

    try:
        return download()
    except RuntimeError as failure:  # hf_xet has no class of its own
        if constants.HF_HUB_DISABLE_XET:
            raise
        log.warning("%s; trying plain HTTP", _reason(failure))
        constants.HF_HUB_DISABLE_XET = True
    return download()


def _wanted(kind: Kind, offered: Sequence[str]) -> list[str]:
    """The files of that kind, none where one that is needed is not offered."""
    if kind == "nemo":
        return sorted(name for name in offered if name.endswith(".nemo") and "/" not in name)[:1]
    if kind == "prepacked" or not set(_SAFETENSORS) <= set(offered):
        return []
    return [name for name in (*_SAFETENSORS, *_EXTRACTOR) if name in offered]


def _compare(path: Path, offered: Any) -> None:
    """Hold a file to the size and the digest that the hub says; raises `_Mismatch`."""
    content = path.resolve()
    digest = offered.lfs.sha256 if offered.lfs else offered.blob_id
    fits = offered.size in (None, content.stat().st_size)
    if not fits or (digest and _digest(content, digest) != digest):
        path.unlink()
        content.unlink(missing_ok=True)
        raise _Mismatch(str(path))


def _clear_locks(folder: Path) -> None:
    """Remove locks of the hub's library that no process holds.

    On a volume without flock its lock is the file itself, which a killed process leaves for ever.
    The lease says that nobody else fetches; where flock works, a lock that is held is left alone.
    """
    for lock in (folder.parent / ".locks" / folder.name).glob("**/*.lock"):
        with suppress(OSError), lock.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # there is no flock
                log.warning("removing %s, which a killed process left", lock)
            lock.unlink()


def _clear_abandoned(folder: Path) -> None:
    """Remove halves of files whose downloads were killed: they are not taken up again."""
    for half in folder.glob("blobs/*.incomplete"):
        with suppress(OSError):
            if time.time() - half.stat().st_mtime > _ABANDONED_SECONDS:
                half.unlink()


@dataclass(frozen=True, slots=True)
class FileCheck:
    """A file of a checkpoint, and whether its content is what it should be."""

    path: Path
    size_bytes: int
    digest: str
    verdict: Literal["published", "as the cache names it", "unknown", "corrupt"]
    """`published`: NVIDIA's, byte for byte. `unknown`: nothing to compare with; compare yourself.
    `corrupt`: a cache holds it under another content's name."""


def check_files(checkpoint: Path) -> Iterator[FileCheck]:
    """Each file of a checkpoint that `find` gave, its whole content read."""
    names = (*_SAFETENSORS, *_EXTRACTOR)
    inside = [checkpoint / name for name in names if (checkpoint / name).exists()]
    for path in inside if checkpoint.is_dir() else [checkpoint]:
        yield _check_file(path)


def _check_file(path: Path) -> FileCheck:
    content = path.resolve()
    published = _PUBLISHED.get(path.name)
    # In a cache of Hugging Face's a file is named by what it holds.
    held = content.parent.name == "blobs" and _DIGEST.fullmatch(content.name)
    named = content.name if held else None
    digest = _digest(content, named or published)
    verdict: Literal["published", "as the cache names it", "unknown", "corrupt"] = "unknown"
    if named is not None and digest != named:
        verdict = "corrupt"
    elif digest == published:
        verdict = "published"
    elif named is not None:
        verdict = "as the cache names it"
    return FileCheck(path, content.stat().st_size, digest, verdict)


def _digest(path: Path, like: str | None) -> str:
    """The sha256 of a file, or git's sha1 where `like` is one."""
    with path.open("rb") as opened:
        if like is None or len(like) == _SHA256_DIGITS:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.sha1(header + opened.read(), usedforsecurity=False).hexdigest()
