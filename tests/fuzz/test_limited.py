"""A server under limits of the system outlives odd inputs, within its memory."""

from pathlib import Path

import pytest
from limited import costs, limited_server

DECODERS = 4
LIMIT_BYTES = 300 + DECODERS * 150 << 20
"""Of all processes, beyond those of an idle server: ffmpeg's `-max_alloc` for each decoder, and
what the server itself takes for its largest request."""


@pytest.mark.filterwarnings("default")
def test_odd_inputs_are_answered_within_the_memory_of_all_processes(tmp_path: Path) -> None:
    with limited_server(tmp_path, {"PARAKEET_DECODERS": str(DECODERS)}) as (url, root):
        for cost in costs(url, root):
            assert cost.status in (200, 400, 413, 415, 503), cost
            assert cost.code != "internal_error", cost
            assert cost.peak_bytes < LIMIT_BYTES, cost
