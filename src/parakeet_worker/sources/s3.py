"""Audio in an S3 bucket, with the operator's credentials."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    ParakeetError,
    S3NotConfigured,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from parakeet_worker.request import S3Source
from parakeet_worker.settings import Settings, variable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 18
_MOST_AT_ONCE = 64

# Not the loop's threads: a bucket that stands still would keep them from everybody else's work.
_threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="s3")


async def download(source: S3Source, target: Path, settings: Settings) -> None:
    """Fetch into `target`.

    Raises `S3NotConfigured`, `InvalidRequest` where no bucket is known, `SourceNotFound`,
    `SourceRefused`, `SourceUnreachable`, `SourceTimeout` or `AudioTooLarge`.
    """
    _check_settings(settings)
    bucket = source.bucket or settings.s3_bucket
    if bucket is None:
        raise InvalidRequest("audio_s3.bucket", "no bucket is named and S3_BUCKET is not set")
    stopped = threading.Event()
    shown = f"s3://{bucket}/{source.key}"
    # Opened here, because a thread that outlives its job may not create files in the job's folder.
    with target.open("wb") as file:
        try:
            async with asyncio.timeout(settings.download_timeout_seconds):
                await asyncio.get_running_loop().run_in_executor(
                    _threads, _save, bucket, source.key, file, settings, stopped
                )
        except TimeoutError as failure:
            raise SourceTimeout(shown, settings.download_timeout_seconds) from failure
        finally:
            stopped.set()


def _check_settings(settings: Settings) -> None:
    needed = ("s3_access_key", "s3_secret_key")
    missing = [variable(field) for field in needed if getattr(settings, field) is None]
    if missing:
        raise S3NotConfigured(missing)


def _save(
    bucket: str, key: str, file: BinaryIO, settings: Settings, stopped: threading.Event
) -> None:
    import botocore.exceptions

    shown = f"s3://{bucket}/{key}"
    try:
        answer = _client(settings).get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            declared = answer.get("ContentLength", 0)
            if declared > settings.max_audio_bytes:
                raise AudioTooLarge(settings.max_audio_bytes, declared)
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                if stopped.is_set():
                    return
                file.write(chunk)
                if file.tell() > settings.max_audio_bytes:
                    raise AudioTooLarge(settings.max_audio_bytes)
    except botocore.exceptions.ClientError as failure:
        raise _translated(failure.response, shown) from failure
    except botocore.exceptions.ParamValidationError as failure:
        raise InvalidRequest("audio_s3", f"{shown} is no possible address") from failure
    except (botocore.exceptions.BotoCoreError, OSError) as failure:
        raise SourceUnreachable(shown, str(failure)) from failure


def _translated(response: object, shown: str) -> ParakeetError:
    details = response if isinstance(response, dict) else {}
    code = str(details.get("Error", {}).get("Code", ""))
    status = int(details.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in ("NoSuchKey", "NoSuchBucket") or status == 404:
        return SourceNotFound(shown)
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return SourceUnreachable(shown, code or str(status))
    return SourceRefused(shown, status)


@lru_cache(maxsize=4)
def _client(settings: Settings) -> "S3Client":
    """One client per worker: making one costs more than a small download."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key,
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region or ("us-east-1" if settings.s3_endpoint else None),
        config=Config(
            connect_timeout=settings.stall_timeout_seconds,
            read_timeout=settings.stall_timeout_seconds,
            max_pool_connections=_MOST_AT_ONCE,
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
            response_checksum_validation="when_required",
        ),
    )
