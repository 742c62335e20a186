"""The exception hierarchy: a family per party that has to act, and one class per failure.

    ParakeetError
    ├── RequestError      the caller must change the request
    ├── TransientError    the same request may succeed later
    ├── EngineError       the worker is at fault
    └── SetupError        the operator must change the deployment

An error is constructed from facts and formats its own message. Its code is its class name in
snake case, its meaning the first line of its docstring; `docs/errors.md` lists them all.
"""

import copyreg
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar


class ParakeetError(Exception):
    """A failure with a stable `code`, a one-sentence message and the facts behind it."""

    code: ClassVar[str]
    """The class name in snake case; families have none."""
    http_status: ClassVar[int] = 500

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if ParakeetError not in cls.__bases__:
            cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(self, sentence: str, **facts: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickling, which would call the subclass with the sentence as its facts."""
        new = copyreg.__newobj__  # type: ignore[attr-defined]  # documented by PEP 307
        return new, (type(self), self.sentence), self.__dict__

    def document(self) -> dict[str, object]:
        """The JSON answer to the caller, the same for every transport."""
        return {"error": f"{self.code}: {self.sentence}", "code": self.code, **self.facts}


MAX_ECHO_CHARACTERS = 100
_MAX_COMPARED_CHARACTERS = 64


def echo(text: str) -> str:
    """Caller or third-party text for a message: shortened, without lone surrogates."""
    if len(text) > MAX_ECHO_CHARACTERS:
        text = text[: MAX_ECHO_CHARACTERS - 1] + "…"
    return text.encode(errors="backslashreplace").decode()[:MAX_ECHO_CHARACTERS]


def nearest(name: str, known: list[str]) -> str | None:
    """The closest match for a misspelled `name`; None for long names."""
    if len(name) > _MAX_COMPARED_CHARACTERS:
        return None
    matches = get_close_matches(name, known, n=1)
    return matches[0] if matches else None


Failure = TypeVar("Failure", bound=BaseException)


def without_trace(failure: Failure) -> Failure:
    """Drop the traceback, and with it references to local values, before an error is stored."""
    failure.__traceback__ = failure.__cause__ = failure.__context__ = None
    return failure


def one_line(text: str, limit: int = 100) -> str:
    """Third-party text for a message: printable, on one line, at most `limit` characters."""
    words = " ".join(text[: 10 * limit].split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in words)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


class RequestError(ParakeetError):
    """The caller must change the request."""

    http_status = 400


class InvalidRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of range."""

    def __init__(self, field: str, reason: str, nearest: str | None = None) -> None:
        field = echo(field)
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        super().__init__(f"{field}: {reason}{hint}", field=field, nearest=nearest)


class SourceForbidden(RequestError):
    """Fetching from this address is not allowed."""

    http_status = 403

    def __init__(self, host: str, reason: str) -> None:
        host = echo(host)
        super().__init__(f"{host} may not be fetched: {echo(reason)}", host=host)


class SourceRefused(RequestError):
    """The server refused the request (4xx), or its certificate cannot be verified."""

    def __init__(self, source: str, status: int | None, reason: str | None = None) -> None:
        source = echo(source)
        message = f"{source} answered {status}" if status is not None else source
        super().__init__(
            f"{message}: {reason}" if reason else message,
            source=source,
            status=status,
            reason=reason,
        )


class SourceNotFound(RequestError):
    """Nothing exists at that URL or key."""

    http_status = 404

    def __init__(self, source: str) -> None:
        source = echo(source)
        super().__init__(f"{source} does not exist", source=source)


class S3NotConfigured(RequestError):
    """This worker has no S3 settings."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            f"this worker has no S3 settings; missing: {', '.join(missing)}", missing=missing
        )


class EndpointRefused(RequestError):
    """The endpoint rejected the request."""

    def __init__(self, endpoint: str, status: int, reason: str) -> None:
        super().__init__(
            f"{echo(endpoint)} answered {status}: {echo(reason) or 'no reason given'}",
            endpoint=echo(endpoint),
            status=status,
        )


class PayloadTooLarge(RequestError):
    """Too large for the endpoint in every available encoding."""

    http_status = 413

    def __init__(self, size: int, limit: int, tried: list[str]) -> None:
        super().__init__(
            f"{size} bytes, limit of the endpoint {limit} bytes, also as {' and '.join(tried)}; "
            "set S3_BUCKET, S3_ACCESS_KEY and S3_SECRET_KEY to upload through a bucket",
            limit=limit,
            bytes=size,
        )


class AudioTooLarge(RequestError):
    """More bytes than the limit."""

    http_status = 413

    def __init__(self, limit: int, size: int | None = None) -> None:
        had = f"{size} bytes" if size is not None else f"more than {limit} bytes"
        super().__init__(f"{had}, limit {limit} bytes", limit=limit, bytes=size)


class AudioTooLong(RequestError):
    """More seconds than the limit."""

    http_status = 413

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(
            f"more than {limit_seconds:g} s of audio, limit {limit_seconds:g} s",
            limit=limit_seconds,
        )


class AudioTooShort(RequestError):
    """Too short to contain a word."""

    def __init__(self, seconds: float, minimum_seconds: float) -> None:
        super().__init__(
            f"{seconds:.3g} s of audio, minimum {minimum_seconds:g} s",
            seconds=round(seconds, 3),
            minimum=minimum_seconds,
        )


class AudioEmpty(RequestError):
    """No bytes, or no samples."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class AudioMissing(RequestError):
    """A media file without an audio stream."""

    def __init__(self) -> None:
        super().__init__("the file has no audio stream")


class AudioTruncated(RequestError):
    """The file ends before its declared end, and `on_damage` is `refuse`."""

    def __init__(self, seconds: float, declared_seconds: float | None, reason: str) -> None:
        declared = f" of {declared_seconds:.2f} s declared" if declared_seconds else ""
        super().__init__(
            f"the file ends after {seconds:.2f} s{declared}: {echo(reason)}",
            seconds=round(seconds, 3),
            declared=declared_seconds,
        )


class AudioDamaged(RequestError):
    """A part is missing or undecodable, and `on_damage` is `refuse`."""

    def __init__(
        self,
        reason: str,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
    ) -> None:
        places = {"start": start_seconds, "end": end_seconds}
        known = {name: round(at, 3) for name, at in places.items() if at is not None}
        super().__init__(echo(reason), **known)


class AudioUndecodable(RequestError):
    """ffmpeg cannot decode the file."""

    http_status = 415

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class ClipOutside(RequestError):
    """The clip starts after the end of the recording."""

    def __init__(self, start_seconds: float, recording_seconds: float) -> None:
        super().__init__(
            f"the clip starts at {start_seconds:g} s, the recording ends at "
            f"{recording_seconds:.2f} s",
            field="clip.start",
            seconds=round(recording_seconds, 3),
        )


class SpeakerReferenceUnusable(RequestError):
    """A known speaker's reference is no recording of one person's voice, or a foreign embedding."""

    def __init__(self, field: str, name: str, reason: str) -> None:
        field, name = echo(field), echo(name)
        super().__init__(f"{field} ({name}): {echo(reason)}", field=field, name=name)


class InvalidApiKey(RequestError):
    """The server requires an API key; it is missing or wrong."""

    http_status = 401

    def __init__(self) -> None:
        super().__init__("send one of the operator's keys as 'Authorization: Bearer KEY'")


class HostForbidden(RequestError):
    """The Host header is not one of the server's allowed host names."""

    http_status = 403

    def __init__(self, host: str) -> None:
        host = echo(host)
        super().__init__(
            f"host name '{host}' is not allowed; set PARAKEET_ALLOWED_HOSTS",
            host=host,
        )


class OriginForbidden(RequestError):
    """The web page's origin is not allowed to use the server."""

    http_status = 403

    def __init__(self, origin: str) -> None:
        origin = echo(origin)
        super().__init__(
            f"origin '{origin}' is not allowed; set PARAKEET_CORS_ORIGINS",
            origin=origin,
        )


class ModelNotFound(RequestError):
    """The requested model is not served here."""

    http_status = 404

    def __init__(self, model: str, served: str) -> None:
        super().__init__(
            f"model '{echo(model)}' is not available; this server has '{served}'",
            field="model",
            served=served,
        )


class UnknownRoute(RequestError):
    """The path does not exist."""

    http_status = 404

    def __init__(self, path: str, reason: str | None = None) -> None:
        path = echo(path)
        why = echo(reason) if reason else "/docs lists the routes"
        super().__init__(f"no route {path}: {why}", path=path)


class MethodNotAllowed(RequestError):
    """The path does not support the method."""

    http_status = 405

    def __init__(self, method: str, path: str) -> None:
        path = echo(path)
        super().__init__(
            f"{path} does not support {echo(method)}; /docs lists its methods", path=path
        )


class UploadTimeout(RequestError):
    """The request body took too long, or no data arrived."""

    http_status = 408

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(
            f"the request body was not received within {limit_seconds:g} s", limit=limit_seconds
        )


class OutputRefused(RequestError):
    """The output location rejected the answer."""

    def __init__(self, place: str, reason: str) -> None:
        place = echo(place)
        super().__init__(f"the answer cannot be written to {place}: {echo(reason)}", place=place)


class ResultTooLarge(RequestError):
    """The answer exceeds the platform's limit and the request names no output location."""

    http_status = 413

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the answer has {size} bytes, limit {limit} bytes; set output_url or output_s3, or "
            "request a clip or another format",
            limit=limit,
            bytes=size,
        )


