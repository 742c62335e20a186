"""Answers on their way back: sent again until the platform has them, or says that it never will."""

import json
import logging
import time
from io import BytesIO
from typing import Any

import aiohttp
import stamina

from parakeet_worker import json_text
from parakeet_worker.entrypoints.queue.sdk import Sdk
from parakeet_worker.remote import url_guard
from parakeet_worker.remote.retries import DEADLINE

log = logging.getLogger(__name__)

_PASSING = frozenset({408, 425, 429})
_TOO_LARGE = frozenset({400, 413})
_ATTEMPT_SECONDS = 60.0
_PROGRESS_ATTEMPT_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 10.0
_STREAM_SECONDS = 20.0
"""A segment is tried for so long; the whole comes at the end."""
_HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}
_SMALL_BYTES = 4096


class _NotYet(Exception):
    """The same may be accepted later."""


class _Refused(Exception):
    """The platform does not want it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the platform answered {status}")
        self.status = status


class Delivery:
    """Posts what jobs have to say, by one session, in the form that the SDK has for it."""

    def __init__(self, sdk: Sdk, session: aiohttp.ClientSession, timeout_seconds: float) -> None:
        self._sdk = sdk
        self._session = session
        self._timeout_seconds = timeout_seconds

    async def done(self, job: str, body: dict[str, Any], *, streamed: bool) -> bool:
        """The answer of a job; whether it was delivered."""
        url = _address(self._sdk.done_url, job, streamed=streamed)
        text = await json_text.written_aside(body)
        try:
            await self._post(url, text, self._timeout_seconds)
        except _Refused as refusal:
            if refusal.status in _TOO_LARGE and len(text) > _SMALL_BYTES:
                # A client must not be told that all went well, and find nothing.
                return await self.done(job, _refused_body(refusal, text), streamed=streamed)
            log.error("the answer was not accepted: %s", refusal, extra={"job": job})  # noqa: TRY400
            return False
        except _NotYet as failure:
            log.error("the answer could not be delivered: %s", failure, extra={"job": job})  # noqa: TRY400
            return False
        return True

    async def segment(self, job: str, chunk: dict[str, Any]) -> bool:
        """One chunk of a stream; whether it was delivered.

        What is not delivered is in the whole answer all the same.
        """
        url = _address(self._sdk.stream_url, job, streamed=False)
        text = json.dumps({"output": chunk}, ensure_ascii=False, allow_nan=False)
        try:
            await self._post(url, text, _STREAM_SECONDS)
        except (_NotYet, _Refused) as failure:
            log.warning("a segment was not sent: %s", failure, extra={"job": job})
            return False
        return True

    async def progress(self, job: str, progress: dict[str, Any]) -> None:
        """How far a job is; tried once, because the next one says more."""
        url = _address(self._sdk.done_url, job, streamed=False)
        text = json.dumps({"status": "IN_PROGRESS", "output": progress}, allow_nan=False)
        try:
            await self._attempt(url, text, _PROGRESS_ATTEMPT_SECONDS)
        except (_NotYet, _Refused) as failure:
            log.warning("progress was not told: %s", failure, extra={"job": job})

    async def _post(self, url: str, text: str, timeout_seconds: float) -> None:
        DEADLINE.set(time.monotonic() + timeout_seconds)
        async for attempt in stamina.retry_context(
            on=_NotYet,
            attempts=None,
            timeout=timeout_seconds,
            wait_initial=0.25,
            wait_max=_LONGEST_WAIT_SECONDS,
        ):
            with attempt:
                await self._attempt(url, text)

    async def _attempt(
        self, url: str, text: str, timeout_seconds: float = _ATTEMPT_SECONDS
    ) -> None:
        try:
            async with self._session.post(
                url,
                # It is written in parts. A lone surrogate becomes JSON's escape for it.
                data=BytesIO(text.encode(errors="backslashreplace")),
                headers=_HEADERS,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response:
                status = response.status
                await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            reason = f"{type(failure).__name__}: {failure}"
            raise _NotYet(f"{url_guard.redacted(url)}: {reason}") from failure
        # A redirect, as to a login page, has taken nothing.
        if status in _PASSING or status >= 500 or 300 <= status < 400:
            raise _NotYet(f"{url_guard.redacted(url)}: the platform answered {status}")
        if status >= 400:
            raise _Refused(status)


def _address(template: str, job: str, *, streamed: bool) -> str:
    return template.replace("$ID", job) + f"&isStream={'true' if streamed else 'false'}"


def _refused_body(refusal: _Refused, text: str) -> dict[str, Any]:
    size = len(text.encode())
    return {
        "error": f"result_refused: {refusal} to an answer of {size} bytes; name an output_url or "
        "output_s3 to have it written there, and lower PARAKEET_MAX_RESULT_BYTES",
        "output": {"code": "result_refused", "bytes": size, "status": refusal.status},
    }
