"""S3 objects over aiohttp, with URLs presigned by boto3.

A cancelled or timed-out request ends immediately; a thread inside boto3 would continue reading.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from parakeet_worker.remote import http, retries, s3
from parakeet_worker.settings import Settings

_ERROR_BYTES = 1 << 16
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9._-]{1,64})\s*</Code>")
_REGION = re.compile(rb"<Region>\s*([A-Za-z0-9-]{1,64})\s*</Region>")
_REGION_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
# Statuses by which services report a bucket in another region.
_OTHER_REGION = frozenset({301, 302, 307, 400})

Operation: TypeAlias = Literal["get_object", "put_object"]
_METHODS: Mapping[Operation, str] = {"get_object": "GET", "put_object": "PUT"}


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The service's response to a request that failed."""

    status: int
    code: str
    """The service's error code, such as `NoSuchKey`; may be empty."""
    region: str | None = None
    """The bucket's region, if reported."""
    wait_seconds: float | None = None
    """The `Retry-After` of the response."""

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return s3.is_transient(self.code, self.status)

    @property
    def missing(self) -> bool:
        """Whether the bucket or object does not exist."""
        return self.status == 404 or self.code in ("NoSuchKey", "NoSuchBucket")

    @property
    def reason(self) -> str | None:
        """Code and region, if known."""
        region = f"the bucket is in region {self.region}" if self.region else ""
        return ", ".join(filter(None, (self.code, region))) or None

    def __str__(self) -> str:
        return self.reason or f"the service answered {self.status}"


@asynccontextmanager
async def request(
    operation: Operation,
    bucket: str,
    key: str,
    settings: Settings,
    *,
    content_type: str | None = None,
    **content: Any,
) -> AsyncGenerator[aiohttp.ClientResponse | ErrorResponse, None]:
    """Read or write an object; repeated once if the bucket is in another region.

    Raises `s3.InvalidObjectName`, `InvalidSetting`, and aiohttp exceptions.
    """
    typed = {} if content_type is None else {"ContentType": content_type}
    headers = {} if content_type is None else {"Content-Type": content_type}
    region = settings.s3_region
    connector = aiohttp.TCPConnector(force_close=True, ssl=s3.tls_context())
    async with http.session(settings, connector) as session:
        for first in (True, False):
            params = {"Bucket": bucket, "Key": key, **typed}
            address = await asyncio.to_thread(s3.presign, operation, params, settings, region)
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
                error = await _error(response)
            other_region = error.status in _OTHER_REGION and error.region not in (None, region)
            if not (first and other_region):
                break
            region = error.region
        yield error


async def _error(response: aiohttp.ClientResponse) -> ErrorResponse:
    body = await response.content.read(_ERROR_BYTES)
    code, named_region = _CODE.search(body), _REGION.search(body)
    region = response.headers.get("x-amz-bucket-region") or (
        named_region[1].decode() if named_region else ""
    )
    return ErrorResponse(
        response.status,
        code[1].decode() if code else "",
        region if _REGION_NAME.fullmatch(region) else None,
        retries.retry_after_seconds(response.headers.get("Retry-After")),
    )


def _proxy(address: str) -> str | None:
    """The proxy from the environment, as boto3 selects it."""
    parts = urlsplit(address)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)
