import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.engine.tones import ToneEngine
from recordings import noise, silence, tone

PITCHES = [110, 220, 440, 880, 1000, 1760, 3000, 7000]


def transcribe(*batch: Samples) -> list[Hypothesis]:
    return ToneEngine().transcribe(batch)


def pieces_of(samples: Samples) -> list[str]:
    (hypothesis,) = transcribe(samples)
    return [token.piece for token in hypothesis.tokens]


@pytest.mark.parametrize("hertz", PITCHES)
@pytest.mark.parametrize("level", [0.02, 0.9])
def test_a_tone_is_transcribed_to_its_frequency(hertz, level):
    assert pieces_of(tone(hertz, 1.0, level=level)) == [f"▁{hertz}", "."]


def test_tones_between_silences_have_their_times():
    samples = np.concatenate(
        [silence(0.8), tone(440, 1.6), silence(0.4), tone(880, 0.8), silence(0.24)]
    )
    (hypothesis,) = transcribe(samples)
    assert [(token.piece, token.frame, token.duration) for token in hypothesis.tokens] == [
        ("▁440", 10, 20),
        (".", 30, 0),
        ("▁880", 35, 10),
        (".", 45, 0),
    ]
    assert hypothesis.frame_seconds == 0.08


@pytest.mark.parametrize("quiet", [silence(2.0), noise(2.0), silence(0.01), silence(0)])
def test_silence_has_no_tokens(quiet):
    assert pieces_of(quiet) == []


def test_the_probability_falls_with_the_purity_of_the_tone():
    (pure,), (noisy,) = (
        [hypothesis.tokens[0].logprob]
        for hypothesis in transcribe(tone(440, 2.0), tone(440, 2.0) + noise(2.0, level=0.15))
    )
    assert noisy < pure <= 0


SOUNDS = st.builds(
    lambda hertz, seconds, level, gap: np.concatenate(
        (tone(hertz, seconds, level=level), silence(gap))
    ),
    st.sampled_from(PITCHES),
    st.floats(0.1, 1.5),
    st.sampled_from([0.003, 0.006, 0.3, 0.9]),
    st.floats(0, 0.5),
)
CHUNKS = st.lists(SOUNDS, max_size=3).map(lambda sounds: np.concatenate((*sounds, silence(0.1))))


@settings(max_examples=20)
@given(batch=st.lists(CHUNKS, min_size=1, max_size=10), data=st.data())
def test_results_do_not_depend_on_the_batch_or_its_order(batch, data):
    order = data.draw(st.permutations(range(len(batch))))
    alone = [transcribe(samples)[0] for samples in batch]
    assert transcribe(*batch) == alone
    assert transcribe(*(batch[index] for index in order)) == [alone[index] for index in order]
    engine = ToneEngine()
    assert [engine.transcribe([samples])[0] for samples in batch] == alone
    engine.close()


def test_an_empty_batch_has_no_results():
    assert transcribe() == []


def test_the_samples_are_not_modified():
    samples = tone(440, 1.0)
    before = samples.copy()
    transcribe(samples)
    assert np.array_equal(samples, before)