class TransientError(ParakeetError):
    """The same request may succeed later."""

    http_status = 503


class SourceUnreachable(TransientError):
    """No response, a dropped connection or a 5xx."""

    def __init__(self, source: str, reason: str) -> None:
        source = echo(source)
        super().__init__(f"{source}: {echo(reason)}", source=source)


class SourceTimeout(TransientError):
    """The download took too long."""

    def __init__(self, source: str, limit_seconds: float) -> None:
        super().__init__(
            f"{echo(source)} did not complete within {limit_seconds:g} s",
            source=echo(source),
            limit=limit_seconds,
        )


class EndpointUnreachable(TransientError):
    """The endpoint did not respond within all retries."""

    def __init__(self, endpoint: str, reason: str) -> None:
        endpoint, reason = echo(endpoint), echo(reason)
        super().__init__(f"{endpoint}: {reason}", endpoint=endpoint, reason=reason)


class ResultNotWritten(TransientError):
    """A result cannot be written to the client's own disk."""

    def __init__(self, path: Path, reason: str, *, disk_full: bool = False) -> None:
        super().__init__(f"{path} cannot be written: {echo(reason)}", path=str(path))
        self.disk_full = disk_full


class JobCancelled(TransientError):
    """The job was cancelled."""

    def __init__(self, job: str) -> None:
        job = echo(job)
        super().__init__(f"job {job} was cancelled", job=job)


