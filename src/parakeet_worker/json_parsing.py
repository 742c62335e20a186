"""JSON parsing with limits on depth and number of values."""

import json
import re
from collections.abc import Iterator

MAX_VALUES = 500_000
"""Parsing holds the interpreter's lock; this number of values takes less than 100 ms."""

MAX_DEPTH = 32
SMALL_BYTES = 64 << 10
"""Larger documents are parsed in a thread."""

_STRUCTURE = re.compile(r'["\[\]{}]')
_BLANK = " \t\r\n"


class NotParsed(ValueError):
    """The text is not JSON or exceeds a limit; the message is one short sentence."""


def parse(content: bytes | str) -> object:
    """Parse a JSON text. Raises `NotParsed`."""
    try:
        text = content if isinstance(content, str) else content.decode(_encoding(content))
    except UnicodeDecodeError as failure:
        raise NotParsed(f"not JSON: {failure.reason} at byte {failure.start}") from failure
    # Commas inside strings count too; strings of a request contain few.
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise NotParsed(f"more than {MAX_VALUES} values")
    try:
        document: object = json.loads(text)
    except RecursionError:
        raise NotParsed(f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as failure:  # includes integers with more digits than Python converts
        raise NotParsed(f"not JSON: {failure}") from failure
    _check_depth(document)
    return document


def _encoding(content: bytes) -> str:
    return json.detect_encoding(content)


def _check_depth(document: object) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise NotParsed(f"nested more than {MAX_DEPTH} deep")


def _children(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in inner if isinstance(child, dict | list)]


def items(text: str) -> list[str]:
    """The unparsed objects of a JSON list, or a single object.

    Without limits on depth, digits and values. A truncated list yields the complete items.
    """
    objects, depth, begin = [], 0, 0
    outer = 1 if text.lstrip(_BLANK).startswith("[") else 0
    for sign, at, _ in _structure(text):
        if sign in "[{":
            if depth == outer:
                begin = at
            depth += 1
        elif sign in "]}":
            depth -= 1
            if depth == outer and sign == "}":
                objects.append(text[begin : at + 1])
    return objects


def string_field(text: str, name: str) -> str | None:
    """The string value of `name` in a JSON object that cannot be parsed entirely, or None."""
    depth, result = 0, None
    for sign, at, end in _structure(text):
        if sign == '"':
            if depth == 1 and _string(text[at:end]) == name:
                result = _value(text, end) or result
        else:
            depth += 1 if sign in "[{" else -1
    return result


def _value(text: str, end_of_name: int) -> str | None:
    """The string after a name and a colon."""
    at = _after_blanks(text, end_of_name)
    if text[at : at + 1] != ":":
        return None
    at = _after_blanks(text, at + 1)
    return _string(text[at : _end_of_string(text, at)]) if text[at : at + 1] == '"' else None


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _BLANK:
        at += 1
    return at


def _string(quoted: str) -> str | None:
    try:
        value = json.loads(quoted)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _structure(text: str) -> Iterator[tuple[str, int, int]]:
    """Brackets, braces and whole strings, each with its start and end."""
    at = 0
    while match := _STRUCTURE.search(text, at):
        begin, at = match.start(), match.end()
        if match[0] == '"':
            at = _end_of_string(text, begin)
        yield match[0], begin, at


def _end_of_string(text: str, begin: int) -> int:
    """The index after the closing quote; the end of the text without one."""
    at = begin
    while (at := text.find('"', at + 1)) >= 0:
        before = at
        while text[before - 1] == "\\":
            before -= 1
        if (at - before) % 2 == 0:
            return at + 1
    return len(text)
