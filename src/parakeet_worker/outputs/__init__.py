"""Where an answer goes that is too large for the door it came through."""

import asyncio
import gzip
from collections.abc import Sequence

from parakeet_worker import json_text, threads
from parakeet_worker.errors import ResultTooLarge
from parakeet_worker.formats.render import Document
from parakeet_worker.outputs import s3, url
from parakeet_worker.outputs.written import Written
from parakeet_worker.request import Output, S3Output, UrlOutput
from parakeet_worker.settings import Settings


async def fitted(
    answer: Document | list[Document], output: Output | None, settings: Settings
) -> Document | list[Document]:
    """The answer itself where it fits, else where it was written to.

    Raises `ResultTooLarge` where it has nowhere to go, and what writing it raises.
    """
    body = await threads.computed(encoded, answer)
    if len(body) <= settings.max_result_bytes:
        return answer
    if output is None:
        raise ResultTooLarge(len(body), settings.max_result_bytes)
    return {"written_to": await _write(body, output, settings)}


async def check_size(answer: Document | str, settings: Settings) -> None:
    """Raise `ResultTooLarge` for an answer that can go nowhere else."""
    size = len(await threads.computed(encoded, answer))
    if size > settings.max_result_bytes:
        raise ResultTooLarge(size, settings.max_result_bytes)


def encoded(answer: Document | Sequence[Document] | str) -> bytes:
    """JSON as it is sent; a ValueError for what JSON has no word for, such as NaN."""
    return json_text.written(answer).encode()


async def _write(body: bytes, output: Output, settings: Settings) -> Document:
    """Write it, compressed where the name ends in `.gz`, and say where it is."""
    match output:
        case UrlOutput():
            written = await _written(body, url.path(output), output.content_type)
            place = await url.put(written, output, settings)
        case S3Output():
            written = await _written(body, output.key, output.content_type)
            place = await s3.put(written, output, settings)
    return {**place, "bytes": len(body)}


async def _written(body: bytes, name: str, content_type: str | None) -> Written:
    if not name.endswith(".gz"):
        return Written(body, "application/json" if content_type is None else content_type)
    compressed = await asyncio.to_thread(gzip.compress, body, 6, mtime=0)
    return Written(compressed, "application/gzip" if content_type is None else content_type)
