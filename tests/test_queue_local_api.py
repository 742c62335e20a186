"""The SDK's local API may differ from the supported one; `test_queue_main.py` runs it."""

import subprocess
import sys

import pytest

INSTALL = """
from runpod.serverless.modules import rp_fastapi
{change}
from parakeet_worker.entrypoints.queue import local_api, sdk
try:
    local_api.install(None)
except sdk.SdkChanged as change:
    print(change)
else:
    print("installed")
"""


@pytest.mark.parametrize(
    ("change", "printed"),
    [
        ("", "installed"),
        ("del rp_fastapi.WorkerAPI._sim_stream", "'_sim_stream'"),
        ("del rp_fastapi.job_list", "'job_list'"),
    ],
)
def test_a_changed_sdk_is_detected_before_it_serves(change: str, printed: str) -> None:
    command = [sys.executable, "-c", INSTALL.format(change=change)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert printed in ended.stdout
