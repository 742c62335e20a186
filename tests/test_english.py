"""The project is written in standard technical English: `english.py` finds idioms."""

import pytest

from english import ALLOWED, EXCLUDED, IDIOMS, NAME_PARTS, NAMES, ROOT, check_file, files
from english import check_python as python
from english import check_text as text


def test_the_project_has_no_idioms():
    findings = [finding for file in files([ROOT]) for finding in check_file(file)]
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize(
    ("source", "line", "finding"),
    [
        ("# Whoever calls first.", 1, "Whoever"),
        ('"""A summary.\n\nThe buffer is put aside."""', 3, "aside"),
        ('raise ValueError("the server stood still")', 1, "stood"),
        ("# All files are opened at\n# once.", 1, "at once"),
        ('message = f"{name} wants a key"', 1, "wants"),
        ("def test_nobody_waits():\n    pass", 1, "test_nobody_waits [nobody]"),
        ("x = 1\ntold = x", 2, "told [told]"),
        ("class Hearing:\n    pass", 1, "Hearing [hearing]"),
        ("given_seconds = 1\nfound = 2", 2, "found"),
        ("# Here we use a lock.", 1, "we use"),
        ("# Requests of\n# every way in.", 2, "every way in"),
        ('"""One chunk is always let in."""', 1, "let in"),
    ],
)
def test_idioms_in_a_module_are_found_with_their_line(source, line, finding):
    assert [(f.line, f.text) for f in python(source, "module.py")] == [(line, finding)]


def test_a_name_is_reported_once_per_file():
    source = "told = 1\ntold += 1\n"
    assert [finding.line for finding in python(source, "module.py")] == [1]


@pytest.mark.parametrize(
    "source",
    [
        "from hypothesis import given\n\n\n@given(x=1)\ndef test_x(x):\n    pass",
        "status = HTTPStatus.GONE",
        "given_names = found_names = 1",
        "# The client closes the connection; the server answers 503.",
    ],
)
def test_names_of_other_libraries_and_plain_english_are_accepted(source):
    assert not [*python(source, "module.py")]


def test_idioms_in_a_document_are_found_with_their_line():
    document = "# Title\n\nThe caller is told, and the\nrecording is mended.\n"
    assert [(f.line, f.text) for f in text(document, "page.md")] == [(3, "told"), (4, "mended")]


def test_an_allowed_phrase_is_exempt_but_not_its_words():
    assert not [*text("he'll realise.", "page.md")]
    assert {f.text for f in text("then he realised", "page.md")} == {"he"}


def test_every_allowed_phrase_occurs():
    texts = " ".join(file.read_text() for file in files([ROOT]))
    texts = " ".join(texts.split())
    assert [phrase for phrase in ALLOWED if phrase not in texts] == []


def test_every_excluded_path_exists():
    assert [path for path in EXCLUDED if not (ROOT / path).exists()] == []


def test_every_idiom_has_advice():
    assert all([*IDIOMS.values(), *NAME_PARTS.values(), *NAMES.values()])
