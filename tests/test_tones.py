import numpy as np
import pytest

from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.engine.tones import ToneEngine
from recordings import noise, silence, tone

PITCHES = [110, 220, 440, 880, 1000, 1760, 3000, 7000]


def transcribe(*batch: Samples) -> list[Hypothesis]:
    return ToneEngine().transcribe(batch)


def words_of(samples: Samples) -> list[str]:
    (hypothesis,) = transcribe(samples)
    return [token.piece for token in hypothesis.tokens]


@pytest.mark.parametrize("hertz", PITCHES)
@pytest.mark.parametrize("level", [0.02, 0.9])
def test_a_tone_is_transcribed_as_its_pitch(hertz, level):
    assert words_of(tone(hertz, 1.0, level=level)) == [f"▁{hertz}", "."]


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
    assert words_of(quiet) == []


def test_the_probability_falls_with_the_purity_of_the_tone():
    (pure,), (noisy,) = (
        [hypothesis.tokens[0].logprob]
        for hypothesis in transcribe(tone(440, 2.0), tone(440, 2.0) + noise(2.0, level=0.15))
    )
    assert noisy < pure <= 0


@pytest.mark.parametrize("seed", range(8))
def test_the_same_audio_gives_the_same_alone_in_a_batch_and_in_any_order(seed):
    generator = np.random.default_rng(seed)
    batch = [
        np.concatenate(
            [
                part
                for _ in range(generator.integers(0, 4))
                for part in (
                    tone(
                        float(generator.choice(PITCHES)),
                        float(generator.uniform(0.1, 1.5)),
                        level=float(generator.choice([0.003, 0.006, 0.3, 0.9])),
                    ),
                    silence(float(generator.uniform(0, 0.5))),
                )
            ]
            + [silence(0.1)]
        )
        for _ in range(10)
    ]
    alone = [transcribe(samples)[0] for samples in batch]
    assert sum(len(hypothesis.tokens) for hypothesis in alone) > 10
    assert transcribe(*batch) == alone
    order = generator.permutation(len(batch))
    assert transcribe(*(batch[index] for index in order)) == [alone[index] for index in order]
    engine = ToneEngine()
    assert [engine.transcribe([samples])[0] for samples in batch] == alone
    engine.close()


def test_an_empty_batch_is_answered_with_nothing():
    assert transcribe() == []


def test_the_samples_are_left_as_they_were():
    samples = tone(440, 1.0)
    before = samples.copy()
    transcribe(samples)
    assert np.array_equal(samples, before)
