"""JSON encoding in parts, so that the event loop can run in between."""

import json
from collections.abc import Iterator, Mapping

from parakeet_worker import threads

_ITEMS_PER_PART = 32

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def encoded(document: object) -> str:
    """Encode a document. Raises ValueError for values outside of JSON, such as NaN.

    The encoder holds the interpreter's lock until it returns, in any thread: 100 ms for the words
    of some hours. Long lists, and documents that contain one, are encoded in parts.
    """
    return "".join(_parts(document))


async def encoded_in_thread(document: object) -> str:
    """Encode a document in a thread."""
    return await threads.computed(encoded, document)


def _parts(document: object) -> Iterator[str]:
    if isinstance(document, Mapping) and document:
        between = "{"
        for key, value in document.items():
            yield f"{between}{_encode(key)}: "
            yield from _parts(value)
            between = ", "
        yield "}"
    elif isinstance(document, list) and len(document) > _ITEMS_PER_PART:
        between = "["
        for first in range(0, len(document), _ITEMS_PER_PART):
            yield between + _encode(document[first : first + _ITEMS_PER_PART])[1:-1]
            between = ", "
        yield "]"
    elif isinstance(document, list) and any(map(has_long_list, document)):
        between = "["
        for item in document:
            yield between
            yield from _parts(item)
            between = ", "
        yield "]"
    else:
        yield _encode(document)


def has_long_list(item: object) -> bool:
    """Whether a document contains a long list."""
    return isinstance(item, Mapping) and any(
        isinstance(value, list) and len(value) > _ITEMS_PER_PART for value in item.values()
    )
