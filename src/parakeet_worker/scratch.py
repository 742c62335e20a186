"""A folder for the files of one request, removed in a thread."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from parakeet_worker import threads


@asynccontextmanager
async def folder(parent: Path | None) -> AsyncGenerator[Path, None]:
    """A new folder in `parent`; it is gone when the block is left, cancelled or not.

    A disk that is told which blocks are free (`discard`) takes 100 ms for a file and more, in which
    the event loop would do nothing else.
    """
    made = TemporaryDirectory(prefix="parakeet-", dir=parent)
    try:
        yield Path(made.name)
    finally:
        removed = asyncio.wrap_future(threads.begun(made.cleanup))
        await asyncio.shield(removed)
