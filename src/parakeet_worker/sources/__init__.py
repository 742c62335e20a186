"""Writes a request's audio to the job's scratch folder."""

import asyncio
from pathlib import Path

from parakeet_worker.errors import AudioEmpty, SourceNotFound
from parakeet_worker.request import (
    FileSource,
    InlineSource,
    Request,
    S3Source,
    SamplesSource,
    UrlSource,
)
from parakeet_worker.settings import Settings
from parakeet_worker.sources import inline, memory, s3, url


async def fetch(request: Request, scratch: Path, settings: Settings) -> Path:
    """Fetch the audio as a file; raises `RequestError` or `TransientError`."""
    ending = f".{request.audio_format}" if request.audio_format else ""
    target = scratch / f"audio{ending}"
    match request.source:
        case InlineSource() as source:
            await asyncio.to_thread(inline.write, source, target, settings.max_audio_bytes)
        case UrlSource() as source:
            await url.download(source, target, settings)
        case S3Source() as source:
            await s3.download(source, target, settings)
        case FileSource(path):
            if not path.is_file():
                raise SourceNotFound(str(path))
            target = path
        case SamplesSource() as source:
            await asyncio.to_thread(memory.write, source, target)
    if target.stat().st_size == 0:
        raise AudioEmpty("the file is empty")
    return target


def max_bytes(request: Request, limit: int) -> int:
    """Upper limit of the bytes that `fetch` writes."""
    match request.source:
        case InlineSource(text):
            return min(limit, len(text) * 3 // 4)
        case SamplesSource() as source:
            return 4 * source.samples.size
        case FileSource():
            return 0
        case UrlSource() | S3Source():
            return limit
