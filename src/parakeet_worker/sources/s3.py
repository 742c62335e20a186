"""Audio in an S3 bucket, with the operator's credentials."""

import asyncio
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from parakeet_worker import buckets
from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    ParakeetError,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from parakeet_worker.request import S3Source
from parakeet_worker.settings import Settings

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_CHUNK_BYTES = 1 << 18


async def download(source: S3Source, target: Path, settings: Settings) -> None:
    """Fetch into `target`.

    Raises `S3NotConfigured`, `InvalidRequest` where no bucket is known, `SourceNotFound`,
    `SourceRefused`, `SourceUnreachable`, `SourceTimeout` or `AudioTooLarge`.
    """
    bucket = buckets.named(source.bucket, settings, "audio_s3.bucket")
    stopped = threading.Event()
    shown = f"s3://{bucket}/{source.key}"
    # Opened here, because a thread that outlives its job may not create files in the job's folder.
    with target.open("wb") as file:
        try:
            async with asyncio.timeout(settings.download_timeout_seconds):
                await asyncio.get_running_loop().run_in_executor(
                    buckets.threads, _save, bucket, source.key, file, settings, stopped
                )
        except TimeoutError as failure:
            raise SourceTimeout(shown, settings.download_timeout_seconds) from failure
        finally:
            stopped.set()


def _save(
    bucket: str, key: str, file: BinaryIO, settings: Settings, stopped: threading.Event
) -> None:
    import botocore.exceptions

    shown = f"s3://{bucket}/{key}"
    try:
        answer = buckets.client(settings).get_object(Bucket=bucket, Key=key)
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
        raise _translated(failure, shown) from failure
    except botocore.exceptions.ParamValidationError as failure:
        raise InvalidRequest("audio_s3", f"{shown} is no possible address") from failure
    except (botocore.exceptions.BotoCoreError, OSError) as failure:
        raise SourceUnreachable(shown, str(failure)) from failure


def _translated(failure: "ClientError", shown: str) -> ParakeetError:
    code, status = buckets.verdict(failure)
    if code in ("NoSuchKey", "NoSuchBucket") or status == 404:
        return SourceNotFound(shown)
    if buckets.passing(code, status):
        return SourceUnreachable(shown, code or str(status))
    return SourceRefused(shown, status)
