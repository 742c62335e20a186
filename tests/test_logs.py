"""Log lines for RunPod's console, which finds them by the request's id, and for people."""

import contextvars
import json
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

import pytest

from parakeet_worker.logs import JOB, JsonLines, NonBlockingHandler, PlainLines


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("parakeet", level, __file__, 1, message, None, None)
    made.__dict__.update(extra)
    return made


def failed() -> Any:
    try:
        {}["missing"]
    except KeyError:
        return sys.exc_info()


def test_a_line_is_one_json_object_with_the_sdks_keys_first() -> None:
    line = JsonLines().format(record("job ok", job="job-1", facts={"words": 3}))
    assert "\n" not in line
    assert list(json.loads(line).items()) == [
        ("requestId", "job-1"),
        ("message", "job ok"),
        ("level", "INFO"),
        ("logger", "parakeet"),
        ("words", 3),
    ]


def test_what_concerns_no_job_has_no_request_id() -> None:
    assert json.loads(JsonLines().format(record("ready")))["requestId"] is None


@pytest.mark.parametrize(
    ("level", "reported"),
    [(logging.WARNING, "WARN"), (logging.ERROR, "ERROR"), (logging.INFO, "INFO")],
)
def test_levels_have_the_names_of_the_sdk(level: int, reported: str) -> None:
    assert json.loads(JsonLines().format(record("x", level)))["level"] == reported


def test_a_traceback_stays_inside_its_line() -> None:
    line = JsonLines().format(record("a bug", logging.ERROR, exc_info=failed()))
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("KeyError: 'missing'")


def test_what_json_has_no_word_for_is_written_all_the_same() -> None:
    line = JsonLines().format(record("job", facts={"path": object()}))
    assert "object object" in json.loads(line)["path"]


def test_a_line_of_many_lines_and_letters_of_any_alphabet_is_one_line() -> None:
    assert json.loads(JsonLines().format(record("a\nб")))["message"] == "a\nб"
    assert "б" in JsonLines().format(record("a\nб"))


def test_people_read_a_plain_line() -> None:
    plain = PlainLines().format(record("job ok", job="job-1", facts={"words": 3}))
    assert plain == 'INFO parakeet: job-1: job ok {"words": 3}'
    assert PlainLines().format(record("ready")) == "INFO parakeet: ready"
    assert PlainLines().format(record("a bug", exc_info=failed())).endswith("KeyError: 'missing'")


def test_a_lone_surrogate_in_a_jobs_id_costs_no_line() -> None:
    for lines in (JsonLines(), PlainLines()):
        line = lines.format(record("job ok", job="job-\ud800", facts={"codes": ["\udfff"]}))
        assert "job-" in line
        line.encode()


def test_a_line_within_a_job_names_it() -> None:
    def line() -> object:
        JOB.set("job-1")
        return json.loads(JsonLines().format(record("try again")))["requestId"]

    assert contextvars.copy_context().run(line) == "job-1"
    assert JOB.get() is None


def test_an_unread_pipe_blocks_nothing_and_dropped_lines_are_counted() -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer, max_lines=100)
    for number in range(1000):
        handler.emit(record(f"{number} {'x' * 1000}"))
    os.set_blocking(reader, False)
    text = b""
    ends = time.monotonic() + 20
    while b"lines of the log were dropped" not in text:
        assert time.monotonic() < ends
        with suppress(BlockingIOError):
            text += os.read(reader, 1 << 20)
        handler.emit(record("more"))
    handler.close()
    assert text.startswith((b"INFO parakeet: 0 x", b"0 x"))
    os.close(reader)
    os.close(writer)


def test_a_closed_pipe_drops_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer)
    os.close(reader)
    for number in range(100):
        handler.emit(record(str(number)))
    handler.close()
    os.close(writer)
    assert capsys.readouterr().err == ""


def test_a_fork_writes_its_lines_as_well() -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer)
    child = os.fork()
    if child == 0:
        handler.emit(record("of the fork"))
        handler.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    handler.close()
    os.close(writer)
    assert b"of the fork" in os.read(reader, 1000)
    os.close(reader)
