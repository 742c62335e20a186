"""Whatever is sent, the worker answers with a code, within its limits, and nothing is left of it.

`scripts/fuzz --minutes 10` sends as much as fits into ten minutes, new each time.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import CONTAINERS, made, mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import (
    as_form,
    as_text,
    boundaries,
    jobs,
    openai_bodies,
    parts,
    renderings,
    texts,
)
from watched import Watched, watched

SEED = int(os.environ.get("FUZZ_SEED", "0"))
"""Zero in the tests, where each run is the same."""
SCALE = int(os.environ.get("FUZZ_SCALE", "1"))

JSON = "application/json"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("scratch")) as opened:
        opened.post("/transcribe", as_form([], b"RIFF", "b"), "multipart/form-data; boundary=b")
        yield opened
        if report := os.environ.get("FUZZ_REPORT"):
            with Path(report).open("a") as file:
                file.write(json.dumps(opened.costs.document()) + "\n")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(tmp_path_factory.mktemp("originals"))


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=examples * SCALE,
        deadline=None,
        derandomize=SEED == 0,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@fuzzed(80)
@given(jobs)
def test_jobs(worker: Watched, job: object) -> None:
    worker.check(worker.job(as_text(job)))


@fuzzed(20)
@given(jobs, st.sampled_from(["'", " nul", " 1.", ":", ",,"]))
def test_jobs_that_are_broken_json(worker: Watched, job: object, rest: str) -> None:
    """Its brackets are whole: else it would be no job among others, but the end of the list."""
    worker.check(worker.job(as_text(job) + rest))


# Each takes most of a second: the loop must not be what parses them.
LARGE = {
    "a thousand recordings with misspelt speakers": {
        "inputs": [{"audio_url": "http://a/b", "known_speakers": [{"nme": "a"}] * 32}] * 1000
    },
    "more values than are parsed": {"inputs": [[]] * 300_000},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_documents(worker: Watched, name: str) -> None:
    text = as_text(LARGE[name])
    worker.check(worker.job(text))
    answer = worker.post("/transcribe", text.encode(), JSON)
    assert answer.status_code in (200, 400), answer.text
    worker.check(answer.json())


@fuzzed(40)
@given(jobs, st.sampled_from([JSON, JSON, "application/json; charset=x", "text/plain", None]))
def test_bodies(worker: Watched, job: object, kind: str | None) -> None:
    answer = worker.post("/transcribe", as_text(job).encode(), kind)
    assert answer.status_code in (200, 400, 401, 403, 404, 413, 415, 503), answer.text
    if answer.headers["content-type"] == JSON:
        worker.check(answer.json())


@fuzzed(40)
@given(openai_bodies)
def test_openai_bodies(worker: Watched, body: object) -> None:
    answer = worker.post("/v1/audio/transcriptions", as_text(body).encode(), JSON)
    assert answer.status_code in (200, 400, 403, 404, 413, 415, 503), answer.text
    if answer.headers["content-type"] == JSON:
        worker.check(answer.json())


@fuzzed(40)
@given(renderings)
def test_render_documents(worker: Watched, document: object) -> None:
    answer = worker.post("/render", as_text(document).encode(), JSON)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        worker.check(answer.json())


@fuzzed(40)
@given(parts, boundaries, st.sampled_from(["/transcribe", "/v1/audio/transcriptions"]), st.data())
def test_forms(
    worker: Watched,
    parts: list[tuple[str, str]],
    boundary: str,
    path: str,
    data: st.DataObject,
) -> None:
    content = as_form(parts, data.draw(st.sampled_from([b"", b"RIFF", b"\0" * 3000])), boundary)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    answer = worker.post(path, content, f"multipart/form-data; boundary={boundary}")
    assert answer.status_code in (400, 404, 413, 415), answer.text
    worker.check(answer.json())


@fuzzed(20)
@given(texts, st.sampled_from(["GET", "POST"]))
def test_paths(worker: Watched, text: str, method: str) -> None:
    path = "/" + text.encode("utf-8", "replace").hex()[:4000]
    answer = worker.post(path, b"", None)
    assert answer.status_code in (404, 405), (method, answer.text)
    worker.check(answer.json())


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(worker: Watched, originals: dict[str, bytes], name: str) -> None:
    """The container is transcribed, and no mutation of it violates a limit."""
    kind = "multipart/form-data; boundary=b"
    answer = worker.post("/transcribe", as_form([], originals[name], "b"), kind)
    assert answer.json().get("text", "").startswith("4"), answer.text
    chance = random.Random(f"{SEED} {name}")  # noqa: S311  # the same for a seed
    for _ in range(2 * SCALE):
        other = chance.choice(list(originals.values()))
        content = mutated(originals[name], other, chance.getrandbits(32))
        answer = worker.post("/transcribe", as_form([], content, "b"), kind)
        assert answer.status_code in (200, 400, 413, 415, 500, 503), answer.text
        worker.check(answer.json())
