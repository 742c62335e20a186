"""The documentation matches the code: examples, generated pages, links, names and codes."""

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from loopback import S3Server, WebServer, takes
from parakeet_worker import answers, errors
from parakeet_worker.bootstrap.settings import NAMES as BOOTSTRAP_NAMES
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.entrypoints.queue.main import handler_of
from parakeet_worker.settings import Settings, variable
from parakeet_worker.worker import open_pipeline
from speech import SAMPLES, all_samples

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```json (request|segment|answer|shape)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@cache
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "docs.py"))


@cache
def generated_pages() -> dict[str, str]:
    pages: dict[str, str] = generator()["pages"]()
    return pages


def test_the_sections_of_the_settings_start_at_fields() -> None:
    assert set(generator()["_SECTIONS"]) <= set(Settings.model_fields)


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_and_tables_are_current(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    assert page == generated_pages().get(name, page), "run scripts/docs"


def test_every_table_is_in_one_page() -> None:
    pages = "".join(generated_pages().values())
    assert sorted(re.findall(r"^<!-- generated: (.*) -->$", pages, re.MULTILINE)) == sorted(
        generator()["TABLES"]
    )


def test_every_row_of_a_generated_table_has_a_meaning() -> None:
    for name, table in generator()["TABLES"].items():
        head, _, *rows = table().splitlines()
        assert rows, name
        for row in rows:
            cells = row.replace(r"\|", "").split("|")
            assert len(cells) == len(head.split("|")), row
            assert cells[-2].strip(), row


def examples() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every request in docs/calling.md, and its expected results by kind."""
    blocks = _BLOCK.findall((ROOT / "docs" / "calling.md").read_text())
    requests = [index for index, (kind, _) in enumerate(blocks) if kind == "request"]
    for index, after in pairwise([*requests, len(blocks)]):
        expected = {kind: json.loads(text) for kind, text in blocks[index + 1 : after]}
        assert len(expected) == after - index - 1 > 0, "every request in the document has a result"
        yield json.loads(blocks[index][1]), expected


def with_audio(value: Any) -> Any:
    """Replace the name of a sample by its content."""
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
    """`value` reduced to the keys and types of `of`, and one element of a uniform list."""
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


@pytest.mark.parametrize(("request_", "expected"), list(examples()))
async def test_every_request_in_calling_has_the_documented_result(
    tmp_path: Path, web: WebServer, s3: S3Server, request_: Any, expected: dict[str, Any]
) -> None:
    written: list[bytes] = []
    job_input = with_audio(request_)
    if "output_url" in job_input:
        path = urlsplit(job_input["output_url"]).path
        job_input["output_url"] = web.at(path, takes(written)) + "?signature=..."
    settings = Settings(
        model="demo",
        scratch=tmp_path,
        allow_private_addresses=True,
        # Forces an upload if the request names a location.
        max_result_bytes=200 if {"output_url", "output_s3"} & set(job_input) else 10_000_000,
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_bucket=s3.bucket,
    )
    with open_pipeline(settings) as pipeline:
        answer = await handler_of(pipeline)({"id": "1", "input": job_input})
        if "segment" in expected:
            parts = [part async for part in answers.stream(pipeline, job_input)]
            assert parts.pop().document == answer
            for part in parts:
                segment = {"segment": part.document}
                assert shape(segment, expected["segment"]) == expected["segment"]
    if "answer" in expected:
        assert answer == with_text(expected["answer"])
    else:
        assert shape(answer, expected["shape"]) == expected["shape"]
    assert len(written) == ("output_url" in job_input)


def test_the_python_of_the_readme_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    printed: list[str] = []
    script = code.replace("samples/", f"{SAMPLES}/").replace("print(", "printed.append(")
    exec(compile(script, "README.md", "exec"), {"printed": printed})  # noqa: S102
    english = next(entry for entry in all_samples() if entry.file == "en.ogg")
    assert printed[0] == english.text
    assert printed[1].startswith("1\n00:00:0")


def test_the_examples_of_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    local = [code for code in examples if "open_model" in code]
    assert len(local) == 5
    (tmp_path / "talk.ogg").write_bytes((SAMPLES / "en.ogg").read_bytes())
    monkeypatch.chdir(tmp_path)
    text = next(entry.text for entry in all_samples() if entry.file == "en.ogg")
    printed = []
    for code in local:
        exec(compile(code, "python.md", "exec"), {})  # noqa: S102
        printed.append(capsys.readouterr().out)
    words, samples, threads, formats, failures = printed
    assert words.splitlines()[0] == text
    assert [line.split()[3] for line in words.splitlines()[1:]] == text.split()
    assert samples == f"{text}\n''\n"
    assert threads == f"{text}\n" * 8
    assert "WEBVTT" in formats
    assert '"uncovered": []' in formats
    assert failures.startswith("audio_undecodable {")
    assert "\nclip_outside: " in failures


def test_architecture_lists_every_module_and_only_existing_files() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    package = ROOT / "src" / "parakeet_worker"
    existing = [name for name in named if (package / name).exists() or (ROOT / name).exists()]
    rows = [name for name in named if "/" in name or name.endswith(".py")]
    assert set(rows) <= set(existing), sorted(set(rows) - set(existing))
    modules = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name not in ("sources", "outputs")
    }
    assert modules <= set(named), sorted(modules - set(named))


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md"))
)
def test_every_link_of_a_page_has_a_target(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [
        link
        for link in links
        if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []


@pytest.mark.parametrize(
    "page", [*PAGES, "../README.md", "../CONTRIBUTING.md", "../bench/README.md"]
)
def test_every_script_test_and_command_in_a_page_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    paths = re.findall(r"\b(?:tests|scripts|bench|samples)/[a-z][\w./-]+\w", text)
    paths = [path for path in paths if "NAME" not in path]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = re.findall(r"python -m (bench[\w.]+)", text) + re.findall(
        r"scripts/bench (\w+)", text
    )
    files = [ROOT / f"{'bench/' * ('.' not in name)}{name.replace('.', '/')}" for name in modules]
    assert [file for file in files if not (file.is_dir() or file.with_suffix(".py").exists())] == []
    commands = set(re.findall(r"`parakeet ([a-z-]+)\b", text))
    assert commands <= set(main.commands)


