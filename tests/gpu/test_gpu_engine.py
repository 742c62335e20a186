"""The engine's contract on the device: what `test_engine_contract` asks of every engine, and more.

With the demo checkpoint, so that real words are compared.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.gpu import searching, sounds
from bench.gpu.comparing import differing_tokens, said, texts
from bench.gpu.opening import DEMO, loaded, plain, served
from bench.gpu.parts import Setup
from bench.gpu.sounds import SAMPLE_RATE, Pcm
from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native.gpu_engine import GpuEngine
from parakeet_worker.errors import NotFinite
from parakeet_worker.language import Script, allowed

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def engine(setup: Setup) -> Iterator[GpuEngine]:
    """The default on a GPU: packed, in bfloat16."""
    with served(setup, DEMO, "bf16") as engine:
        yield engine


@pytest.fixture(scope="module")
def reproducible(setup: Setup) -> Iterator[GpuEngine]:
    with served(setup, DEMO, "bf16", reproducible=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def chunks(setup: Setup) -> list[Pcm]:
    return sounds.utterances(setup.count(200, 100, 5))


def test_nothing_is_replaced_by_plain_pytorch(engine: GpuEngine) -> None:
    assert engine.reports
    assert [str(report) for report in engine.reports if report.replaced] == []


def test_words_are_those_of_float32_on_the_processor(engine: GpuEngine, chunks: list[Pcm]) -> None:
    """But for few tokens of a thousand, whose scores were nearly equal."""
    with plain(DEMO, "fp32", "cpu") as reference:
        right = said(reference.transcribe(chunks))
    assert sum(map(len, right)) > 10 * len(chunks)
    assert differing_tokens(said(engine.transcribe(chunks)), right) <= 5


def test_reproducible_texts_are_the_same_alone_in_a_batch_and_in_any_order(
    reproducible: GpuEngine, chunks: list[Pcm]
) -> None:
    together = said(reproducible.transcribe(chunks))
    alone = [said(reproducible.transcribe([chunk]))[0] for chunk in chunks]
    order = np.random.default_rng(0).permutation(len(chunks))
    shuffled = said(reproducible.transcribe([chunks[one] for one in order]))
    assert alone == together
    assert shuffled == [together[one] for one in order]


def test_default_texts_differ_in_a_batch_in_at_most_one_of_a_thousand(
    engine: GpuEngine, chunks: list[Pcm]
) -> None:
    """Of these few, in at most one."""
    together = texts(engine.transcribe(chunks))
    alone = [texts(engine.transcribe([chunk]))[0] for chunk in chunks]
    assert sum(mine != other for mine, other in zip(alone, together, strict=True)) <= 1


def test_two_batches_in_flight_have_the_answers_of_each_alone(
    reproducible: GpuEngine, chunks: list[Pcm]
) -> None:
    """While one is searched the next is encoded, from the other half of the ring."""
    batches = [chunks[:2], chunks[2:4], chunks[4:], chunks[:1]]
    expected = [said(reproducible.transcribe(batch)) for batch in batches]
    for _ in range(3):
        pending = [reproducible.submit(batch) for batch in batches[:2]]
        found = []
        for batch in batches[2:]:
            found.append(said(pending.pop(0).result()))
            pending.append(reproducible.submit(batch))
        found += [said(one.result()) for one in pending]
        assert found == expected


def test_short_and_empty_chunks_are_answered(engine: GpuEngine, chunks: list[Pcm]) -> None:
    assert engine.transcribe([]) == []
    for length in (0, 1, 159, 160, 1279, 1280):
        among, alone = engine.transcribe([chunks[0], chunks[0][:length]])
        assert isinstance(alone, Hypothesis)
        assert isinstance(among, Hypothesis)
        assert among.tokens
        assert all(token.frame <= 1 for token in alone.tokens)
    (nothing,) = engine.transcribe([np.zeros(0, np.int16)])
    assert isinstance(nothing, Hypothesis)
    assert not nothing.tokens


def test_int16_and_float32_may_be_mixed(reproducible: GpuEngine, chunks: list[Pcm]) -> None:
    floats = [chunk.astype(np.float32) / 32768 for chunk in chunks[:4]]
    expected = said(reproducible.transcribe(chunks[:4]))
    mixed = [chunks[0], floats[1], chunks[2], floats[3]]
    assert said(reproducible.transcribe(mixed)) == expected


def test_a_chunk_with_values_that_are_not_finite_fails_alone(
    engine: GpuEngine, chunks: list[Pcm]
) -> None:
    broken = chunks[1].astype(np.float32) / 32768
    broken[len(broken) // 2] = np.nan
    first, failed, last = engine.transcribe([chunks[0], broken, chunks[2]])
    assert isinstance(failed, NotFinite)
    assert texts([first, last]) == texts(engine.transcribe([chunks[0], chunks[2]]))


def test_a_script_holds_for_its_row_alone(reproducible: GpuEngine, chunks: list[Pcm]) -> None:
    plainly = texts(reproducible.transcribe(chunks))
    scripts: list[Script | None] = ["Greek" if row % 2 else None for row in range(len(chunks))]
    found = reproducible.transcribe(chunks, scripts)
    for row, outcome in enumerate(found):
        assert isinstance(outcome, Hypothesis)
        script = scripts[row]
        if script is None:
            assert texts([outcome]) == [plainly[row]]
        else:
            assert all(allowed(token.piece, script) for token in outcome.tokens)


def test_a_chunk_too_long_to_be_packed_is_answered(engine: GpuEngine) -> None:
    """By the plain path; some words of its beginning are those of the beginning alone."""
    whole = sounds.chunks(83.0, 1)[0]
    (outcome,) = engine.transcribe([whole])
    assert isinstance(outcome, Hypothesis)
    assert len(outcome.tokens) > 100
    assert max(token.frame for token in outcome.tokens) > 80 / outcome.frame_seconds


def test_the_search_in_graphs_has_the_tokens_of_the_plain_loop(
    setup: Setup, chunks: list[Pcm]
) -> None:
    """In float32, where only equal scores may be decided otherwise."""
    model = loaded(setup, DEMO, "fp32")
    with torch.inference_mode():
        states, lengths = searching._states(model, chunks)
        expected = searching._plainly(model, states, lengths)
        search = model.search()
        search.capture()
        found = [searching._said(row) for row in search.decode(states, lengths).rows]
    assert sum(map(len, expected)) > 10 * len(chunks)
    assert differing_tokens(found, expected) <= 1


def test_capacity_is_what_batches_hold(engine: GpuEngine, setup: Setup) -> None:
    capacity = engine.capacity(30.0)
    assert capacity.packed
    assert capacity.seconds >= 30
    if setup.cuda:
        count = int(capacity.seconds // 30)
        outcomes = engine.transcribe(sounds.chunks(30.0, count))
        assert all(isinstance(outcome, Hypothesis) for outcome in outcomes)
    assert engine.transcribe([np.zeros(SAMPLE_RATE, np.int16)] * min(512, capacity.chunks))
