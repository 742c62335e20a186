import json

import pytest

from parakeet_worker import json_encoding


def words(count: int) -> list[dict[str, object]]:
    return [{"word": f"größer {n}", "start": n / 7, "tokens": [1, 2.5, None]} for n in range(count)]


DOCUMENTS: list[object] = [
    {},
    [],
    "text \u2028 “quoted”",
    None,
    {"text": "a", "words": words(5), "empty": [], "none": None, "nested": {"deep": words(40)}},
    {"words": words(1000)},
    {"words": words(32)},
    {"words": words(33)},
    [{"text": "one"}, {"words": words(100)}, {"error": "x: y"}],
    words(500),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
async def test_the_text_equals_that_of_the_library(document: object) -> None:
    expected = json.dumps(document, ensure_ascii=False)
    assert json_encoding.encoded(document) == expected
    assert await json_encoding.encoded_in_thread(document) == expected


@pytest.mark.parametrize("count", [1, 100])
def test_what_json_has_no_word_for_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_encoding.encoded({"words": [*words(count), {"start": float("nan")}]})


def test_a_long_list_is_written_in_parts() -> None:
    assert len([*json_encoding._parts({"words": words(1000)})]) > 30
