"""The caller's bucket, for recordings that are too large for a request."""

import asyncio
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from parakeet_worker.errors import ParakeetError, SourceRefused, SourceUnreachable, one_line
from parakeet_worker.extras import required
from parakeet_worker.settings import Settings

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

Value = TypeVar("Value")

PREFIX = "parakeet"
"""Where the client's uploads are."""

_OWN_KEY = re.compile(PREFIX + r"/[0-9a-f]{32}/[^/]+")
# As long as RunPod keeps a queued job.
_READABLE_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Stored:
    """A recording in the bucket, and a presigned URL for the worker."""

    key: str
    url: str


class Store:
    """Uploads recordings to the bucket of the S3 settings, and deletes them."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ExtraMissing` or `InvalidSetting`."""
        with required("s3"):
            from parakeet_worker.remote import s3
        assert settings.s3_bucket is not None
        self._bucket = settings.s3_bucket
        self._client = s3.client(settings)

    @classmethod
    def of(cls, settings: Settings) -> "Store | None":
        """The store that the settings describe, if they do."""
        needed = (settings.s3_bucket, settings.s3_access_key, settings.s3_secret_key)
        return cls(settings) if all(needed) else None

    async def put(self, path: Path) -> Stored:
        """Upload a file; raises `SourceRefused` or `SourceUnreachable`.

        When this is cancelled, so is the upload.
        """
        from boto3.s3.transfer import TransferConfig

        key = f"{PREFIX}/{uuid4().hex}/{sent_name(path.name)}"
        stopped = threading.Event()

        def check(_: int) -> None:
            if stopped.is_set():
                raise _Stopped

        def upload() -> str:
            # In this one thread: threads of boto3 would keep the process alive.
            alone = TransferConfig(use_threads=False)
            self._client.upload_file(str(path), self._bucket, key, Callback=check, Config=alone)
            named = {"Bucket": self._bucket, "Key": key}
            return self._client.generate_presigned_url(
                "get_object", Params=named, ExpiresIn=_READABLE_SECONDS
            )

        try:
            return Stored(key, await self._request(key, upload))
        finally:
            stopped.set()

    async def remove(self, key: str) -> None:
        """Delete it; raises `SourceRefused` or `SourceUnreachable`.

        Only what `put` may have stored there: keys are also read from manifests, which may come
        from elsewhere.
        """
        if not _OWN_KEY.fullmatch(key):
            raise SourceRefused(f"s3://{self._bucket}/{one_line(key)}", None, "not an upload")
        await self._request(key, lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    async def _request(self, key: str, call: Callable[[], Value]) -> Value:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError, SSLError

        shown = f"s3://{self._bucket}/{key}"
        try:
            return await _in_daemon_thread(call)
        except ClientError as failure:
            raise _translated(failure, shown) from failure
        except S3UploadFailedError as failure:
            cause = failure.__context__
            if isinstance(cause, ClientError):
                raise _translated(cause, shown) from failure
            raise SourceUnreachable(shown, type(cause or failure).__name__) from failure
        except SSLError as failure:
            reason = "its certificate cannot be verified"
            raise SourceRefused(shown, None, reason) from failure
        except (BotoCoreError, OSError, ValueError) as failure:
            # Their text is omitted: it may contain the header with the access key.
            raise SourceUnreachable(shown, type(failure).__name__) from failure


class _Stopped(Exception):
    """The upload was cancelled."""


async def _in_daemon_thread(call: Callable[[], Value]) -> Value:
    """What `call` returns; an unresponsive bucket does not block process exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Value] = loop.create_future()

    def settle(settled: Future[Value]) -> None:
        if done.cancelled():
            return
        failure = settled.exception()
        if failure is None:
            done.set_result(settled.result())
        else:
            done.set_exception(failure)

    def run() -> None:
        result: Future[Value] = Future()
        try:
            result.set_result(call())
        except Exception as failure:  # noqa: BLE001  # raised where the result is awaited
            result.set_exception(failure)
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="s3", daemon=True).start()
    return await done


def sent_name(name: str) -> str:
    """A file's name as it is sent: bytes that are no UTF-8, and control characters, replaced."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def _translated(failure: "ClientError", shown: str) -> ParakeetError:
    from parakeet_worker.remote import s3

    code, status = s3.error_code(failure)
    if s3.is_transient(code, status):
        return SourceUnreachable(shown, code or str(status))
    return SourceRefused(shown, status, code or None)
