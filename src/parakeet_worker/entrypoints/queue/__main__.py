"""RunPod's queue worker: `python -m parakeet_worker.entrypoints.queue`."""

import os
import signal

# Process 1 of a container ignores a signal without a handler, and importing takes seconds from a
# slow volume. `handler.py` has blocked SIGTERM until now.
for _early in (signal.SIGTERM, signal.SIGINT):
    signal.signal(_early, lambda number, _: os._exit(128 + number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

from parakeet_worker.entrypoints.queue.main import main  # noqa: E402

main()
