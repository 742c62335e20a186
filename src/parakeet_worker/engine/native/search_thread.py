"""The thread that runs searches, one after another, while the next batch is encoded."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

from parakeet_worker.engine.base import Outcome

Work = Callable[[], list[Outcome]]


class SearchThread:
    """Runs submitted work in order.

    A daemon thread, unlike those of an executor: the process can exit even if the device hangs.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[list[Outcome]], Work] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> "Future[list[Outcome]]":
        """Queue `work`; the future receives its result or exception."""
        future: Future[list[Outcome]] = Future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """Finish the queued work and join the thread."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as failure:  # noqa: BLE001  # raised again by `result`
                future.set_exception(failure)
            del item, future, work  # they keep the batch's tensors alive
