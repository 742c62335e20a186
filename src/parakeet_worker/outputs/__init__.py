"""Stores an answer that exceeds the transport's limit."""

import asyncio
import gzip
from collections.abc import Sequence

from parakeet_worker import json_encoding, threads
from parakeet_worker.errors import ResultTooLarge
from parakeet_worker.formats.render import Document
from parakeet_worker.outputs import s3, url
from parakeet_worker.outputs.body import Body
from parakeet_worker.request import Output, S3Output, UrlOutput
from parakeet_worker.settings import Settings


async def store_if_large(
    answer: Document | list[Document], output: Output | None, settings: Settings
) -> Document | list[Document]:
    """Return the answer if it fits, otherwise store it and return its location.

    Raises `ResultTooLarge` without an output, and the errors of `put`.
    """
    body = await threads.computed(encoded, answer)
    if len(body) <= settings.max_result_bytes:
        return answer
    if output is None:
        raise ResultTooLarge(len(body), settings.max_result_bytes)
    return {"written_to": await _write(body, output, settings)}


async def check_size(answer: Document | str, settings: Settings) -> None:
    """Raise `ResultTooLarge` for an answer that exceeds the limit."""
    size = len(await threads.computed(encoded, answer))
    if size > settings.max_result_bytes:
        raise ResultTooLarge(size, settings.max_result_bytes)


def encoded(answer: Document | Sequence[Document] | str) -> bytes:
    """JSON as sent; raises ValueError for values that JSON cannot represent, such as NaN."""
    return json_encoding.encoded(answer).encode()


async def _write(body: bytes, output: Output, settings: Settings) -> Document:
    """Store it, compressed if the name ends in `.gz`, and return its location."""
    match output:
        case UrlOutput():
            payload = await _payload(body, url.path(output), output.content_type)
            location = await url.put(payload, output, settings)
        case S3Output():
            payload = await _payload(body, output.key, output.content_type)
            location = await s3.put(payload, output, settings)
    return {**location, "bytes": len(body)}


async def _payload(body: bytes, name: str, content_type: str | None) -> Body:
    if not name.endswith(".gz"):
        return Body(body, "application/json" if content_type is None else content_type)
    compressed = await asyncio.to_thread(gzip.compress, body, 6, mtime=0)
    return Body(compressed, "application/gzip" if content_type is None else content_type)
