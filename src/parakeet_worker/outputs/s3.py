"""An answer to an S3 bucket, with the operator's credentials."""

from functools import partial
from io import BytesIO

import aiohttp

from parakeet_worker.errors import OutputRefused, OutputUnreachable
from parakeet_worker.outputs.written import Written
from parakeet_worker.remote import http, objects, s3
from parakeet_worker.remote.retries import Transient, retried
from parakeet_worker.request import S3Output
from parakeet_worker.settings import Settings

_WAIT_MAX_SECONDS = 20.0


async def put(written: Written, output: S3Output, settings: Settings) -> dict[str, object]:
    """Write it below the operator's prefix, with retries on transient failures.

    Raises `S3NotConfigured`, `InvalidRequest` where no bucket is known, `OutputRefused` or
    `OutputUnreachable`.
    """
    bucket = s3.named(output.bucket, settings, "output_s3.bucket")
    key = prefixed(output.key, settings.s3_output_prefix)
    limit_seconds = settings.delivery_timeout_seconds
    try:
        await retried(
            partial(_attempt, written, bucket, key, settings),
            limit_seconds=limit_seconds,
            wait_max_seconds=_WAIT_MAX_SECONDS,
        )
    except TimeoutError as failure:
        shown = f"s3://{bucket}/{key}"
        raise OutputUnreachable(shown, f"not done within {limit_seconds:g} s") from failure
    return {"bucket": bucket, "key": key}


def prefixed(key: str, prefix: str) -> str:
    """The key below the prefix, so that no request overwrites what is kept elsewhere."""
    return key if prefix == "*" or key.startswith(prefix) else prefix + key


async def _attempt(written: Written, bucket: str, key: str, settings: Settings) -> None:
    shown = f"s3://{bucket}/{key}"
    try:
        async with objects.requested(
            "put_object",
            bucket,
            key,
            settings,
            content_type=written.content_type or None,
            data=lambda: BytesIO(written.body),  # which is written in parts
        ) as answer:
            if isinstance(answer, objects.Refusal):
                raise _refused(answer, shown)
    except s3.ImpossibleAddress as failure:
        raise OutputRefused(shown, "it is no possible address") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        untrusted = http.untrusted(failure)
        if untrusted is not None:
            raise OutputRefused(shown, untrusted) from failure
        reason = http.reason(failure, settings.stall_timeout_seconds)
        raise Transient(OutputUnreachable(shown, reason)) from failure


def _refused(refusal: objects.Refusal, shown: str) -> OutputRefused | Transient:
    if refusal.transient:
        return Transient(OutputUnreachable(shown, str(refusal)), refusal.wait_seconds)
    return OutputRefused(shown, str(refusal))
