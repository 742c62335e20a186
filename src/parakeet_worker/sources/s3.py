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
from parakeet_worker.remote.retries import Transient, retried
from parakeet_worker.request import S3Source
from parakeet_worker.settings import Settings

_ATTEMPTS = 5


async def download(source: S3Source, target: Path, settings: Settings) -> None:
    """Fetch into `target`, with retries on transient failures, also in the middle of the body.

    Raises `S3NotConfigured`, `InvalidRequest` where no bucket is known, `SourceNotFound`,
    `SourceRefused`, `SourceUnreachable`, `SourceTimeout` or `AudioTooLarge`.
    """
    bucket = s3.named(source.bucket, settings, "audio_s3.bucket")
    limit_seconds = settings.download_timeout_seconds
    with target.open("wb") as file:
        try:
            await retried(
                partial(_attempt, bucket, source.key, file, settings),
                attempts=_ATTEMPTS,
                limit_seconds=limit_seconds,
            )
        except TimeoutError as failure:
            raise SourceTimeout(f"s3://{bucket}/{source.key}", limit_seconds) from failure


async def _attempt(bucket: str, key: str, file: BinaryIO, settings: Settings) -> None:
    shown = f"s3://{bucket}/{key}"
    try:
        async with objects.requested("get_object", bucket, key, settings) as answer:
            if isinstance(answer, objects.Refusal):
                raise _refused(answer, shown)
            await http.save(answer, file, settings.max_audio_bytes)
    except s3.ImpossibleAddress as failure:
        raise InvalidRequest("audio_s3", f"{shown} is no possible address") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        untrusted = http.untrusted(failure)
        if untrusted is not None:
            raise SourceRefused(shown, None, untrusted) from failure
        reason = http.reason(failure, settings.stall_timeout_seconds)
        raise Transient(SourceUnreachable(shown, reason)) from failure


def _refused(refusal: objects.Refusal, shown: str) -> ParakeetError | Transient:
    if refusal.missing:
        return SourceNotFound(shown)
    if refusal.transient:
        return Transient(SourceUnreachable(shown, str(refusal)), refusal.wait_seconds)
    return SourceRefused(shown, refusal.status, refusal.reason)
