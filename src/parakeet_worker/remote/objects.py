"""Objects in S3 over aiohttp, with addresses that boto3 signs.

A request that is cancelled or out of time ends at once, where a thread inside boto3 would go on
reading.
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

_REFUSAL_BYTES = 1 << 16
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9._-]{1,64})\s*</Code>")
_REGION = re.compile(rb"<Region>\s*([A-Za-z0-9-]{1,64})\s*</Region>")
_REGION_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
# A bucket in another region is told by any of these.
_ELSEWHERE = frozenset({301, 302, 307, 400})

Operation: TypeAlias = Literal["get_object", "put_object"]
_METHODS: Mapping[Operation, str] = {"get_object": "GET", "put_object": "PUT"}


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
        return s3.transient(self.code, self.status)

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

    Raises `buckets.ImpossibleAddress`, `InvalidSetting`, and what aiohttp raises.
    """
    typed = {} if content_type is None else {"ContentType": content_type}
    headers = {} if content_type is None else {"Content-Type": content_type}
    region = settings.s3_region
    connector = aiohttp.TCPConnector(force_close=True, ssl=s3.authorities())
    async with http.session(settings, connector) as session:
        for first in (True, False):
            named_object = {"Bucket": bucket, "Key": key, **typed}
            address = await asyncio.to_thread(s3.signed, operation, named_object, settings, region)
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


def _proxy(address: str) -> str | None:
    """The proxy of the environment, as boto3 finds it."""
    parts = urlsplit(address)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)
