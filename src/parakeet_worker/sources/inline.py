"""Audio inside the request: base64 or a data URI."""

import base64
import binascii
import re
from pathlib import Path
from urllib.parse import unquote

from parakeet_worker.errors import AudioEmpty, AudioTooLarge, InvalidRequest
from parakeet_worker.request import InlineSource

_FIELD = "audio_base64"


def write(source: InlineSource, target: Path, max_bytes: int) -> None:
    """Decode into `target`; raises `InvalidRequest`, `AudioEmpty` or `AudioTooLarge`."""
    text = _payload(source.base64)
    # The `base64` command writes line breaks; anything else is an error.
    encoded = _standard(text.translate({ord(space): None for space in "\r\n\t "}))
    size = len(encoded) // 4 * 3 - encoded[-2:].count("=")
    if size > max_bytes:
        raise AudioTooLarge(max_bytes, size)
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as failure:
        raise InvalidRequest(_FIELD, f"not base64: {failure}") from failure
    if len(content) != size:
        raise InvalidRequest(_FIELD, "not base64: Excess padding")
    if not content:
        raise AudioEmpty("the request contains no audio")
    target.write_bytes(content)


# End of a data URI's header. Parameters may contain commas, unquoted by browsers' recorders
# (`codecs=vp8,opus`); base64 contains no semicolon, so the last match ends the header.
_BASE64 = re.compile(r";[ \t]*base64[ \t]*,", re.IGNORECASE)
_MAX_HEADER_CHARACTERS = 1024
_URL_SAFE = str.maketrans("-_", "+/")


def _payload(text: str) -> str:
    """The base64 part of a plain text or a data URI (RFC 2397)."""
    head = text[:_MAX_HEADER_CHARACTERS].lstrip()
    if head[:5].lower() != "data:":
        return text
    ends = [match.end() for match in _BASE64.finditer(text, 0, _MAX_HEADER_CHARACTERS)]
    if not ends:
        raise InvalidRequest(_FIELD, "a data URI must be of the form data:TYPE;base64,DATA")
    payload = text[ends[-1] :]
    return unquote(payload, errors="replace") if "%" in payload else payload


def _standard(encoded: str) -> str:
    """Convert the URL-safe alphabet, which omits padding, to the standard one."""
    if "-" not in encoded and "_" not in encoded:
        return encoded
    return encoded.translate(_URL_SAFE) + "=" * (-len(encoded) % 4)
