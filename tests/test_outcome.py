"""The outcome of every recording is reported once."""

import asyncio

import pytest

from parakeet_worker.errors import AudioMissing
from parakeet_worker.outcome import Outcome, observing
from parakeet_worker.recognition.transcript import Transcript

TRANSCRIPT = Transcript((), seconds=3.0)


def observe_failing(outcomes: list[Outcome], failure: BaseException) -> None:
    with observing(outcomes.append) as observation:
        observation.transcript = TRANSCRIPT
        raise failure


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (AudioMissing(), "audio_missing"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (KeyError("x"), "internal_error"),
    ],
)
def test_a_failure_is_reported_by_its_code_and_propagates(
    failure: BaseException, code: str
) -> None:
    outcomes: list[Outcome] = []
    with pytest.raises(type(failure)):
        observe_failing(outcomes, failure)
    (outcome,) = outcomes
    assert outcome.code == code
    assert outcome.transcript is None
    assert set(outcome.stage_seconds) == {"total"}


async def test_a_transcript_is_reported_with_the_seconds_of_its_stages() -> None:
    outcomes: list[Outcome] = []
    with observing(outcomes.append) as observation:
        await observation.watch.timed("fetch", asyncio.sleep(0))
        observation.transcript = TRANSCRIPT
        assert outcomes == []
    (outcome,) = outcomes
    assert outcome.code is None
    assert outcome.transcript is TRANSCRIPT
    assert list(outcome.stage_seconds) == ["fetch", "total"]
