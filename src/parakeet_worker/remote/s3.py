"""The operator's S3 service: which bucket, who may sign, and what its codes mean."""

import ssl
from functools import lru_cache
from typing import TYPE_CHECKING

from parakeet_worker.errors import InvalidRequest, InvalidSetting, S3NotConfigured, one_line
from parakeet_worker.extras import required
from parakeet_worker.remote import retries
from parakeet_worker.settings import Settings, variable

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 3
_SIGNED_SECONDS = 3600
# Besides those of `retries.is_transient`; the services that throttle have no status in common.
_TRANSIENT_CODES = frozenset(
    {"BandwidthLimitExceeded", "InternalError", "OperationAborted", "RequestLimitExceeded"}
    | {"RequestThrottled", "RequestThrottledException", "RequestTimeout", "RequestTimeoutException"}
    | {"ServiceUnavailable", "SlowDown", "Throttled", "ThrottledException", "Throttling"}
    | {"ThrottlingException", "TooManyRequests", "TooManyRequestsException"}
)


class ImpossibleAddress(Exception):
    """No bucket or key can have that name."""


def named(bucket: str | None, settings: Settings, field: str) -> str:
    """The bucket that is meant; raises `S3NotConfigured`, or `InvalidRequest` naming `field`."""
    needed = () if settings.s3_anonymous else ("s3_access_key", "s3_secret_key")
    missing = [variable(name) for name in needed if getattr(settings, name) is None]
    if missing:
        raise S3NotConfigured(missing)
    found = bucket or settings.s3_bucket
    if found is None:
        raise InvalidRequest(field, "no bucket is named and S3_BUCKET is not set")
    return found


def check(settings: Settings) -> None:
    """Build what S3 requests need, once, at the start; raises `InvalidSetting`."""
    if not (settings.s3_anonymous or settings.s3_access_key or settings.s3_secret_key):
        return
    client(settings)
    authorities()


def verdict(failure: "ClientError") -> tuple[str, int]:
    """The service's own code, such as `NoSuchKey`, and the HTTP status."""
    response = failure.response
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def transient(code: str, status: int) -> bool:
    """Whether the same may work later."""
    return retries.is_transient(status) or code in _TRANSIENT_CODES


def signed(
    operation: str, params: dict[str, str], settings: Settings, region: str | None = None
) -> str:
    """An address that allows one operation for an hour; raises `ImpossibleAddress`."""
    from botocore.exceptions import BotoCoreError

    service = client(settings, region)
    try:
        return str(service.generate_presigned_url(operation, params, _SIGNED_SECONDS))
    except (BotoCoreError, UnicodeError, ValueError) as failure:
        raise ImpossibleAddress(type(failure).__name__) from failure


@lru_cache(maxsize=1)
def authorities() -> ssl.SSLContext:
    """Who may sign the service's certificate: `AWS_CA_BUNDLE`, else what the system trusts."""
    import botocore.session

    named_file = botocore.session.get_session().get_config_variable("ca_bundle")
    try:
        return ssl.create_default_context(cafile=named_file)
    except OSError as failure:
        raise InvalidSetting("AWS_CA_BUNDLE", f"cannot be read: {failure.strerror}") from failure


@lru_cache(maxsize=4)
def client(settings: Settings, region: str | None = None) -> "S3Client":
    """One client per worker, since making one is slow.

    Raises `ExtraMissing` or `InvalidSetting`.
    """
    with required():
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

    region = region or settings.s3_region or ("us-east-1" if settings.s3_endpoint else None)
    style = settings.s3_addressing_style
    unsigned = settings.s3_anonymous and settings.s3_access_key is None
    config = Config(
        connect_timeout=settings.stall_timeout_seconds,
        read_timeout=settings.stall_timeout_seconds,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        # Version 4 also where an address is signed for somebody else.
        signature_version=UNSIGNED if unsigned else "s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3=None if style == "auto" else {"addressing_style": style},
    )
    try:
        return boto3.session.Session().client(
            "s3",
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key,
            aws_session_token=settings.s3_session_token,
            endpoint_url=settings.s3_endpoint,
            region_name=region,
            config=config,
        )
    except (BotoCoreError, ValueError) as failure:
        raise InvalidSetting(_blamed(failure), one_line(str(failure))) from failure


def _blamed(failure: Exception) -> str:
    """The variable that boto3 complains about."""
    kinds = {"ProfileNotFound": "AWS_PROFILE", "InvalidRegionError": "S3_REGION"}
    return kinds.get(type(failure).__name__, "S3_ENDPOINT")
