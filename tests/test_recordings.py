"""Every kind of recording in docs/recordings.md: its words, their times, and its warnings."""

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from http_server import serving_pipeline
from odd_recordings import CASES, SPEECH, Case
from parakeet_worker.answers import answer
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
from recordings import decode

Answers: TypeAlias = Mapping[str, dict[str, Any]]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recordings.md"
TOLERANCE_SECONDS = 0.17
_CONCURRENCY = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recordings, and the sample that they were made from."""
    made, kept = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("recordings")
    samples = decode(SPEECH)
    for name, case in CASES.items():
        case.make(made / name, samples)
        (made / name).rename(kept / name)
    (kept / SPEECH.name).write_bytes(SPEECH.read_bytes())
    return kept


@pytest.fixture(scope="module")
def in_process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """As the queue's jobs are answered, and over HTTP, by one engine."""
    settings = Settings(model="demo", scratch=tmp_path_factory.mktemp("demo"))
    with open_pipeline(settings) as pipeline:
        return asyncio.run(_transcribed(pipeline, settings, sorted(folder.iterdir())))


async def _transcribed(pipeline: Pipeline, settings: Settings, paths: list[Path]) -> Answers:
    places = asyncio.Semaphore(_CONCURRENCY)

    async with serving_pipeline(pipeline, settings) as server:

        async def job(path: Path) -> tuple[str, Any]:
            content = b64encode(path.read_bytes()).decode()
            async with places:
                payload = {"audio_base64": content, "format": "verbose_json"}
                return f"job {path.name}", await answer(pipeline, payload)

        async def request(path: Path) -> tuple[str, Any]:
            async with places:
                files = {"file": (path.name, path.read_bytes())}
                fields = {"format": "verbose_json"}
                response = await server.client.post("/transcribe", files=files, data=fields)
            return f"http {path.name}", response.json()

        return dict(await asyncio.gather(*map(job, paths), *map(request, paths)))


@pytest.fixture(scope="module")
def by_command(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """One run of the command over the whole folder."""
    target = tmp_path_factory.mktemp("results")
    program = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "transcribe", "--quiet"]
    options = ["--model", "demo", "--format", "verbose_json", "-o", str(target)]
    ran = subprocess.run(
        [*program, *options, str(folder)],
        env={**os.environ, "PARAKEET_SCRATCH": str(tmp_path_factory.mktemp("scratch"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    names = {path: path.name.removesuffix(".json") for path in target.rglob("*.json")}
    # A name that no other recording has is without its ending there.
    endings = {Path(name).stem: name for name in (*CASES, SPEECH.name)}
    return {
        f"command {endings.get(name, name)}": json.loads(path.read_text())
        for path, name in names.items()
    }


def matched(clean: list[dict[str, Any]], actual: list[dict[str, Any]], case: Case) -> list[float]:
    """Difference between the start of each matched word and its expected start."""
    differences, at = [], 0
    for word in clean:
        later = case.late_seconds if word["start"] >= case.late_from else 0.0
        for index in range(at, len(actual)):
            if actual[index]["word"] == word["word"]:
                differences.append(abs(actual[index]["start"] - word["start"] - later))
                at = index + 1
                break
    return differences


def expected(clean: list[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """The expected words of a case."""
    if case.lost is None:
        return clean
    begin, end = case.lost
    return [word for word in clean if word["end"] < begin or word["start"] > end]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route", ["job", "http", "command"])
def test_a_recording_of_each_kind_has_its_words_at_their_times(
    route: str, name: str, request: pytest.FixtureRequest
) -> None:
    answers = request.getfixturevalue("by_command" if route == "command" else "in_process")
    case, document = CASES[name], answers[f"{route} {name}"]
    words = expected(answers[f"{route} {SPEECH.name}"]["words"], case)
    differences = matched(words, document["words"], case)
    assert len(differences) == len(words)
    assert max(differences, default=0.0) <= TOLERANCE_SECONDS
    assert tuple(each["code"] for each in document.get("warnings", ())) == case.codes


def test_the_page_lists_every_kind() -> None:
    page = PAGE.read_text()
    rows = [f"| `{name}` | {case.done} | {codes(case)} |" for name, case in CASES.items()]
    assert [row for row in rows if row not in page] == []


def codes(case: Case) -> str:
    return ", ".join(f"`{code}`" for code in dict.fromkeys(case.codes)) or "none"
