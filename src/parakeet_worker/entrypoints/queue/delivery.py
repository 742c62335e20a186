"""Delivers results, with retries until the platform has accepted or rejected them."""

import json
import logging
import time
from io import BytesIO
from typing import Any

import aiohttp
import stamina

from parakeet_worker import json_encoding
from parakeet_worker.entrypoints.queue.sdk import Sdk
from parakeet_worker.remote import url_guard
from parakeet_worker.remote.retries import DEADLINE, is_transient

log = logging.getLogger(__name__)

_TOO_LARGE = frozenset({400, 413})
_ATTEMPT_SECONDS = 60.0
_PROGRESS_ATTEMPT_SECONDS = 10.0
_MAX_WAIT_SECONDS = 10.0
_STREAM_SECONDS = 20.0
"""Retries of a segment; the final answer contains it anyway."""
_HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}
_SMALL_BYTES = 4096


class _Transient(Exception):
    """A transient failure."""


class _Rejected(Exception):
    """The platform rejected the body permanently."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the platform answered {status}")
        self.status = status


class Delivery:
    """Posts results, segments and progress in the SDK's format."""

    def __init__(self, sdk: Sdk, session: aiohttp.ClientSession, timeout_seconds: float) -> None:
        self._sdk = sdk
        self._session = session
        self._timeout_seconds = timeout_seconds

    async def done(self, job: str, body: dict[str, Any], *, streamed: bool) -> bool:
        """Post the answer of a job; returns whether it was delivered."""
        url = _address(self._sdk.done_url, job, streamed=streamed)
        text = await json_encoding.encoded_in_thread(body)
        try:
            await self._post(url, text, self._timeout_seconds)
        except _Rejected as rejection:
            if rejection.status in _TOO_LARGE and len(text) > _SMALL_BYTES:
                # Without this the client would see a completed job without output.
                return await self.done(job, _rejected_body(rejection, text), streamed=streamed)
            log.error("answer rejected: %s", rejection, extra={"job": job})  # noqa: TRY400
            return False
        except _Transient as failure:
            log.error("answer not delivered: %s", failure, extra={"job": job})  # noqa: TRY400
            return False
        return True

    async def segment(self, job: str, chunk: dict[str, Any]) -> bool:
        """Post one segment of a stream; returns whether it was delivered.

        The final answer contains every segment.
        """
        url = _address(self._sdk.stream_url, job, streamed=False)
        text = json.dumps({"output": chunk}, ensure_ascii=False, allow_nan=False)
        try:
            await self._post(url, text, _STREAM_SECONDS)
        except (_Transient, _Rejected) as failure:
            log.warning("segment not delivered: %s", failure, extra={"job": job})
            return False
        return True

    async def progress(self, job: str, progress: dict[str, Any]) -> None:
        """Post the progress of a job, without retries."""
        url = _address(self._sdk.done_url, job, streamed=False)
        text = json.dumps({"status": "IN_PROGRESS", "output": progress}, allow_nan=False)
        try:
            await self._attempt(url, text, _PROGRESS_ATTEMPT_SECONDS)
        except (_Transient, _Rejected) as failure:
            log.warning("progress not delivered: %s", failure, extra={"job": job})

    async def _post(self, url: str, text: str, timeout_seconds: float) -> None:
        DEADLINE.set(time.monotonic() + timeout_seconds)
        async for attempt in stamina.retry_context(
            on=_Transient,
            attempts=None,
            timeout=timeout_seconds,
            wait_initial=0.25,
            wait_max=_MAX_WAIT_SECONDS,
        ):
            with attempt:
                await self._attempt(url, text)

    async def _attempt(
        self, url: str, text: str, timeout_seconds: float = _ATTEMPT_SECONDS
    ) -> None:
        try:
            async with self._session.post(
                url,
                # Sent in chunks. A lone surrogate becomes a JSON escape.
                data=BytesIO(text.encode(errors="backslashreplace")),
                headers=_HEADERS,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response:
                status = response.status
                await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            reason = f"{type(failure).__name__}: {failure}"
            raise _Transient(f"{url_guard.redacted(url)}: {reason}") from failure
        # A redirect, such as to a login page, did not accept the body.
        if is_transient(status) or 300 <= status < 400:
            raise _Transient(f"{url_guard.redacted(url)}: the platform answered {status}")
        if status >= 400:
            raise _Rejected(status)


def _address(template: str, job: str, *, streamed: bool) -> str:
    return template.replace("$ID", job) + f"&isStream={'true' if streamed else 'false'}"


def _rejected_body(rejection: _Rejected, text: str) -> dict[str, Any]:
    size = len(text.encode())
    return {
        "error": f"result_refused: {rejection} to an answer of {size} bytes; set output_url or "
        "output_s3, and lower PARAKEET_MAX_RESULT_BYTES",
        "output": {"code": "result_refused", "bytes": size, "status": rejection.status},
    }
