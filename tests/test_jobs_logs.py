"""Log lines for RunPod's console, which finds them by the request's id, and for people."""

import json
import logging
import sys
from typing import Any

import pytest

from parakeet_worker.jobs.logs import JsonLines, PlainLines


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
    ("level", "told"),
    [(logging.WARNING, "WARN"), (logging.ERROR, "ERROR"), (logging.INFO, "INFO")],
)
def test_levels_have_the_names_of_the_sdk(level: int, told: str) -> None:
    assert json.loads(JsonLines().format(record("x", level)))["level"] == told


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