class JobExpired(TransientError):
    """The platform dropped the job before it was done."""

    def __init__(self, job: str, reason: str) -> None:
        job = echo(job)
        super().__init__(f"job {job} expired: {echo(reason)}", job=job)


class DecodeTimeout(TransientError):
    """ffmpeg took too long."""

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"decoding took longer than {limit_seconds:g} s", limit=limit_seconds)


class DecoderKilled(TransientError):
    """The decoder was killed, usually because it ran out of memory."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the decoder was killed after {seconds:.2f} s of audio, probably for lack of memory",
            seconds=round(seconds, 3),
        )


class JobTimeout(TransientError):
    """The whole job took too long."""

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"the job took longer than {limit_seconds:g} s", limit=limit_seconds)


class OutputUnreachable(TransientError):
    """The output location is temporarily unavailable."""

    def __init__(self, place: str, reason: str) -> None:
        place = echo(place)
        super().__init__(f"the answer cannot be written to {place}: {echo(reason)}", place=place)


class ScratchFull(TransientError):
    """The worker's disk has no room for the recording."""

    def __init__(self, free_bytes: int | None = None) -> None:
        free = "" if free_bytes is None else f"; {free_bytes} bytes are free"
        super().__init__(f"no room on this worker's disk{free}", bytes=free_bytes)


