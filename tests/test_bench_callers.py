"""The bench at the server's door, with an engine that costs nothing."""

import argparse
from pathlib import Path

import pytest

from bench import callers


def test_every_answer_is_compared_and_every_number_of_clients_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "CLIENTS", (1, 4))
    monkeypatch.setattr(callers, "_LEAST_EACH", 2)
    arguments = argparse.Namespace(
        model="tones", clips=3, shortest=1.0, longest=2.0, seed=1, minutes=5.0, threads=1
    )
    found = callers.measured({"engine": "tones", "converted": str(tmp_path)}, arguments)
    assert [(crowd.clients, crowd.requests) for crowd in found] == [(1, 3), (4, 8)]
    for crowd in found:
        assert crowd.different == ()
        assert 0 < crowd.fill <= 1
        assert crowd.pieces >= crowd.batches > 0
        assert 0 < crowd.p50_seconds <= crowd.p95_seconds
        assert crowd.processor_seconds > 0


def test_another_answer_than_alone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "CLIENTS", (1,))
    honest = callers._call
    monkeypatch.setattr(
        callers,
        "_call",
        lambda door, clip: callers.Call(clip, {"text": "other"}, honest(door, clip).took_seconds),
    )
    arguments = argparse.Namespace(
        model="tones", clips=1, shortest=1.0, longest=1.0, seed=1, minutes=5.0, threads=1
    )
    (found,) = callers.measured({"engine": "tones", "converted": str(tmp_path)}, arguments)
    assert len(found.different) == found.requests > 0
