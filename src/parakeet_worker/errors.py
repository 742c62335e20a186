"""Every failure, drawn as a tree by whose move it is.

    ParakeetError
    ├── RequestError          the caller must change the request
    │   ├── InvalidRequest        a field is missing, unknown, of the wrong type or out of range
    │   ├── SourceForbidden       the address may not be fetched from here
    │   ├── SourceRefused         the server refused (403, other 4xx), or is not to be trusted
    │   ├── SourceNotFound        there is nothing at that URL or key
    │   ├── S3NotConfigured       the operator gave this worker no S3 settings
    │   ├── EndpointRefused       the endpoint does not take the request
    │   ├── PayloadTooLarge       too large to be sent to the endpoint, however it is sent
    │   ├── AudioTooLarge         more bytes than the limit
    │   ├── AudioTooLong          more seconds than the limit
    │   ├── AudioTooShort         too short to hold a word
    │   ├── AudioEmpty            no bytes, or no samples
    │   ├── AudioMissing          a media file without an audio stream
    │   ├── AudioTruncated        the file ends before it says it does, and damage is refused
    │   ├── AudioDamaged          a part is missing or cannot be decoded, and damage is refused
    │   ├── AudioUndecodable      ffmpeg cannot read it
    │   ├── ClipOutside           the clip starts after the recording ends
    │   ├── InvalidApiKey         the server wants a key, and this is none
    │   ├── HostForbidden         the server does not answer to that name
    │   ├── OriginForbidden       web pages of that site may not use the server
    │   ├── ModelNotFound         a model was named that is not the one that is served
    │   ├── UnknownRoute          the server has nothing at that path
    │   ├── MethodNotAllowed      it has, but not for that method
    │   ├── UploadTimeout         the request's body took too long, or stood still
    │   ├── OutputRefused         the answer may not be written to the place that was named
    │   └── ResultTooLarge        the answer is over the platform's limit and has nowhere to go
    ├── TransientError        the same request may work later
    │   ├── SourceUnreachable     no answer, a dropped connection or a 5xx
    │   ├── SourceTimeout         the download took too long
    │   ├── EndpointUnreachable   the endpoint did not answer, however often it was asked
    │   ├── ResultNotWritten      a result cannot be written to the caller's own disk
    │   ├── JobCancelled          somebody cancelled the job
    │   ├── JobExpired            the platform gave the job up before it was done
    │   ├── DecodeTimeout         ffmpeg took too long
    │   ├── DecoderKilled         ffmpeg was killed, usually because memory ran out
    │   ├── JobTimeout            the whole job took too long
    │   ├── OutputUnreachable     the place for the answer cannot be written to at the moment
    │   ├── ScratchFull           the worker's disk has no room for the recording
    │   ├── ScratchUnusable       the worker's disk cannot be written to
    │   ├── Overloaded            the queue is full
    │   ├── Busy                  the server has as many requests as it takes at a time
    │   └── Warming               the model is still being loaded
    ├── EngineError           this worker is at fault
    │   ├── JobFailed             the job failed and does not say why in words of ours
    │   ├── OutOfMemory           a piece does not fit even alone
    │   ├── NotFinite             computing a chunk gave values that are not finite
    │   ├── ContractBroken        the engine answered another number of pieces than it was given
    │   └── EngineLost            the engine failed in a way that it cannot come back from
    └── SetupError            the operator must change the deployment; no job is taken
        ├── InvalidSetting        an environment variable is unknown or has an impossible value
        ├── ExtraMissing          a package that an optional part needs is not installed
        ├── EndpointDenied        there is no such endpoint, or the key does not open it
        ├── DeviceMissing         no device where one was asked for
        ├── WeightsMissing        no model where one was named
        ├── WeightsCorrupt        a model that cannot be read
        ├── WeightsUnsupported    a model with an option that the engine does not implement
        ├── FfmpegMissing         no ffmpeg on the machine or in the environment
        ├── PythonUnsupported     the container's Python is too old or too new
        ├── VolumeFull            no room for the software on the volume
        ├── VolumeReadonly        the volume may not be written to
        ├── VolumeUnusable        the volume answers with another failure
        ├── UvMissing             the uv that was named does not run
        ├── IndexUnreachable      packages cannot be fetched
        ├── PackageUntrusted      a package is not the one that the lock file names
        ├── InstallFailed         the software cannot be installed
        └── InstallTimeout        installing, or another worker that installs, takes too long

An error is made from facts and formats itself; the facts travel beside the sentence.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, TypeVar


class ParakeetError(Exception):
    """A failure with a stable `code`, one sentence, and the facts it was made from."""

    code: ClassVar[str]
    http_status: ClassVar[int] = 500

    def __init__(self, sentence: str, **facts: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"

    def document(self) -> dict[str, object]:
        """The answer to the caller, the same shape at every door."""
        return {"error": f"{self.code}: {self.sentence}", "code": self.code, **self.facts}


MAX_ECHO_CHARACTERS = 100
_MAX_COMPARED_CHARACTERS = 64


def echo(given: str) -> str:
    """What a caller or a third party sent, as it is repeated: cut, and with no lone surrogates."""
    if len(given) > MAX_ECHO_CHARACTERS:
        given = given[: MAX_ECHO_CHARACTERS - 1] + "…"
    return given.encode(errors="backslashreplace").decode()[:MAX_ECHO_CHARACTERS]


def nearest(name: str, known: list[str]) -> str | None:
    """The known name that `name` was probably meant to be; none for a long one."""
    if len(name) > _MAX_COMPARED_CHARACTERS:
        return None
    matches = get_close_matches(name, known, n=1)
    return matches[0] if matches else None


Failure = TypeVar("Failure", bound=BaseException)


def without_trace(failure: Failure) -> Failure:
    """The same, to be kept: without the frames, and so the values, that it passed through."""
    failure.__traceback__ = failure.__cause__ = failure.__context__ = None
    return failure


def one_line(text: str, limit: int = 100) -> str:
    """Foreign text as it may be shown: printable, on one line, at most `limit` characters."""
    words = " ".join(text[: 10 * limit].split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in words)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


class RequestError(ParakeetError):
    """The caller must change the request."""

    http_status = 400


class InvalidRequest(RequestError):
    code = "invalid_request"

    def __init__(self, field: str, reason: str, nearest: str | None = None) -> None:
        field = echo(field)
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        super().__init__(f"{field}: {reason}{hint}", field=field, nearest=nearest)


class SourceForbidden(RequestError):
    code = "source_forbidden"
    http_status = 403

    def __init__(self, host: str, reason: str) -> None:
        host = echo(host)
        super().__init__(f"{host} may not be fetched: {echo(reason)}", host=host)


class SourceRefused(RequestError):
    code = "source_refused"

    def __init__(self, source: str, status: int | None, reason: str | None = None) -> None:
        source = echo(source)
        said = f"{source} answered {status}" if status is not None else source
        super().__init__(
            f"{said}: {reason}" if reason else said, source=source, status=status, reason=reason
        )


class SourceNotFound(RequestError):
    code = "source_not_found"
    http_status = 404

    def __init__(self, source: str) -> None:
        source = echo(source)
        super().__init__(f"there is nothing at {source}", source=source)


class S3NotConfigured(RequestError):
    code = "s3_not_configured"

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            f"this worker has no S3 settings; missing: {', '.join(missing)}", missing=missing
        )


class EndpointRefused(RequestError):
    code = "endpoint_refused"

    def __init__(self, endpoint: str, status: int, reason: str) -> None:
        super().__init__(
            f"{echo(endpoint)} answered {status}: {echo(reason) or 'no reason given'}",
            endpoint=echo(endpoint),
            status=status,
        )


class PayloadTooLarge(RequestError):
    code = "payload_too_large"
    http_status = 413

    def __init__(self, size: int, limit: int, tried: list[str]) -> None:
        super().__init__(
            f"{size} bytes, of which the endpoint takes {limit}, also as {' and '.join(tried)}; "
            "set S3_BUCKET, S3_ACCESS_KEY and S3_SECRET_KEY to have it sent through a bucket",
            limit=limit,
            bytes=size,
        )


class AudioTooLarge(RequestError):
    code = "audio_too_large"
    http_status = 413

    def __init__(self, limit: int, size: int | None = None) -> None:
        had = f"{size} bytes" if size is not None else f"more than {limit} bytes"
        super().__init__(f"{had}, limit {limit} bytes", limit=limit, bytes=size)


class AudioTooLong(RequestError):
    code = "audio_too_long"
    http_status = 413

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(
            f"more than {limit_seconds:g} s of audio, limit {limit_seconds:g} s",
            limit=limit_seconds,
        )


class AudioTooShort(RequestError):
    code = "audio_too_short"

    def __init__(self, seconds: float, minimum_seconds: float) -> None:
        super().__init__(
            f"{seconds:.3g} s of audio, at least {minimum_seconds:g} s are needed",
            seconds=round(seconds, 3),
            minimum=minimum_seconds,
        )


class AudioEmpty(RequestError):
    code = "audio_empty"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class AudioMissing(RequestError):
    code = "audio_missing"

    def __init__(self) -> None:
        super().__init__("the file has no audio stream")


class AudioTruncated(RequestError):
    code = "audio_truncated"

    def __init__(self, seconds: float, declared_seconds: float | None, reason: str) -> None:
        declared = f" of {declared_seconds:.2f} s declared" if declared_seconds else ""
        super().__init__(
            f"the file ends after {seconds:.2f} s{declared}: {echo(reason)}",
            seconds=round(seconds, 3),
            declared=declared_seconds,
        )


class AudioDamaged(RequestError):
    code = "audio_damaged"

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
    code = "audio_undecodable"
    http_status = 415

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class ClipOutside(RequestError):
    code = "clip_outside"

    def __init__(self, start_seconds: float, recording_seconds: float) -> None:
        super().__init__(
            f"the clip starts at {start_seconds:g} s, the recording ends at "
            f"{recording_seconds:.2f} s",
            field="clip.start",
            seconds=round(recording_seconds, 3),
        )


class InvalidApiKey(RequestError):
    code = "invalid_api_key"
    http_status = 401

    def __init__(self) -> None:
        super().__init__("send one of the operator's keys as 'Authorization: Bearer KEY'")


class HostForbidden(RequestError):
    code = "host_forbidden"
    http_status = 403

    def __init__(self, host: str) -> None:
        host = echo(host)
        super().__init__(
            f"this server does not answer to '{host}'; PARAKEET_ALLOWED_HOSTS lists what it does",
            host=host,
        )


class OriginForbidden(RequestError):
    code = "origin_forbidden"
    http_status = 403

    def __init__(self, origin: str) -> None:
        origin = echo(origin)
        super().__init__(
            f"web pages of '{origin}' may not use this server; PARAKEET_CORS_ORIGINS lists those "
            "that may",
            origin=origin,
        )


class ModelNotFound(RequestError):
    code = "model_not_found"
    http_status = 404

    def __init__(self, model: str, served: str) -> None:
        super().__init__(
            f"'{echo(model)}' is not served here; '{served}' is", field="model", served=served
        )


class UnknownRoute(RequestError):
    code = "unknown_route"
    http_status = 404

    def __init__(self, path: str, reason: str | None = None) -> None:
        path = echo(path)
        why = echo(reason) if reason else "/docs lists the routes"
        super().__init__(f"no route {path}: {why}", path=path)


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"
    http_status = 405

    def __init__(self, method: str, path: str) -> None:
        path = echo(path)
        super().__init__(
            f"{path} does not take {echo(method)}; /docs lists what it takes", path=path
        )


class UploadTimeout(RequestError):
    code = "upload_timeout"
    http_status = 408

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"the body did not come within {limit_seconds:g} s", limit=limit_seconds)


class OutputRefused(RequestError):
    code = "output_refused"

    def __init__(self, place: str, reason: str) -> None:
        place = echo(place)
        super().__init__(f"the answer cannot be written to {place}: {echo(reason)}", place=place)


class ResultTooLarge(RequestError):
    code = "result_too_large"
    http_status = 413

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the answer has {size} bytes, limit {limit} bytes; name an output_url or output_s3 "
            "to have it written there, or ask for a clip or another format",
            limit=limit,
            bytes=size,
        )


class TransientError(ParakeetError):
    """The same request may work later."""

    http_status = 503


class SourceUnreachable(TransientError):
    code = "source_unreachable"

    def __init__(self, source: str, reason: str) -> None:
        source = echo(source)
        super().__init__(f"{source}: {echo(reason)}", source=source)


class SourceTimeout(TransientError):
    code = "source_timeout"

    def __init__(self, source: str, limit_seconds: float) -> None:
        super().__init__(
            f"{echo(source)} did not deliver within {limit_seconds:g} s",
            source=echo(source),
            limit=limit_seconds,
        )


class EndpointUnreachable(TransientError):
    code = "endpoint_unreachable"

    def __init__(self, endpoint: str, reason: str) -> None:
        endpoint = echo(endpoint)
        super().__init__(f"{endpoint}: {echo(reason)}", endpoint=endpoint)


class ResultNotWritten(TransientError):
    code = "result_not_written"

    def __init__(self, path: Path, reason: str, *, disk_full: bool = False) -> None:
        super().__init__(f"{path} cannot be written: {echo(reason)}", path=str(path))
        self.disk_full = disk_full


class JobCancelled(TransientError):
    code = "job_cancelled"

    def __init__(self, job: str) -> None:
        job = echo(job)
        super().__init__(f"job {job} was cancelled", job=job)


class JobExpired(TransientError):
    code = "job_expired"

    def __init__(self, job: str, reason: str) -> None:
        job = echo(job)
        super().__init__(f"job {job} was given up: {echo(reason)}", job=job)


class DecodeTimeout(TransientError):
    code = "decode_timeout"

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"decoding took longer than {limit_seconds:g} s", limit=limit_seconds)


class DecoderKilled(TransientError):
    code = "decoder_killed"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"ffmpeg was killed after {seconds:.2f} s of audio, as happens where memory runs out",
            seconds=round(seconds, 3),
        )


class JobTimeout(TransientError):
    code = "job_timeout"

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"the job took longer than {limit_seconds:g} s", limit=limit_seconds)


class OutputUnreachable(TransientError):
    code = "output_unreachable"

    def __init__(self, place: str, reason: str) -> None:
        place = echo(place)
        super().__init__(f"the answer cannot be written to {place}: {echo(reason)}", place=place)


class ScratchFull(TransientError):
    code = "scratch_full"

    def __init__(self, free_bytes: int | None = None) -> None:
        free = "" if free_bytes is None else f"; {free_bytes} bytes are free"
        super().__init__(f"no room on this worker's disk{free}", bytes=free_bytes)


class ScratchUnusable(TransientError):
    code = "scratch_unusable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"this worker's disk cannot be written to: {echo(reason)}")


class Overloaded(TransientError):
    code = "overloaded"

    def __init__(self, waiting_seconds: float, limit_seconds: float) -> None:
        super().__init__(
            f"{waiting_seconds:.0f} s of audio are waiting, limit {limit_seconds:.0f} s",
            limit=limit_seconds,
        )


class Busy(TransientError):
    code = "busy"

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are being answered, limit {limit}", limit=limit)


class Warming(TransientError):
    code = "warming"

    def __init__(self) -> None:
        super().__init__("the model is still being loaded; GET /ready tells when it is")


class EngineError(ParakeetError):
    """This worker is at fault."""


class JobFailed(EngineError):
    code = "job_failed"

    def __init__(self, job: str, reason: str) -> None:
        job = echo(job)
        super().__init__(f"job {job}: {echo(reason)}", job=job)


class OutOfMemory(EngineError):
    code = "out_of_memory"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"a piece of {seconds:.1f} s does not fit in memory", seconds=round(seconds, 1)
        )


class NotFinite(EngineError):
    code = "not_finite"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"computing a chunk of {seconds:.1f} s gave values that are not finite",
            seconds=round(seconds, 1),
        )


class ContractBroken(EngineError):
    code = "contract_broken"

    def __init__(self, given: int, answered: int) -> None:
        super().__init__(
            f"the engine was given {given} pieces and answered {answered}",
            given=given,
            answered=answered,
        )


class EngineLost(EngineError):
    """`reason` is for the log: it holds what a driver or a library says of this machine."""

    code = "engine_lost"
    reason = ""

    def __init__(self, reason: str) -> None:
        super().__init__("the engine failed and must be replaced; the worker's log says why")
        self.reason = reason

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.reason}" if self.reason else super().__str__()


class SetupError(ParakeetError):
    """The operator must change the deployment; no job is taken."""


class InvalidSetting(SetupError):
    code = "invalid_setting"

    def __init__(self, name: str, reason: str, nearest: str | None = None) -> None:
        hint = f"; did you mean {nearest}?" if nearest else ""
        super().__init__(f"{name}: {reason}{hint}", setting=name, nearest=nearest)


class ExtraMissing(SetupError, ImportError):
    code = "extra_missing"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"the package '{module}' is not installed: pip install 'parakeet-worker[{extra}]'",
            module=module,
            extra=extra,
        )


class EndpointDenied(SetupError):
    code = "endpoint_denied"

    def __init__(self, endpoint: str, status: int) -> None:
        what = "there is no such endpoint" if status == 404 else "check the API key"
        super().__init__(f"{endpoint} answered {status}: {what}", endpoint=endpoint, status=status)


class DeviceMissing(SetupError):
    code = "device_missing"

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"there is no {device} here: {reason}", device=device)


class WeightsMissing(SetupError):
    code = "weights_missing"

    def __init__(self, model: str, searched: list[str]) -> None:
        super().__init__(
            f"no checkpoint for '{model}'; looked at: {', '.join(searched)}",
            model=model,
            searched=searched,
        )


class WeightsCorrupt(SetupError):
    code = "weights_corrupt"

    def __init__(self, path: str, reason: str, key: str | None = None) -> None:
        where = f"{path}: {key}" if key else path
        super().__init__(f"{where}: {reason}", path=path, key=key)


class WeightsUnsupported(SetupError):
    code = "weights_unsupported"

    def __init__(self, section: str, key: str, value: object, path: str | None = None) -> None:
        super().__init__(
            f"{path or 'the checkpoint'}: {section}.{key} = {value!r} is not implemented",
            path=path,
            key=f"{section}.{key}",
        )
        self._option = (section, key, value)

    def found_in(self, path: Path) -> "WeightsUnsupported":
        """The same, said of a file."""
        return WeightsUnsupported(*self._option, str(path))


class FfmpegMissing(SetupError):
    code = "ffmpeg_missing"

    def __init__(self) -> None:
        super().__init__("no ffmpeg: install it on the system, or the package imageio-ffmpeg")


class PythonUnsupported(SetupError):
    code = "python_unsupported"

    def __init__(self, version: str) -> None:
        super().__init__(f"this is Python {version}; run handler.py with 3.11 or 3.12")


class VolumeFull(SetupError):
    code = "volume_full"

    def __init__(
        self, home: str, free_gib: float | None = None, needed_gib: float | None = None
    ) -> None:
        had = "" if free_gib is None else f": {free_gib:g} GiB are free, {needed_gib:g} are needed"
        super().__init__(
            f"{home} has no room for the software{had}; make the volume larger, or remove from it "
            "what is not needed",
            home=home,
            free_gib=free_gib,
            needed_gib=needed_gib,
        )


class VolumeReadonly(SetupError):
    code = "volume_readonly"

    def __init__(self, home: str, reason: str) -> None:
        super().__init__(
            f"{home} may not be written to ({reason}); mount the volume writable, or name another "
            "folder in PARAKEET_HOME",
            home=home,
        )


class VolumeUnusable(SetupError):
    code = "volume_unusable"

    def __init__(self, home: str, reason: str) -> None:
        super().__init__(
            f"{home}: {reason}; check that the volume is mounted and PARAKEET_HOME names a folder",
            home=home,
        )


class UvMissing(SetupError):
    code = "uv_missing"

    def __init__(self, uv: str) -> None:
        super().__init__(
            f"{uv} does not run; correct PARAKEET_UV, or leave it out and uv is fetched", uv=uv
        )


class IndexUnreachable(SetupError):
    code = "index_unreachable"

    def __init__(self, index: str, reason: str) -> None:
        super().__init__(
            f"{index} cannot be reached; check the network, or name a mirror in "
            f"PARAKEET_INDEX_URL or PARAKEET_FIND_LINKS: {reason}",
            index=index,
        )


class PackageUntrusted(SetupError):
    code = "package_untrusted"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the index handed out something else than the lock file names; use another: {reason}"
        )


class InstallFailed(SetupError):
    code = "install_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the software could not be installed; the installer said: {reason}")


class InstallTimeout(SetupError):
    code = "install_timeout"

    def __init__(self, limit_seconds: float, doing: str) -> None:
        super().__init__(
            f"{doing} took longer than {limit_seconds:g} s; start again, or raise "
            "PARAKEET_INSTALL_TIMEOUT_SECONDS",
            limit=limit_seconds,
        )


def read(document: Mapping[str, object]) -> ParakeetError | None:
    """The error that an answer tells of, made from its document; None if it is none of ours."""
    said = str(document.get("error", ""))
    found = re.match(r"([a-z0-9_]+): ", said)
    code = document.get("code") or (found and found[1])
    kind = next((leaf for leaf in _leaves(ParakeetError) if leaf.code == code), None)
    if kind is None:
        return None
    # Not by its own way of being made, which asks for other facts than those that travelled.
    error = kind.__new__(kind)
    beside = {"error", "code", "sentence", "refresh_worker"}
    facts = {name: fact for name, fact in document.items() if name not in beside}
    ParakeetError.__init__(error, said.removeprefix(f"{code}: "), **facts)
    return error


def _leaves(family: type[ParakeetError]) -> Iterator[type[ParakeetError]]:
    for child in family.__subclasses__():
        yield from _leaves(child) if child.__subclasses__() else (child,)
