"""A validation error is one sentence that names the field and, if wrong, the type of its value."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.wire.validation import MAX_FIELDS, WireModel, choices, first_problem


class Inner(WireModel):
    name: Annotated[str, Field(min_length=1)]
    mode: Literal["fast", "slow"] = "fast"


class Outer(WireModel):
    count: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=2)] | None = None
    inner: Inner | None = None
    items: list[Inner] | None = None
    flag: bool = False


def error(payload: object) -> InvalidRequest:
    with pytest.raises(ValidationError) as failure:
        Outer.model_validate(payload)
    return first_problem(failure.value, Outer).error()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"flag": 1}, "flag: must be a valid boolean, got a number"),
        ({"count": 0}, "count: must be greater than or equal to 1"),
        ({"count": "x"}, "count: must have at least 2 characters"),
        ({"count": []}, "count: must be a valid integer or a valid string, got a list"),
        ({"inner": {}}, "inner.name: is required"),
        ({"inner": "x"}, "inner: must be an object, got a string"),
        ({"inner": {"nmae": "x"}}, "inner.nmae: no such field; did you mean 'name'?"),
        ({"inner": {"name": ""}}, "inner.name: must have at least 1 character"),
        (
            {"inner": {"name": "x", "mode": "fats"}},
            "inner.mode: must be 'fast' or 'slow'; did you mean 'fast'?",
        ),
        ({"inner": {"name": "x", "mode": 3}}, "inner.mode: must be 'fast' or 'slow', got a number"),
        (
            {"items": [{"name": "a"}, {"name": 7}]},
            "items.1.name: must be a valid string, got a number",
        ),
        ({"items": [{"name": "a", "x": 1}]}, "items.0.x: no such field"),
        ({"inner": {"name": "\ud800"}}, "inner.name: contains a lone surrogate"),
        ([], "body: must be an object, got a list"),
        ({str(n): n for n in range(33)}, f"body: has 33 fields, limit {MAX_FIELDS}"),
    ],
)
def test_an_error_names_the_field_and_the_reason(payload: Any, message: str) -> None:
    assert str(error(payload)) == f"invalid_request: {message}"


def test_choices_are_the_values_of_a_literal_inside_other_types() -> None:
    assert choices(list[Literal["a", "b"]] | None) == ["a", "b"]
    assert choices(Annotated[Literal["a"], Field()]) == ["a"]
    assert choices(str | None) == []
