"""Load on the HTTP server, with an engine without computation."""

import argparse
from pathlib import Path

import httpx

from bench import callers
from bench.clips import Clip


def test_every_number_of_clients_is_measured_and_every_response_compared(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        model="tones", clips=3, shortest=1.0, longest=2.0, seed=1, minutes=5.0, threads=1
    )
    load = callers.Load(client_counts=(1, 4), min_requests=2)
    crowds = callers.measured({"engine": "tones", "converted": str(tmp_path)}, arguments, load)
    assert [(crowd.clients, crowd.requests) for crowd in crowds] == [(1, 3), (4, 8)]
    for crowd in crowds:
        assert crowd.different == ()
        assert 0 < crowd.fill <= 1
        assert crowd.pieces >= crowd.batches > 0
        assert 0 < crowd.p50_seconds <= crowd.p95_seconds
        assert crowd.processor_seconds > 0


def test_a_response_that_differs_from_the_clip_alone_is_reported(tmp_path: Path) -> None:
    def send(client: httpx.Client, clip: Clip) -> callers.Call:
        return callers.Call(clip, {"text": "other"}, callers.send(client, clip).took_seconds)

    arguments = argparse.Namespace(
        model="tones", clips=1, shortest=1.0, longest=1.0, seed=1, minutes=5.0, threads=1
    )
    load = callers.Load(client_counts=(1,), send=send)
    (crowd,) = callers.measured({"engine": "tones", "converted": str(tmp_path)}, arguments, load)
    assert len(crowd.different) == crowd.requests > 0
