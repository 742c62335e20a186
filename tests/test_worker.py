"""Opening a worker: what it leaves running."""

import os
import subprocess
import sys

# Torch's other pool of threads begins with the first `set_num_threads`, whoever computes.
_OPENED = """
import os
import time
import torch
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

torch.set_num_threads(2)
before = set(os.listdir("/proc/self/task"))
with open_pipeline(Settings(model="demo")) as pipeline:
    deadline = time.monotonic() + 5
    # Those of a thread that has ended take a moment to end as well; a team that stays, stays.
    while len(new := set(os.listdir("/proc/self/task")) - before) > 1:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    print(len(new))
"""


def test_loading_leaves_no_thread_that_computes_beside_the_engine() -> None:
    # Two processors' worth of OpenMP threads, whatever the machine has.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    opened = subprocess.run(
        [sys.executable, "-c", _OPENED], env=environment, capture_output=True, text=True, check=True
    )
    assert int(opened.stdout) == 1, "the engine's thread alone may be new"
