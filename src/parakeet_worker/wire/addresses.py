"""Addresses of audio and of results: a URL or an S3 object to a source."""

from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field

from parakeet_worker.errors import InvalidRequest, echo
from parakeet_worker.request import S3Source, UrlSource
from parakeet_worker.wire.validation import WireModel, too_many

MAX_URL_CHARACTERS = 32 << 10
_MAX_KEY_CHARACTERS = 1024
_MAX_BUCKET_CHARACTERS = 255

# With any constraint on the length, pydantic rejects lone surrogates.
Url: TypeAlias = Annotated[str, Field(max_length=MAX_URL_CHARACTERS)]


class S3Wire(WireModel):
    """An S3 object; the default bucket is the worker's."""

    key: Annotated[str, Field(min_length=1, max_length=_MAX_KEY_CHARACTERS)]
    """The object's key."""
    bucket: Annotated[str, Field(min_length=1, max_length=_MAX_BUCKET_CHARACTERS)] | None = None
    """The bucket; the worker's `S3_BUCKET` if absent."""


def source_at(url: str, field: str) -> UrlSource | S3Source:
    """The source at a URL. Raises `InvalidRequest` for `field`."""
    if len(url) > MAX_URL_CHARACTERS:
        raise InvalidRequest(field, too_many("characters", len(url), MAX_URL_CHARACTERS))
    scheme, _, rest = url.partition("://")
    if scheme.lower() == "s3":
        # A key is used literally: it may contain `?`, `#` and `%`.
        bucket, _, key = rest.partition("/")
        if not bucket or not key:
            raise InvalidRequest(field, "must be of the form s3://bucket/key")
        return S3Source(key, bucket)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as failure:
        raise InvalidRequest(field, f"not a URL: {echo(str(failure))}") from failure
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidRequest(field, "must be an http, https or s3 URL")
    if url != url.strip() or not url.isprintable():
        raise InvalidRequest(field, "contains whitespace or non-printable characters")
    return UrlSource(url)