def command_lines(page: str) -> list[str]:
    """Every `parakeet` command in a block of a page, and those in its text that name a file."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```(?:sh|bash|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = (re.search(r"(?:^|\| |=\S* |[A-Z]\S+ )(parakeet .*)", line) for line in lines)
    in_text = re.findall(r"`(parakeet [a-z-]+ [^`]*\w\.\w+)`", text)
    return [*in_text, *(command[1] for command in commands if command)]


@pytest.mark.parametrize("page", [*PAGES, "../README.md", "../bench/README.md"])
def test_every_documented_command_line_is_accepted(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks").mkdir()
    for line in command_lines(page) if page != "cli.md" else []:
        name, *arguments = shlex.split(line, comments=True)[1:]
        main.commands[name].make_context(name, arguments)


def test_there_are_command_lines() -> None:
    assert len(command_lines("client.md")) == 5
    assert len(command_lines("../README.md")) == 4
    assert len(command_lines("serving.md")) == 2
    assert "parakeet transcribe --speakers talk.mp3" in command_lines("speakers.md")


FAMILIES = {
    "Request errors": errors.RequestError,
    "Transient errors": errors.TransientError,
    "Engine errors": errors.EngineError,
    "Setup errors": errors.SetupError,
}


@pytest.mark.parametrize("title", FAMILIES)
def test_troubleshooting_lists_every_code_with_cause_and_remedy(title: str) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    section = page.partition(f"### {title}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert [code for code, _, _ in rows] == [kind.code for kind in FAMILIES[title].__subclasses__()]


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_and_code_in_a_page_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    known = {variable(field) for field in Settings.model_fields} | BOOTSTRAP_NAMES
    assert set(re.findall(r"\b(?:PARAKEET|S3)_[A-Z0-9_]+\b", text)) <= known
    codes = {kind.code for family in FAMILIES.values() for kind in family.__subclasses__()}
    assert set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`: ", text)) <= codes


def endpoints() -> list[dict[str, Any]]:
    text = (ROOT / "docs" / "deploying.md").read_text()
    blocks = re.findall(r"^```json endpoint\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [json.loads(block) for block in blocks]


# The fields of RunPod's API for new endpoints (August 2026), with their types or values.
ENDPOINT: dict[str, Any] = {
    "name": str, "type": {"QUEUE", "LOAD_BALANCER"}, "image": str, "timeout": int, "disk": int,
    "flashboot": {"OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"}, "env": dict, "ports": list,
    "networkVolumes": list, "gpu": {"pools", "count", "minCudaVersion"},
    "workers": {"min", "max", "idleTimeout"}, "scaling": {"type", "queueDelay", "requestCount"},
}  # fmt: skip


@pytest.mark.parametrize("body", endpoints(), ids=lambda body: body["name"])
def test_every_endpoint_in_deploying_is_valid_for_runpods_api(body: dict[str, Any]) -> None:
    assert {"name", "type", "image", "scaling"} <= set(body) <= set(ENDPOINT)
    for key, value in body.items():
        allowed = ENDPOINT[key]
        if isinstance(allowed, type):
            assert isinstance(value, allowed), key
        else:
            assert (set(value) if isinstance(value, dict) else {value}) <= allowed, key
    scaled = {"QUEUE_DELAY": "queueDelay", "REQUEST_COUNT": "requestCount"}
    assert set(body["scaling"]) == {"type", scaled[body["scaling"]["type"]]}
    balanced = body["type"] == "LOAD_BALANCER"
    assert (body["scaling"]["type"] == "REQUEST_COUNT") == balanced
    if balanced:
        port = body["env"]["PORT"]
        assert body["env"]["PORT_HEALTH"] == port
        assert body["ports"] == [f"{port}/http"]


def test_the_endpoints_in_deploying_match_the_images_cuda_and_targets() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for body in endpoints():
        assert f"nvidia/cuda:{body['gpu']['minCudaVersion']}." in dockerfile
        assert f" AS {body['image'].rpartition(':')[2]}\n" in dockerfile
        assert ("networkVolumes" in body) == body["image"].endswith(":volume")


def test_deploying_lists_every_build_argument_with_its_default() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    table = page.partition("| build argument |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    named = [name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)]
    arguments = dict(
        re.findall(r"^ARG (\w+)=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    )
    assert sorted(named) == sorted(arguments)
    for cell, default in rows:
        (name, *_) = re.findall(r"`(\w+)`", cell)
        assert f"`{arguments[name]}`" in default


@pytest.mark.parametrize("page", PAGES)
def test_every_link_between_docs_has_a_page_and_a_heading(page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / page).read_text())
    for link in links:
        name, _, heading = link.partition("#")
        if not name.endswith(".md") and name:
            assert "://" in name or (ROOT / "docs" / name).exists(), link
            continue
        target = (ROOT / "docs" / (name or page)).read_text()
        titles = re.findall(r"^#+ (.+)$", target, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, link
