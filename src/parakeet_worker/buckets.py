"""The operator's S3 service: signed requests, and what its refusals mean.

Objects travel over aiohttp with addresses that boto3 signs: a request that is cancelled or out of
time ends at once, where a thread inside boto3 would go on reading.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from parakeet_worker.errors import InvalidRequest, InvalidSetting, S3NotConfigured, one_line
from parakeet_worker.remote import http, retries
from parakeet_worker.settings import Settings, variable

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 3
_SIGNED_SECONDS = 3600
_REFUSAL_BYTES = 1 << 16
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9._-]{1,64})\s*</Code>")
_REGION = re.compile(rb"<Region>\s*([A-Za-z0-9-]{1,64})\s*</Region>")
_REGION_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
# Besides those of `retries.is_transient`; the services that throttle have no status in common.
_TRANSIENT_CODES = frozenset(
    {"BandwidthLimitExceeded", "InternalError", "OperationAborted", "RequestLimitExceeded"}
    | {"RequestThrottled", "RequestThrottledException", "RequestTimeout", "RequestTimeoutException"}
    | {"ServiceUnavailable", "SlowDown", "Throttled", "ThrottledException", "Throttling"}
    | {"ThrottlingException", "TooManyRequests", "TooManyRequestsException"}
)
# A bucket in another region is told by any of these.
_ELSEWHERE = frozenset({301, 302, 307, 400})

Operation: TypeAlias = Literal["get_object", "put_object"]
_METHODS: Mapping[Operation, str] = {"get_object": "GET", "put_object": "PUT"}


class ImpossibleAddress(Exception):
    """No bucket or key can have that name."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How the service refused a request."""

    status: int
    code: str
    """Its own word for it, such as `NoSuchKey`; empty where it gives none."""
    region: str | None = None
    """Where the bucket is, if the service says so."""
    wait_seconds: float | None = None
    """How long the service asks to wait."""

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return transient(self.code, self.status)

    @property
    def missing(self) -> bool:
        """Whether there is no such bucket or object."""
        return self.status == 404 or self.code in ("NoSuchKey", "NoSuchBucket")

    @property
    def reason(self) -> str | None:
        """What is known beside the status."""
        where = f"the bucket is in region {self.region}" if self.region else ""
        return ", ".join(filter(None, (self.code, where))) or None

    def __str__(self) -> str:
        return self.reason or f"the service answered {self.status}"


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
    _authorities()


def verdict(failure: "ClientError") -> tuple[str, int]:
    """The service's own code, such as `NoSuchKey`, and the HTTP status."""
    response = failure.response
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def transient(code: str, status: int) -> bool:
    """Whether the same may work later."""
    return retries.is_transient(status) or code in _TRANSIENT_CODES


@asynccontextmanager
async def requested(
    operation: Operation,
    bucket: str,
    key: str,
    settings: Settings,
    *,
    content_type: str | None = None,
    **content: Any,
) -> AsyncGenerator[aiohttp.ClientResponse | Refusal, None]:
    """Ask for an object, or write one; asked once more where the bucket is in another region.

    Raises `ImpossibleAddress`, `InvalidSetting`, and what aiohttp raises.
    """
    typed = {} if content_type is None else {"ContentType": content_type}
    headers = {} if content_type is None else {"Content-Type": content_type}
    region = settings.s3_region
    connector = aiohttp.TCPConnector(force_close=True, ssl=_authorities())
    async with http.session(settings, connector) as session:
        for first in (True, False):
            named_object = {"Bucket": bucket, "Key": key, **typed}
            address = await asyncio.to_thread(_signed, settings, region, operation, named_object)
            async with session.request(
                _METHODS[operation],
                URL(address, encoded=True),
                headers=headers,
                skip_auto_headers=() if headers else ("Content-Type",),
                allow_redirects=False,
                proxy=_proxy(address),
                **{name: make() for name, make in content.items()},
            ) as response:
                if 200 <= response.status < 300:
                    yield response
                    return
                refusal = await _refusal(response)
            elsewhere = refusal.status in _ELSEWHERE and refusal.region not in (None, region)
            if not (first and elsewhere):
                break
            region = refusal.region
        yield refusal


async def _refusal(response: aiohttp.ClientResponse) -> Refusal:
    body = await response.content.read(_REFUSAL_BYTES)
    code, told = _CODE.search(body), _REGION.search(body)
    region = response.headers.get("x-amz-bucket-region") or (told[1].decode() if told else "")
    return Refusal(
        response.status,
        code[1].decode() if code else "",
        region if _REGION_NAME.fullmatch(region) else None,
        retries.retry_after_seconds(response.headers.get("Retry-After")),
    )


def _signed(
    settings: Settings, region: str | None, operation: Operation, params: dict[str, str]
) -> str:
    from botocore.exceptions import BotoCoreError

    service = client(settings, region)
    try:
        return str(service.generate_presigned_url(operation, params, _SIGNED_SECONDS))
    except (BotoCoreError, UnicodeError, ValueError) as failure:
        raise ImpossibleAddress(type(failure).__name__) from failure


def _proxy(address: str) -> str | None:
    """The proxy of the environment, as boto3 finds it."""
    parts = urlsplit(address)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


@lru_cache(maxsize=1)
def _authorities() -> ssl.SSLContext:
    """Who may sign the service's certificate: `AWS_CA_BUNDLE`, else what the system trusts."""
    import botocore.session

    named_file = botocore.session.get_session().get_config_variable("ca_bundle")
    try:
        return ssl.create_default_context(cafile=named_file)
    except OSError as failure:
        raise InvalidSetting("AWS_CA_BUNDLE", f"cannot be read: {failure.strerror}") from failure


@lru_cache(maxsize=4)
def client(settings: Settings, region: str | None = None) -> "S3Client":
    """One client per worker, since making one is slow; raises `InvalidSetting`."""
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
