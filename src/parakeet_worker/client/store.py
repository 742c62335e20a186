"""A bucket of the caller's own, for recordings that no request has room for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from parakeet_worker import buckets
from parakeet_worker.errors import ParakeetError, SourceRefused, SourceUnreachable
from parakeet_worker.settings import Settings

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

Value = TypeVar("Value")

_PREFIX = "parakeet"
# As long as RunPod keeps a job that nobody has taken.
_READABLE_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Stored:
    """A recording in the bucket, and the address under which the worker may read it."""

    key: str
    url: str


class Store:
    """Puts recordings into the bucket of the S3 settings, and takes them out again."""

    def __init__(self, settings: Settings) -> None:
        assert settings.s3_bucket is not None
        self._bucket = settings.s3_bucket
        self._client = buckets.client(settings)

    @classmethod
    def of(cls, settings: Settings) -> "Store | None":
        """The store that the settings describe, if they do."""
        needed = (settings.s3_bucket, settings.s3_access_key, settings.s3_secret_key)
        return cls(settings) if all(needed) else None

    async def put(self, path: Path) -> Stored:
        """Upload a file; raises `SourceRefused` or `SourceUnreachable`."""
        key = f"{_PREFIX}/{uuid4().hex}/{path.name}"

        def upload() -> str:
            self._client.upload_file(str(path), self._bucket, key)
            named = {"Bucket": self._bucket, "Key": key}
            return self._client.generate_presigned_url(
                "get_object", Params=named, ExpiresIn=_READABLE_SECONDS
            )

        return Stored(key, await self._asked(key, upload))

    async def remove(self, key: str) -> None:
        """Take it out again; raises `SourceRefused` or `SourceUnreachable`."""
        await self._asked(key, lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    async def _asked(self, key: str, ask: Callable[[], Value]) -> Value:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        shown = f"s3://{self._bucket}/{key}"
        try:
            return await asyncio.get_running_loop().run_in_executor(buckets.threads, ask)
        except ClientError as failure:
            raise _translated(failure, shown) from failure
        except S3UploadFailedError as failure:
            cause = failure.__context__
            if isinstance(cause, ClientError):
                raise _translated(cause, shown) from failure
            raise SourceUnreachable(shown, str(failure)) from failure
        except (BotoCoreError, OSError) as failure:
            raise SourceUnreachable(shown, str(failure)) from failure


def _translated(failure: "ClientError", shown: str) -> ParakeetError:
    code, status = buckets.verdict(failure)
    if buckets.passing(code, status):
        return SourceUnreachable(shown, code or str(status))
    return SourceRefused(f"{shown} ({code})", status)
