"""The engine's contract on the device, beyond `test_engine_contract`.

With the demo checkpoint, so that real words are compared.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.gpu import searching, sounds
from bench.gpu.comparing import differing_tokens, texts, tokens_of
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


def test_words_equal_those_of_float32_on_the_cpu(engine: GpuEngine, chunks: list[Pcm]) -> None:
    """Except for a few tokens per thousand with nearly equal scores."""
    with plain(DEMO, "fp32", "cpu") as reference:
        expected = tokens_of(reference.transcribe(chunks))
    assert sum(map(len, expected)) > 10 * len(chunks)
    assert differing_tokens(tokens_of(engine.transcribe(chunks)), expected) <= 5


def test_reproducible_texts_are_the_same_alone_in_a_batch_and_in_any_order(
    reproducible: GpuEngine, chunks: list[Pcm]
) -> None:
    together = tokens_of(reproducible.transcribe(chunks))
    alone = [tokens_of(reproducible.transcribe([chunk]))[0] for chunk in chunks]
    order = np.random.default_rng(0).permutation(len(chunks))
    shuffled = tokens_of(reproducible.transcribe([chunks[index] for index in order]))
    assert alone == together
    assert shuffled == [together[index] for index in order]


def test_default_texts_differ_in_a_batch_in_at_most_one_chunk(
    engine: GpuEngine, chunks: list[Pcm]
) -> None:
    """The limit is 1 per thousand chunks; these are fewer."""
    together = texts(engine.transcribe(chunks))
    alone = [texts(engine.transcribe([chunk]))[0] for chunk in chunks]
    assert sum(one != other for one, other in zip(alone, together, strict=True)) <= 1


def test_two_batches_in_flight_equal_each_batch_alone(
    reproducible: GpuEngine, chunks: list[Pcm]
) -> None:
    """While one is searched, the next is encoded from the other slot of the ring."""
    batches = [chunks[:2], chunks[2:4], chunks[4:], chunks[:1]]
    expected = [tokens_of(reproducible.transcribe(batch)) for batch in batches]
    for _ in range(3):
        pending = [reproducible.submit(batch) for batch in batches[:2]]
        actual = []
        for batch in batches[2:]:
            actual.append(tokens_of(pending.pop(0).result()))
            pending.append(reproducible.submit(batch))
        actual += [tokens_of(batch.result()) for batch in pending]
        assert actual == expected


def test_short_and_empty_chunks_are_transcribed(engine: GpuEngine, chunks: list[Pcm]) -> None:
    assert engine.transcribe([]) == []
    for length in (0, 1, 159, 160, 1279, 1280):
        batched, alone = engine.transcribe([chunks[0], chunks[0][:length]])
        assert isinstance(alone, Hypothesis)
        assert isinstance(batched, Hypothesis)
        assert batched.tokens
        assert all(token.frame <= 1 for token in alone.tokens)
    (nothing,) = engine.transcribe([np.zeros(0, np.int16)])
    assert isinstance(nothing, Hypothesis)
    assert not nothing.tokens


def test_int16_and_float32_may_be_mixed(reproducible: GpuEngine, chunks: list[Pcm]) -> None:
    floats = [chunk.astype(np.float32) / 32768 for chunk in chunks[:4]]
    expected = tokens_of(reproducible.transcribe(chunks[:4]))
    mixed = [chunks[0], floats[1], chunks[2], floats[3]]
    assert tokens_of(reproducible.transcribe(mixed)) == expected


def test_a_chunk_with_non_finite_values_fails_alone(engine: GpuEngine, chunks: list[Pcm]) -> None:
    damaged = chunks[1].astype(np.float32) / 32768
    damaged[len(damaged) // 2] = np.nan
    first, failed, last = engine.transcribe([chunks[0], damaged, chunks[2]])
    assert isinstance(failed, NotFinite)
    assert texts([first, last]) == texts(engine.transcribe([chunks[0], chunks[2]]))


def test_a_script_applies_to_its_row_only(reproducible: GpuEngine, chunks: list[Pcm]) -> None:
    unrestricted = texts(reproducible.transcribe(chunks))
    scripts: list[Script | None] = ["Greek" if row % 2 else None for row in range(len(chunks))]
    for row, outcome in enumerate(reproducible.transcribe(chunks, scripts)):
        assert isinstance(outcome, Hypothesis)
        script = scripts[row]
        if script is None:
            assert texts([outcome]) == [unrestricted[row]]
        else:
            assert all(allowed(token.piece, script) for token in outcome.tokens)


def test_a_chunk_too_long_to_be_packed_is_transcribed(engine: GpuEngine) -> None:
    """By the plain encoder, up to the end of the chunk."""
    (outcome,) = engine.transcribe(sounds.chunks(83.0, 1))
    assert isinstance(outcome, Hypothesis)
    assert len(outcome.tokens) > 100
    assert max(token.frame for token in outcome.tokens) > 80 / outcome.frame_seconds


def test_the_search_in_graphs_equals_the_greedy_decoder(setup: Setup, chunks: list[Pcm]) -> None:
    """In float32, where only ties may be decided differently."""
    model = loaded(setup, DEMO, "fp32")
    with torch.inference_mode():
        states, lengths = searching._states(model, chunks)
        expected = searching._greedy(model, states, lengths)
        search = model.search()
        search.capture()
        actual = [searching._tokens(row) for row in search.decode(states, lengths).rows]
    assert sum(map(len, expected)) > 10 * len(chunks)
    assert differing_tokens(actual, expected) <= 1


def test_a_batch_of_the_full_capacity_is_transcribed(engine: GpuEngine, setup: Setup) -> None:
    capacity = engine.capacity(30.0)
    assert capacity.packed
    assert capacity.seconds >= 30
    if setup.cuda:
        count = int(capacity.seconds // 30)
        outcomes = engine.transcribe(sounds.chunks(30.0, count))
        assert all(isinstance(outcome, Hypothesis) for outcome in outcomes)
    assert engine.transcribe([np.zeros(SAMPLE_RATE, np.int16)] * min(512, capacity.chunks))
