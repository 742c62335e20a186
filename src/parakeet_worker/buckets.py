"""The operator's S3 service: one client, its own threads, and what its refusals mean."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from parakeet_worker.errors import InvalidRequest, S3NotConfigured
from parakeet_worker.settings import Settings, variable

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 3
_MOST_AT_ONCE = 64

# Not the loop's threads: a bucket that stands still would keep them from everybody else's work.
threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="s3")


def named(bucket: str | None, settings: Settings, field: str) -> str:
    """The bucket that is meant; raises `S3NotConfigured`, or `InvalidRequest` naming `field`."""
    needed = ("s3_access_key", "s3_secret_key")
    missing = [variable(name) for name in needed if getattr(settings, name) is None]
    if missing:
        raise S3NotConfigured(missing)
    found = bucket or settings.s3_bucket
    if found is None:
        raise InvalidRequest(field, "no bucket is named and S3_BUCKET is not set")
    return found


def verdict(failure: "ClientError") -> tuple[str, int]:
    """The service's own code, such as `NoSuchKey`, and the HTTP status."""
    response = failure.response
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def passing(code: str, status: int) -> bool:
    """Whether the same may work later."""
    return status >= 500 or code in ("SlowDown", "RequestTimeout")


@lru_cache(maxsize=4)
def client(settings: Settings) -> "S3Client":
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
            signature_version="s3v4",  # also where an address is signed for somebody else
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
