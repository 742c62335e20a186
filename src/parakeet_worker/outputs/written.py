"""What is written to a place outside."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """An answer as bytes."""

    body: bytes
    content_type: str
    """Empty for none."""
