"""The operator's S3 service: bucket, credentials, presigned URLs and error codes."""

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
# In addition to `retries.is_transient`: services use different statuses for throttling.
_TRANSIENT_CODES = frozenset(
    {"BandwidthLimitExceeded", "InternalError", "OperationAborted", "RequestLimitExceeded"}
    | {"RequestThrottled", "RequestThrottledException", "RequestTimeout", "RequestTimeoutException"}
    | {"ServiceUnavailable", "SlowDown", "Throttled", "ThrottledException", "Throttling"}
    | {"ThrottlingException", "TooManyRequests", "TooManyRequestsException"}
)


class InvalidObjectName(Exception):
    """The bucket or key name is invalid."""


def resolve_bucket(bucket: str | None, settings: Settings, field: str) -> str:
    """The bucket of a request, or the default; raises `S3NotConfigured` or `InvalidRequest`."""
    required_settings = () if settings.s3_anonymous else ("s3_access_key", "s3_secret_key")
    missing = [variable(name) for name in required_settings if getattr(settings, name) is None]
    if missing:
        raise S3NotConfigured(missing)
    resolved = bucket or settings.s3_bucket
    if resolved is None:
        raise InvalidRequest(field, "is required because S3_BUCKET is not set")
    return resolved


def check(settings: Settings) -> None:
    """Create the client and TLS context once, at start; raises `InvalidSetting`."""
    if not (settings.s3_anonymous or settings.s3_access_key or settings.s3_secret_key):
        return
    client(settings)
    tls_context()
    if settings.s3_bucket is not None:
        try:
            presign("get_object", {"Bucket": settings.s3_bucket, "Key": "key"}, settings)
        except InvalidObjectName as failure:
            raise InvalidSetting(variable("s3_bucket"), "is not a valid bucket name") from failure


def error_code(failure: "ClientError") -> tuple[str, int]:
    """The service's own code, such as `NoSuchKey`, and the HTTP status."""
    response = failure.response
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(code: str, status: int) -> bool:
    """Whether the same request may succeed later."""
    return retries.is_transient(status) or code in _TRANSIENT_CODES


def presign(
    operation: str, params: dict[str, str], settings: Settings, region: str | None = None
) -> str:
    """A URL that permits one operation for an hour; raises `InvalidObjectName`."""
    from botocore.exceptions import BotoCoreError

    service = client(settings, region)
    try:
        return str(service.generate_presigned_url(operation, params, _SIGNED_SECONDS))
    except (BotoCoreError, UnicodeError, ValueError) as failure:
        raise InvalidObjectName(type(failure).__name__) from failure


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """Trusted certificates: `AWS_CA_BUNDLE`, otherwise the system's."""
    import botocore.session

    bundle = botocore.session.get_session().get_config_variable("ca_bundle")
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as failure:
        raise InvalidSetting("AWS_CA_BUNDLE", f"cannot be read: {failure.strerror}") from failure


@lru_cache(maxsize=4)
def client(settings: Settings, region: str | None = None) -> "S3Client":
    """The client, cached because creating one is slow.

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
        # Version 4 for presigned URLs too.
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
        raise InvalidSetting(_variable_of(failure, settings), one_line(str(failure))) from failure


def _variable_of(failure: Exception, settings: Settings) -> str:
    """The environment variable that caused boto3's error."""
    missing_key = "s3_access_key" if settings.s3_access_key is None else "s3_secret_key"
    kinds = {
        "ConfigParseError": "AWS_CONFIG_FILE",
        "InvalidDefaultsMode": "AWS_DEFAULTS_MODE",
        "InvalidRegionError": variable("s3_region") if settings.s3_region else "AWS_DEFAULT_REGION",
        "PartialCredentialsError": variable(missing_key),
        "ProfileNotFound": "AWS_PROFILE",
    }
    endpoint = variable("s3_endpoint") if settings.s3_endpoint else "AWS_ENDPOINT_URL"
    return kinds.get(type(failure).__name__, endpoint)
