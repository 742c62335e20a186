"""Answers in an S3 bucket, with the operator's credentials."""

from functools import partial
from io import BytesIO

import aiohttp

from parakeet_worker.errors import OutputRefused, OutputUnreachable
from parakeet_worker.outputs.body import Body
from parakeet_worker.remote import http, objects, s3
from parakeet_worker.remote.retries import Transient, retry
from parakeet_worker.request import S3Output
from parakeet_worker.settings import Settings

_WAIT_MAX_SECONDS = 20.0


async def put(body: Body, output: S3Output, settings: Settings) -> dict[str, object]:
    """Store the body below the operator's prefix, with retries on transient failures.

    Raises `S3NotConfigured`, `InvalidRequest` if no bucket is set, `OutputRefused` or
    `OutputUnreachable`.
    """
    bucket = s3.resolve_bucket(output.bucket, settings, "output_s3.bucket")
    key = prefixed(output.key, settings.s3_output_prefix)
    limit_seconds = settings.delivery_timeout_seconds
    try:
        await retry(
            partial(_attempt, body, bucket, key, settings),
            limit_seconds=limit_seconds,
            wait_max_seconds=_WAIT_MAX_SECONDS,
        )
    except TimeoutError as failure:
        shown = f"s3://{bucket}/{key}"
        raise OutputUnreachable(shown, f"not done within {limit_seconds:g} s") from failure
    return {"bucket": bucket, "key": key}


def prefixed(key: str, prefix: str) -> str:
    """The key below the prefix, so that no request overwrites other objects."""
    return key if prefix == "*" or key.startswith(prefix) else prefix + key


async def _attempt(body: Body, bucket: str, key: str, settings: Settings) -> None:
    shown = f"s3://{bucket}/{key}"
    try:
        async with objects.request(
            "put_object",
            bucket,
            key,
            settings,
            content_type=body.content_type or None,
            data=lambda: BytesIO(body.content),  # sent in chunks
        ) as answer:
            if isinstance(answer, objects.ErrorResponse):
                raise _error_of(answer, shown)
    except s3.InvalidObjectName as failure:
        raise OutputRefused(shown, "not a valid bucket and key") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        certificate = http.certificate_error(failure)
        if certificate is not None:
            raise OutputRefused(shown, certificate) from failure
        reason = http.failure_reason(failure, settings.stall_timeout_seconds)
        raise Transient(OutputUnreachable(shown, reason)) from failure


def _error_of(response: objects.ErrorResponse, shown: str) -> OutputRefused | Transient:
    if response.transient:
        return Transient(OutputUnreachable(shown, str(response)), response.wait_seconds)
    return OutputRefused(shown, str(response))
