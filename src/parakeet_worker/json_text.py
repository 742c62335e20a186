"""Answers as JSON, in steps: the event loop can run in between."""

import json
from collections.abc import Iterator, Mapping

from parakeet_worker import threads

_ITEMS_AT_ONCE = 32

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def written(document: object) -> str:
    """JSON as it is sent; raises ValueError for what JSON has no word for, such as NaN.

    The encoder holds the interpreter's lock until it is done, in whatever thread: 100 ms for the
    words of some hours. So a list of many items, and a document with one in it, are written in
    parts.
    """
    return "".join(_parts(document))


async def written_aside(document: object) -> str:
    """The same, in a thread."""
    return await threads.computed(written, document)


def _parts(document: object) -> Iterator[str]:
    if isinstance(document, Mapping) and document:
        between = "{"
        for key, value in document.items():
            yield f"{between}{_encode(key)}: "
            yield from _parts(value)
            between = ", "
        yield "}"
    elif isinstance(document, list) and len(document) > _ITEMS_AT_ONCE:
        between = "["
        for first in range(0, len(document), _ITEMS_AT_ONCE):
            yield between + _encode(document[first : first + _ITEMS_AT_ONCE])[1:-1]
            between = ", "
        yield "]"
    elif isinstance(document, list) and any(map(holds_many, document)):
        between = "["
        for item in document:
            yield between
            yield from _parts(item)
            between = ", "
        yield "]"
    else:
        yield _encode(document)


def holds_many(item: object) -> bool:
    """Whether it is a document with a long list in it."""
    return isinstance(item, Mapping) and any(
        isinstance(value, list) and len(value) > _ITEMS_AT_ONCE for value in item.values()
    )
