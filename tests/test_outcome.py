"""Whatever becomes of a recording, whoever wants to know is told once."""

import asyncio

import pytest

from parakeet_worker.errors import AudioMissing
from parakeet_worker.outcome import Outcome, observing
from parakeet_worker.recognition.transcript import Transcript

HEARD = Transcript((), seconds=3.0)


def observe_failing(told: list[Outcome], failure: BaseException) -> None:
    with observing(told.append) as observation:
        observation.transcript = HEARD
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
def test_a_failure_is_told_by_its_code_and_goes_on_its_way(
    failure: BaseException, code: str
) -> None:
    told: list[Outcome] = []
    with pytest.raises(type(failure)):
        observe_failing(told, failure)
    (outcome,) = told
    assert outcome.code == code
    assert outcome.transcript is None
    assert set(outcome.stage_seconds) == {"total"}


async def test_what_was_heard_is_told_with_the_seconds_of_its_stages() -> None:
    told: list[Outcome] = []
    with observing(told.append) as observation:
        await observation.watch.timed("fetch", asyncio.sleep(0))
        observation.transcript = HEARD
        assert told == []
    (outcome,) = told
    assert outcome.code is None
    assert outcome.transcript is HEARD
    assert list(outcome.stage_seconds) == ["fetch", "total"]
