"""A request's folder: gone whatever happens, and not by the event loop's thread."""

import asyncio
import sys
import threading
from pathlib import Path

from parakeet_worker import scratch

removing: dict[str, int] = {}


def note(event: str, given: tuple[object, ...]) -> None:
    if event == "shutil.rmtree":
        removing[str(given[0])] = threading.get_ident()


sys.addaudithook(note)


async def test_a_folder_is_removed_with_what_is_in_it_by_another_thread(tmp_path: Path) -> None:
    async with scratch.folder(tmp_path) as folder:
        (folder / "recording").write_bytes(bytes(100_000))
        assert folder.parent == tmp_path
    assert not folder.exists()
    assert removing[str(folder)] != threading.get_ident()


async def test_a_folder_is_removed_of_a_request_that_is_cancelled_twice(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def request() -> None:
        async with scratch.folder(tmp_path) as folder:
            (folder / "recording").write_bytes(bytes(100_000))
            entered.set()
            await asyncio.sleep(60)

    running = asyncio.create_task(request())
    await entered.wait()
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for _ in range(2000):
        if not list(tmp_path.iterdir()):
            return
        await asyncio.sleep(0.01)
    assert not list(tmp_path.iterdir())