class ScratchUnusable(TransientError):
    """The worker's disk is not writable."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this worker's disk is not writable: {echo(reason)}")


class Overloaded(TransientError):
    """The queue is full."""

    def __init__(self, waiting_seconds: float, limit_seconds: float) -> None:
        super().__init__(
            f"{waiting_seconds:.0f} s of audio are queued, limit {limit_seconds:.0f} s",
            limit=limit_seconds,
        )


class Busy(TransientError):
    """The server has reached its maximum number of concurrent requests."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are in progress, limit {limit}", limit=limit)


class Warming(TransientError):
    """The model is still loading."""

    def __init__(self) -> None:
        super().__init__("the model is still loading; poll GET /ready")


class EngineError(ParakeetError):
    """The worker is at fault."""


class JobFailed(EngineError):
    """The job failed without an error code of this worker."""

    def __init__(self, job: str, reason: str) -> None:
        job = echo(job)
        super().__init__(f"job {job}: {echo(reason)}", job=job)


class OutOfMemory(EngineError):
    """A chunk does not fit in memory even in a batch of its own."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"a chunk of {seconds:.1f} s does not fit in memory", seconds=round(seconds, 1)
        )


class NotFinite(EngineError):
    """A chunk produced NaN or infinite values."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"a chunk of {seconds:.1f} s produced values that are not finite",
            seconds=round(seconds, 1),
        )


class ContractBroken(EngineError):
    """The engine returned another number of results than it got chunks."""

    def __init__(self, chunks: int, results: int) -> None:
        super().__init__(
            f"the engine got {chunks} chunks and returned {results} results",
            chunks=chunks,
            results=results,
        )


class EngineLost(EngineError):
    """The engine failed and cannot recover.

    `reason` is for the log only: it contains a driver's or library's text about this machine.
    """

    reason = ""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "the engine failed and the worker must be replaced; the reason is in its log"
        )
        self.reason = reason

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.reason}" if self.reason else super().__str__()


class SetupError(ParakeetError):
    """The operator must change the deployment; the worker takes no jobs."""


class InvalidSetting(SetupError):
    """An environment variable is unknown or has an invalid value."""

    def __init__(self, name: str, reason: str, nearest: str | None = None) -> None:
        hint = f"; did you mean {nearest}?" if nearest else ""
        super().__init__(f"{name}: {reason}{hint}", setting=name, nearest=nearest)


class ExtraMissing(SetupError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"the package '{module}' is not installed: pip install 'parakeet-worker[{extra}]'",
            module=module,
            extra=extra,
        )


class EndpointDenied(SetupError):
    """The endpoint does not exist, or the API key has no access to it."""

    def __init__(self, endpoint: str, status: int) -> None:
        what = "the endpoint does not exist" if status == 404 else "check the API key"
        super().__init__(f"{endpoint} answered {status}: {what}", endpoint=endpoint, status=status)


