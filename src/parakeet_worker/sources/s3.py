"""Audio in an S3 bucket, with the operator's credentials."""

from functools import partial
from pathlib import Path
from typing import BinaryIO

import aiohttp

from parakeet_worker.errors import (
    InvalidRequest,
    ParakeetError,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from parakeet_worker.remote import http, objects, s3
from parakeet_worker.remote.retries import Transient, retry
from parakeet_worker.request import S3Source
from parakeet_worker.settings import Settings

_ATTEMPTS = 5


async def download(source: S3Source, target: Path, settings: Settings) -> None:
    """Download to `target`, with retries on transient failures, also within the body.

    Raises `S3NotConfigured`, `InvalidRequest` if no bucket is set, `SourceNotFound`,
    `SourceRefused`, `SourceUnreachable`, `SourceTimeout` or `AudioTooLarge`.
    """
    bucket = s3.resolve_bucket(source.bucket, settings, "audio_s3.bucket")
    limit_seconds = settings.download_timeout_seconds
    with target.open("wb") as file:
        try:
            await retry(
                partial(_attempt, bucket, source.key, file, settings),
                attempts=_ATTEMPTS,
                limit_seconds=limit_seconds,
            )
        except TimeoutError as failure:
            raise SourceTimeout(f"s3://{bucket}/{source.key}", limit_seconds) from failure


async def _attempt(bucket: str, key: str, file: BinaryIO, settings: Settings) -> None:
    shown = f"s3://{bucket}/{key}"
    try:
        async with objects.request("get_object", bucket, key, settings) as answer:
            if isinstance(answer, objects.ErrorResponse):
                raise _error_of(answer, shown)
            await http.save(answer, file, settings.max_audio_bytes)
    except s3.InvalidObjectName as failure:
        raise InvalidRequest("audio_s3", f"{shown} is not a valid bucket and key") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        certificate = http.certificate_error(failure)
        if certificate is not None:
            raise SourceRefused(shown, None, certificate) from failure
        reason = http.failure_reason(failure, settings.stall_timeout_seconds)
        raise Transient(SourceUnreachable(shown, reason)) from failure


def _error_of(response: objects.ErrorResponse, shown: str) -> ParakeetError | Transient:
    if response.missing:
        return SourceNotFound(shown)
    if response.transient:
        return Transient(SourceUnreachable(shown, str(response)), response.wait_seconds)
    return SourceRefused(shown, response.status, response.reason)
