"""Every kind of recording in docs/recordings.md: its words, their times, and its warnings."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from odd_recordings import CASES, SPEECH, Case
from parakeet_worker.answers import answer
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
from recordings import decode

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recordings.md"
TOLERANCE_SECONDS = 0.17
_KEPT_SHARE = 0.9


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    settings = Settings(model="demo", scratch=tmp_path_factory.mktemp("demo"))
    with open_pipeline(settings) as opened:
        yield opened


async def transcribed(pipeline: Pipeline, path: Path) -> dict[str, Any]:
    payload = {"audio_base64": b64encode(path.read_bytes()).decode(), "format": "verbose_json"}
    found = await answer(pipeline, payload)
    assert isinstance(found, dict)
    return found


def matched(clean: list[dict[str, Any]], found: list[dict[str, Any]], case: Case) -> list[float]:
    """By how much the start of each word that is found in order differs from what is expected."""
    differences, at = [], 0
    for word in clean:
        later = case.late_seconds if word["start"] >= case.late_from else 0.0
        for index in range(at, len(found)):
            if found[index]["word"] == word["word"]:
                differences.append(abs(found[index]["start"] - word["start"] - later))
                at = index + 1
                break
    return differences


@pytest.mark.parametrize("name", CASES)
async def test_a_recording_of_each_kind_has_its_words_at_their_times(
    name: str, demo: Pipeline, tmp_path: Path
) -> None:
    case, path = CASES[name], tmp_path / name
    case.make(path, decode(SPEECH))
    clean = (await transcribed(demo, SPEECH))["words"]
    document = await transcribed(demo, path)
    differences = matched(clean, document["words"], case)
    assert len(differences) >= _KEPT_SHARE * len(clean)
    assert max(differences) <= TOLERANCE_SECONDS
    assert tuple(each["code"] for each in document.get("warnings", ())) == case.codes


def test_the_page_lists_every_kind() -> None:
    page = PAGE.read_text()
    rows = [f"| `{name}` | {case.done} | {codes(case)} |" for name, case in CASES.items()]
    assert [row for row in rows if row not in page] == []


def codes(case: Case) -> str:
    return ", ".join(f"`{code}`" for code in case.codes) or "none"
