"""Audio inside the request: base64, plain or as a data URI."""

import base64
import binascii
from pathlib import Path

from parakeet_worker.errors import AudioEmpty, AudioTooLarge, InvalidRequest
from parakeet_worker.request import InlineSource

_FIELD = "audio_base64"


def write(source: InlineSource, target: Path, max_bytes: int) -> None:
    """Decode into `target`; raises `InvalidRequest`, `AudioEmpty` or `AudioTooLarge`."""
    text = _payload(source.base64)
    # Line breaks are what the `base64` command writes; nothing else is forgiven.
    encoded = text.translate({ord(space): None for space in "\r\n\t "})
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
        raise AudioEmpty("the request holds no bytes of audio")
    target.write_bytes(content)


def _payload(text: str) -> str:
    if not text.startswith("data:"):
        return text
    header, comma, payload = text.partition(",")
    if not comma or not header.endswith(";base64"):
        raise InvalidRequest(_FIELD, "a data URI must be of the form data:TYPE;base64,DATA")
    return payload
