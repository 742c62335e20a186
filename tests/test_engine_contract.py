"""The engine interface, tested with every engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from gpu_on_cpu import gpu_engine
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Engine, Hypothesis, Samples, Waveform
from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.nemo import NemoEngine
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.language import Script, allowed
from parakeet_worker.recognition import transcript
from parakeet_worker.recognition.chunks import Chunk
from parakeet_worker.weights import find
from recordings import decode, tone
from speech import sample
from tiny_model import config, weights, write_nemo

FEATURE_SAMPLES = 160
FRAME_SAMPLES = 1280


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """An engine, and chunks of different lengths that all have tokens."""

    engine: Engine
    pieces: list[Samples]


def tones(_: Path) -> Case:
    pitches = ((440, 3.0), (880, 0.5), (330, 1.7), (550, 0.2), (660, 4.2))
    return Case(ToneEngine(), [tone(hertz, seconds) for hertz, seconds in pitches])


def native_random(folder: Path) -> Case:
    path = write_nemo(folder / "tiny.nemo", tensors=weights(config(), seed=3))
    return Case(NativeEngine.open(path, "cpu"), [noise(length) for length in (3.0, 0.8, 1.7, 4.2)])


def native_demo(_: Path) -> Case:
    return Case(NativeEngine.open(find("demo"), "cpu"), speech())


def gpu_random(folder: Path) -> Case:
    path = write_nemo(folder / "tiny.nemo", tensors=weights(config(), seed=3))
    return Case(gpu_engine(path), [noise(length) for length in (3.0, 0.8, 1.7, 4.2)])


def gpu_demo(_: Path) -> Case:
    return Case(gpu_engine(find("demo")), speech())


def nemo_demo(_: Path) -> Case:
    if find_spec("nemo") is None:
        pytest.skip("NeMo is not in this environment: scripts/test --oracle has it")
    return Case(NemoEngine.open(find("demo"), "cpu"), speech())


def speech() -> list[Samples]:
    return [decode(sample(language).path) for language in ("en", "de", "uk", "el")]


def noise(seconds: float) -> Samples:
    chance = np.random.default_rng(round(seconds * 10))
    return (chance.standard_normal(round(seconds * SAMPLE_RATE)) * 0.1).astype(np.float32)


@pytest.fixture(
    scope="module", params=[tones, native_random, native_demo, gpu_random, gpu_demo, nemo_demo]
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    case: Case = request.param(tmp_path_factory.mktemp("engine"))
    yield case
    case.engine.close()


def emissions(hypothesis: Hypothesis) -> list[tuple[str, int, int]]:
    return [(token.piece, token.frame, token.duration) for token in hypothesis.tokens]


def test_results_are_in_the_order_of_the_chunks(case: Case) -> None:
    hypotheses = case.engine.transcribe(case.pieces)
    assert len(hypotheses) == len(case.pieces)
    assert all(hypothesis.tokens for hypothesis in hypotheses)
    different = {tuple(emissions(hypothesis)) for hypothesis in hypotheses}
    assert len(different) == len(hypotheses), "no two pieces sound alike"


def test_results_do_not_depend_on_the_batch_or_its_order(case: Case) -> None:
    together = [emissions(hypothesis) for hypothesis in case.engine.transcribe(case.pieces)]
    alone = [emissions(case.engine.transcribe([piece])[0]) for piece in case.pieces]
    order = np.random.default_rng(0).permutation(len(case.pieces))
    shuffled = case.engine.transcribe([case.pieces[index] for index in order])
    assert alone == together
    assert [emissions(hypothesis) for hypothesis in shuffled] == [
        together[index] for index in order
    ]


def test_an_empty_batch_has_no_results(case: Case) -> None:
    assert case.engine.transcribe([]) == []


@pytest.mark.parametrize(
    "length",
    [0, 1, FEATURE_SAMPLES, 2 * FEATURE_SAMPLES, FRAME_SAMPLES - 1, FRAME_SAMPLES],
)
def test_a_chunk_of_at_most_one_frame_has_a_result(case: Case, length: int) -> None:
    short = case.pieces[0][:length]
    first, among = case.engine.transcribe([case.pieces[1], short])
    (alone,) = case.engine.transcribe([short])
    assert emissions(among) == emissions(alone)
    assert emissions(first) == emissions(case.engine.transcribe([case.pieces[1]])[0])
    assert all(token.frame <= 1 for token in alone.tokens)


def test_an_empty_chunk_has_no_tokens(case: Case) -> None:
    (hypotheses,) = case.engine.transcribe([np.zeros(0, dtype=np.float32)])
    assert hypotheses.tokens == ()


def test_a_batch_may_mix_int16_and_float32(case: Case) -> None:
    halves = [(piece * 32767).astype(np.int16) for piece in case.pieces]
    floats = [half.astype(np.float32) / 32768 for half in halves]
    expected = case.engine.transcribe(floats)
    mixed: list[Waveform] = [halves[0], floats[1], *halves[2:]]
    assert case.engine.transcribe(mixed) == expected
    assert case.engine.submit(halves).result() == expected


def test_frames_are_monotonic_and_inside_the_chunk(case: Case) -> None:
    for piece, hypothesis in zip(case.pieces, case.engine.transcribe(case.pieces), strict=True):
        frames = [token.frame for token in hypothesis.tokens]
        assert frames == sorted(frames)
        assert frames[0] >= 0
        assert frames[-1] * hypothesis.frame_seconds <= len(piece) / SAMPLE_RATE
        assert all(token.duration >= 0 for token in hypothesis.tokens)


def test_log_probabilities_vary_and_are_at_most_zero(case: Case) -> None:
    hypotheses = case.engine.transcribe(case.pieces)
    logprobs = [token.logprob for hypothesis in hypotheses for token in hypothesis.tokens]
    assert all(-20 < logprob <= 0 for logprob in logprobs)
    assert len(set(logprobs)) > 2, "a constant is no probability"


def test_the_tokens_join_to_the_text(case: Case) -> None:
    for piece, hypothesis in zip(case.pieces, case.engine.transcribe(case.pieces), strict=True):
        text = transcript.stitch(Chunk(0.0, piece), hypothesis).text
        joined = "".join(token.piece for token in hypothesis.tokens)
        assert joined.replace("▁", "") == text.replace(" ", "")


def test_a_script_restricts_its_own_chunk_only(case: Case) -> None:
    free = [emissions(hypothesis) for hypothesis in case.engine.transcribe(case.pieces)]
    turns: tuple[Script | None, ...] = ("Latin", None, "Greek", None)
    scripts = [turns[index % 4] for index in range(len(case.pieces))]
    mixed = case.engine.transcribe(case.pieces, scripts)
    for piece, script, hypothesis, before in zip(case.pieces, scripts, mixed, free, strict=True):
        if script is None:
            assert emissions(hypothesis) == before
        else:
            assert all(allowed(token.piece, script) for token in hypothesis.tokens)
            assert emissions(case.engine.transcribe([piece], [script])[0]) == emissions(hypothesis)


def test_warm_up_and_capacity_do_not_change_results(case: Case) -> None:
    before = case.engine.transcribe(case.pieces)
    case.engine.warm_up(30.0)
    limits = case.engine.capacity(30.0)
    assert limits.seconds >= 30.0
    assert limits.chunks >= 1
    assert limits.alone_seconds >= 30.0
    assert case.engine.transcribe(case.pieces) == before


def test_close_is_idempotent(case: Case) -> None:
    case.engine.close()
    case.engine.close()


def test_a_script_that_is_not_spoken_gives_other_words() -> None:
    engine = NativeEngine.open(find("demo"), "cpu", "fp32")
    russian = decode(sample("ru").path)
    free, kept, latin = (
        "".join(token.piece for token in engine.transcribe([russian], scripts)[0].tokens)
        for scripts in ([], ["Cyrillic"], ["Latin"])
    )
    assert free == kept
    assert free != latin
    assert latin.isascii() or allowed(latin, "Latin")


def test_a_chunk_longer_than_the_cached_positions_is_transcribed_completely(tmp_path: Path) -> None:
    """`pos_emb_max_len` is 5000 frames, 400 s: a size to begin with, not a limit."""
    sections = config()
    assert sections["encoder"]["pos_emb_max_len"] == 5000
    sections["encoder"] |= {"n_layers": 1, "n_heads": 1}
    path = write_nemo(tmp_path / "tiny.nemo", sections, weights(sections))
    (hypotheses,) = NativeEngine.open(path, "cpu").transcribe([noise(404.0)])
    assert max(token.frame for token in hypotheses.tokens) > 5000
