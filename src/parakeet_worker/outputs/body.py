"""The bytes of a stored answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Body:
    """An encoded answer."""

    content: bytes
    content_type: str
    """Empty for no Content-Type."""
