"""JSON is parsed as the standard library parses it, and what is beyond the bounds is refused."""

import json

import pytest

from parakeet_worker import json_parsing
from parakeet_worker.json_parsing import MAX_DEPTH, MAX_VALUES, NotParsed, items, string_field


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "ä😀", [], {}, [1, {"a": [None, {"b": "c"}]}]]
)
def test_values_are_those_of_the_standard_library(value):
    text = json.dumps(value)
    assert json_parsing.parse(text) == value
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert json_parsing.parse(text.encode(encoding)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("9" * 5000, "not JSON"),
        (b'"\xff"', "not JSON"),
        (nested(MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (nested(100_000), f"nested more than {MAX_DEPTH} deep"),
        ('{"a":' * 1000 + "1" + "}" * 1000, f"nested more than {MAX_DEPTH} deep"),
        ("[" + "0," * MAX_VALUES + "0]", f"more than {MAX_VALUES} values"),
        ("[" + "{}," * MAX_VALUES + "0]", f"more than {MAX_VALUES} values"),
    ],
)
def test_what_is_no_json_or_beyond_the_bounds_is_refused_in_one_short_sentence(text, reason):
    with pytest.raises(NotParsed, match=reason) as raised:
        json_parsing.parse(text)
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


def test_the_bounds_themselves_are_within():
    json_parsing.parse(nested(MAX_DEPTH))
    json_parsing.parse("[" + "0," * (MAX_VALUES - 1) + "0]")


ODD = [
    {"id": "a"},
    {"id": 'q"u\\o\\"te', "input": {"id": "inner", "x": "}]{[\\\\"}},
    {"input": ["id", "id", {"id": "inner"}], "id": "😀 ä"},
    {"input": "id"},
    {},
]


@pytest.mark.parametrize("indent", [None, 2])
def test_items_and_their_strings_are_found_without_parsing(indent):
    text = json.dumps(ODD, indent=indent)
    assert [json.loads(item) for item in items(text)] == ODD
    for item in ODD:
        alone = json.dumps(item, indent=indent)
        assert items(alone) == [alone]
        assert string_field(alone, "id") == item.get("id")


def test_items_before_a_break_are_found():
    assert items('[{"id": "a"}, {"id": "b", "input": [') == ['{"id": "a"}']
    assert items('[{"id": "a') == []
    assert items("") == items("]]}}") == []


def test_an_item_that_is_too_deep_still_has_its_name():
    deep = f'{{"input": {nested(100_000)}, "id": "a"}}'
    assert items(f"[{deep}, {deep}]") == [deep, deep]
    assert string_field(deep, "id") == "a"
