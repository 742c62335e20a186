"""What the documents say is what the code does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parakeet_worker.entrypoints.serverless import handler_of
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
from speech import SAMPLES, all_samples

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```json (request|answer|shape)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def generated_pages() -> dict[str, str]:
    import runpy

    module = runpy.run_path(str(ROOT / "scripts" / "docs.py"))
    pages: dict[str, str] = module["pages"]()
    return pages


@pytest.mark.parametrize("name", ["configuration.md", "errors.md", "cli.md"])
def test_a_generated_page_is_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generated_pages()[name], "run scripts/docs"


def examples() -> Iterator[tuple[Any, str, Any]]:
    """Request, kind of expectation, expectation, for every request in docs/calling.md."""
    blocks = _BLOCK.findall((ROOT / "docs" / "calling.md").read_text())
    requests = [index for index, (kind, _) in enumerate(blocks) if kind == "request"]
    for index in requests:
        kind, expected = blocks[index + 1]
        assert kind != "request", "every request in the document has its answer"
        yield json.loads(blocks[index][1]), kind, json.loads(expected)


def with_audio(value: Any) -> Any:
    """Put the recording where the document names it."""
    if isinstance(value, dict):
        return {key: with_audio(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_audio(item) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        return next(entry.base64 for entry in all_samples() if entry.file == value[1:])
    return value


def with_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: with_text(item) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("@"):
        return next(entry.text for entry in all_samples() if entry.file == value[1:])
    return value


def shape(value: Any, of: Any) -> Any:
    """`value` reduced to what `of` says of it: keys, types, and one element of a uniform list."""
    if isinstance(of, dict):
        assert isinstance(value, dict)
        assert set(value) >= set(of), f"{sorted(of)} in {sorted(value)}"
        assert set(value) - set(of) <= {"warnings", "nearest"}
        return {key: shape(value[key], of[key]) for key in of}
    if isinstance(of, list):
        assert isinstance(value, list)
        assert bool(value) == bool(of)
        if len(of) == len(value):
            return [shape(item, one) for item, one in zip(value, of, strict=True)]
        (one,) = of
        return [shape(item, one) for item in value][:1]
    if of == "...":
        assert isinstance(value, str)
        assert value
        return of
    if isinstance(of, str):
        return value
    assert type(value) is type(of)
    return of


@pytest.mark.parametrize(("request_", "kind", "expected"), list(examples()))
async def test_every_example_of_calling_is_answered_as_it_says(
    tmp_path: Path, request_: Any, kind: str, expected: Any
) -> None:
    with open_pipeline(Settings(model="demo", scratch=tmp_path)) as pipeline:
        answer = await handler_of(pipeline)({"id": "1", "input": with_audio(request_)})
    if kind == "answer":
        assert answer == with_text(expected)
    else:
        assert shape(answer, expected) == expected


def test_the_python_of_the_readme_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    said: list[str] = []
    script = code.replace("samples/", f"{SAMPLES}/").replace("print(", "said.append(")
    exec(compile(script, "README.md", "exec"), {"said": said})  # noqa: S102  # it is ours
    english = next(entry for entry in all_samples() if entry.file == "en.ogg")
    assert said[0] == english.text
    assert said[1].startswith("1\n00:00:0")


def test_every_file_that_architecture_names_is_there_and_no_module_is_missing() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    package = ROOT / "src" / "parakeet_worker"
    found = [name for name in named if (package / name).exists() or (ROOT / name).exists()]
    rows = [name for name in named if "/" in name or name.endswith(".py")]
    assert set(rows) <= set(found), sorted(set(rows) - set(found))
    modules = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name not in ("sources", "outputs")
    }
    assert modules <= set(named), sorted(modules - set(named))


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md"))
)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [
        link
        for link in links
        if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []
