"""The text of validation errors: pydantic's first error, as one sentence about one field."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from parakeet_worker.errors import InvalidRequest, echo, nearest

MAX_FIELDS = 32
"""Fields of one JSON object: each unknown one would become a validation error of its own."""

_KINDS = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_WORDINGS = {
    "extra_forbidden": "no such field",
    "missing": "is required",
    "model_type": "must be an object",
    "string_unicode": "contains a lone surrogate",
}


class WireModel(BaseModel):
    """Base of the types that validate JSON: no conversions, no unknown fields, no NaN."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, value: object) -> object:
        if isinstance(value, Mapping) and len(value) > MAX_FIELDS:
            raise ValueError(too_many("fields", len(value), MAX_FIELDS))
        return value


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with which value."""

    path: tuple[str | int, ...]
    """Field names and list indices; empty for the document itself."""
    reason: str
    value: object
    nearest: str | None = None
    """The valid name or choice that is most similar to the given one."""
    wrong_type: bool = False

    def error(self, prefix: str = "", whole: str = "body") -> InvalidRequest:
        """For the field at `path` after `prefix`; `whole` names the document itself."""
        field = prefix + ".".join(map(str, self.path)) or whole
        got = f", got {kind(self.value)}" if self.wrong_type else ""
        return InvalidRequest(field, self.reason + got, self.nearest)


def first_problem(failure: ValidationError, model: Any) -> Problem:
    """The first error of a validation of `model`; an unknown field before a missing one."""
    errors = failure.errors(include_url=False)
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    path, annotation = _located(first, model)
    same = [error for error in errors if _located(error, model)[0] == path]
    # The members of a union fail one by one: a value out of range is of the right type.
    first = next((error for error in same if not _is_type_error(error["type"])), first)
    wrong_type = _is_type_error(first["type"])
    reasons = [_reason(error) for error in same] if wrong_type else [_reason(first)]
    value = first["input"]
    return Problem(
        path,
        " or ".join(dict.fromkeys(reasons)).replace(" or must be", " or"),
        value,
        _nearest(first["type"], first["loc"][-1] if first["loc"] else "", value, annotation),
        wrong_type or (first["type"] == "literal_error" and not isinstance(value, str)),
    )


def kind(value: object) -> str:
    """The JSON type of a value, with its article."""
    return _KINDS.get(type(value), type(value).__name__)


def too_many(what: str, count: int, limit: int) -> str:
    """The reason for a list or object beyond its limit."""
    return f"has {count} {what}, limit {limit}"


def choices(annotation: Any) -> list[str]:
    """The values of a `Literal`, also inside of an optional, annotated or list type."""
    return [value for each in _members(annotation) if _is_literal(each) for value in get_args(each)]


def _located(error: Any, annotation: Any) -> tuple[tuple[str | int, ...], Any]:
    """The path of an error, and the type there. Members of a union are no part of the path."""
    path: list[str | int] = []
    loc: tuple[int | str, ...] = error["loc"]
    for part in loc:
        models = [each for each in _members(annotation) if _is_model(each)]
        fields = models[0].model_fields if models else {}
        if isinstance(part, int):
            path.append(part)
        elif part in fields:
            path.append(part)
            annotation = fields[part].annotation
        elif models and part == loc[-1] and error["type"] == "extra_forbidden":
            path.append(part)  # an unknown field; the type stays that of the object
    return tuple(path), annotation


def _members(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, without `Annotated`, unions and lists around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType, list):
        for each in get_args(annotation):
            yield from _members(each)
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


def _is_type_error(name: str) -> bool:
    return name.endswith(("_type", "_parsing"))


def _reason(error: Any) -> str:
    if error["type"] in _WORDINGS:
        return _WORDINGS[error["type"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    for old, new in (("Input should be", "must be"), ("String should", "must"), ("should", "must")):
        message = message.replace(old, new)
    return message


def _nearest(name: str, field: object, value: object, annotation: Any) -> str | None:
    if name == "literal_error":
        return nearest(echo(str(value)), choices(annotation))
    if name == "extra_forbidden":
        models = [each for each in _members(annotation) if _is_model(each)]
        return nearest(str(field), list(models[0].model_fields)) if models else None
    return None
