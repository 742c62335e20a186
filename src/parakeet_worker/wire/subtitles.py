"""Limits of the cues of `srt` and `vtt`, as fields of every format of a request."""

from typing import Annotated, TypeAlias

from pydantic import BaseModel, Field

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.options import CUE_FORMATS, CUE_LIMITS, CueLimits

DEFAULTS = CueLimits()

# The work to cut a transcript into cues grows with the characters and the seconds of one cue.
MaxLineCharacters: TypeAlias = Annotated[int, Field(ge=10, le=100)]
MaxLines: TypeAlias = Annotated[int, Field(ge=1, le=4)]
MaxCharactersPerSecond: TypeAlias = Annotated[float, Field(ge=5, le=100)]
MaxCueSeconds: TypeAlias = Annotated[float, Field(ge=1, le=30)]


def cue_limits(wire: BaseModel, format_field: str = "format", prefix: str = "") -> CueLimits:
    """The limits in a validated request. Raises `InvalidRequest` if its format has no cues."""
    present = [name for name in CUE_LIMITS if name in wire.model_fields_set]
    if present and getattr(wire, format_field) not in CUE_FORMATS:
        formats = " or ".join(f"'{each}'" for each in CUE_FORMATS)
        raise InvalidRequest(f"{prefix}{present[0]}", f"requires the {format_field} {formats}")
    return CueLimits(**{name: getattr(wire, name) for name in CUE_LIMITS})