class DeviceMissing(SetupError):
    """The requested device does not exist."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device} is not available: {reason}", device=device)


class WeightsMissing(SetupError):
    """The model was not found."""

    def __init__(self, model: str, searched: list[str]) -> None:
        super().__init__(
            f"no checkpoint for '{model}'; searched: {', '.join(searched)}",
            model=model,
            searched=searched,
        )


class WeightsCorrupt(SetupError):
    """The model cannot be read."""

    def __init__(self, path: str, reason: str, key: str | None = None) -> None:
        where = f"{path}: {key}" if key else path
        super().__init__(f"{where}: {reason}", path=path, key=key)


class WeightsUnsupported(SetupError):
    """The model has an option that the engine does not implement."""

    def __init__(self, section: str, key: str, value: object, path: str | None = None) -> None:
        super().__init__(
            f"{path or 'the checkpoint'}: {section}.{key} = {value!r} is not implemented",
            path=path,
            key=f"{section}.{key}",
        )
        self._option = (section, key, value)

    def found_in(self, path: Path) -> "WeightsUnsupported":
        """The same error with the path of the file."""
        return WeightsUnsupported(*self._option, str(path))


class FfmpegMissing(SetupError):
    """No ffmpeg on the machine or in the environment."""

    def __init__(self) -> None:
        super().__init__(
            "ffmpeg not found: install it on the system, or install the package imageio-ffmpeg"
        )


class PythonUnsupported(SetupError):
    """The container's Python is too old or too new."""

    def __init__(self, version: str) -> None:
        super().__init__(f"Python {version} is not supported; run handler.py with 3.11 or 3.12")


class VolumeFull(SetupError):
    """The volume has no room for the software."""

    def __init__(
        self, home: str, free_gib: float | None = None, needed_gib: float | None = None
    ) -> None:
        had = "" if free_gib is None else f": {free_gib:g} GiB are free, {needed_gib:g} are needed"
        super().__init__(
            f"{home} has no room for the software{had}; enlarge the volume or delete unused files",
            home=home,
            free_gib=free_gib,
            needed_gib=needed_gib,
        )


class VolumeReadonly(SetupError):
    """The volume is not writable."""

    def __init__(self, home: str, reason: str) -> None:
        super().__init__(
            f"{home} is not writable ({reason}); mount the volume writable, or set "
            "PARAKEET_HOME to another folder",
            home=home,
        )


class VolumeUnusable(SetupError):
    """The volume fails in another way."""

    def __init__(self, home: str, reason: str) -> None:
        super().__init__(
            f"{home}: {reason}; check that the volume is mounted and PARAKEET_HOME is a folder",
            home=home,
        )


class UvMissing(SetupError):
    """The configured uv does not run."""

    def __init__(self, uv: str) -> None:
        super().__init__(
            f"{uv} does not run; correct PARAKEET_UV, or unset it to download uv", uv=uv
        )


class IndexUnreachable(SetupError):
    """Packages cannot be downloaded."""

    def __init__(self, index: str, reason: str) -> None:
        super().__init__(
            f"{index} is unreachable; check the network, or set PARAKEET_INDEX_URL or "
            f"PARAKEET_FIND_LINKS to a mirror: {reason}",
            index=index,
        )


class PackageUntrusted(SetupError):
    """A package does not match its hash in the lock file."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"package hash does not match the lock file; use another index: {reason}")


class InstallFailed(SetupError):
    """The software cannot be installed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"installation failed; installer output: {reason}")


class InstallTimeout(SetupError):
    """Installation, or waiting for another worker's installation, took too long."""

    def __init__(self, limit_seconds: float, doing: str) -> None:
        super().__init__(
            f"{doing} took longer than {limit_seconds:g} s; restart, or increase "
            "PARAKEET_INSTALL_TIMEOUT_SECONDS",
            limit=limit_seconds,
        )


def read(document: Mapping[str, object]) -> ParakeetError | None:
    """Recreate an error from its JSON document; None if the code is not one of this module."""
    message = str(document.get("error", ""))
    prefix = re.match(r"([a-z0-9_]+): ", message)
    code = document.get("code") or (prefix and prefix[1])
    kind = next((leaf for leaf in _leaves(ParakeetError) if leaf.code == code), None)
    if kind is None:
        return None
    # Its own constructor takes other arguments than the facts in the document.
    error = kind.__new__(kind)
    reserved = {"error", "code", "sentence", "refresh_worker"}
    facts = {name: fact for name, fact in document.items() if name not in reserved}
    ParakeetError.__init__(error, message.removeprefix(f"{code}: "), **facts)
    return error


def _leaves(family: type[ParakeetError]) -> Iterator[type[ParakeetError]]:
    for child in family.__subclasses__():
        yield from _leaves(child) if child.__subclasses__() else (child,)
