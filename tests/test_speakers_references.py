"""References of known speakers, with the real networks and real files."""

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parakeet_worker.audio.decoding import find_ffmpeg
from parakeet_worker.errors import SourceForbidden, SourceNotFound, SpeakerReferenceUnusable
from parakeet_worker.request import (
    FileSource,
    InlineSource,
    KnownSpeaker,
    Source,
    UrlSource,
    VoiceEmbedding,
)
from parakeet_worker.scratch import scratch_of
from parakeet_worker.settings import Settings
from parakeet_worker.speakers.known import SAME_PERSON_SIMILARITY, Voice
from parakeet_worker.speakers.networks import Networks
from parakeet_worker.speakers.references import (
    EMBEDDING_MODEL,
    References,
    Unusable,
    joined,
)
from programs import logging_ffmpeg
from recordings import encode, silence, tone, wav
from speech import sample
from voices import ada, ben, part


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks]:
    created = Networks()
    yield created
    created.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(scratch=tmp_path)


@pytest.fixture
def references(networks: Networks, settings: Settings) -> References:
    return References(networks, find_ffmpeg(), settings)


async def voices(
    references: References, settings: Settings, *sources: Source | VoiceEmbedding
) -> tuple[Voice, ...]:
    known = [KnownSpeaker(f"p{n}", each, f"known_speakers.{n}") for n, each in enumerate(sources)]
    return await references.voices(known, scratch_of(settings), asyncio.Semaphore(1))


def inline(content: bytes) -> InlineSource:
    return InlineSource(b64encode(content).decode())


async def test_two_parts_of_a_reading_are_one_voice_and_another_reader_is_not(
    references: References, settings: Settings
) -> None:
    ada_1, ada_2, other = await voices(
        references, settings, inline(ada()), inline(wav(part(0, 8))), inline(ben())
    )
    assert ada_1.embedding @ ada_2.embedding > SAME_PERSON_SIMILARITY
    assert ada_1.embedding @ other.embedding < SAME_PERSON_SIMILARITY - 0.2
    assert list(settings.scratch.iterdir()) == []


async def test_a_reference_is_decoded_in_the_precision_of_the_settings(
    networks: Networks, settings: Settings, tmp_path: Path
) -> None:
    ffmpeg, log = logging_ffmpeg(tmp_path)
    single = settings.model_copy(update={"resampling_precision": "single"})
    (voice,) = await voices(References(networks, ffmpeg, single), single, inline(ada()))
    assert np.linalg.norm(voice.embedding) == pytest.approx(1.0, abs=1e-5)
    assert "-internal_sample_fmt fltp " in log.read_text()


async def test_a_voice_in_another_language_and_container_is_a_reference(
    references: References, settings: Settings
) -> None:
    (voice,) = await voices(references, settings, FileSource(sample("fi").path))
    assert np.linalg.norm(voice.embedding) == pytest.approx(1.0, abs=1e-5)


BAD = {
    "silence": (wav(silence(5)), "0.0 s of speech, minimum 1 s"),
    "a tone": (wav(tone(440, 5)), "0.0 s of speech, minimum 1 s"),
    "too short": (wav(part(0, 1.5)), "1.5 s of audio, minimum 2 s"),
    "nearly nothing": (wav(part(0, 0.05)), "0.05 s of audio, minimum 0.1 s"),
    "too long": (wav(np.tile(part(0, 8), 4)), "more than 30 s of audio, limit 30 s"),
    "text": (b"this is text, not audio\n" * 20, ""),
    "nothing": (b"", "the request contains no audio"),
    "two people": (wav(np.concatenate((part(0, 5), part(18, 23)))), "are by another person"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_what_is_no_recording_of_one_voice_is_refused_by_name(
    references: References, settings: Settings, kind: str
) -> None:
    content, reason = BAD[kind]
    with pytest.raises(SpeakerReferenceUnusable) as refusal:
        await voices(references, settings, inline(ada()), inline(content))
    assert refusal.value.facts == {"field": "known_speakers.1", "name": "p1"}
    assert reason in refusal.value.sentence
    assert list(settings.scratch.iterdir()) == []


async def test_what_is_not_base64_is_refused_by_name(
    references: References, settings: Settings
) -> None:
    with pytest.raises(SpeakerReferenceUnusable, match=r"known_speakers.0 \(p0\): .*not base64"):
        await voices(references, settings, InlineSource("?"))


async def test_addresses_are_guarded_as_those_of_recordings(
    references: References, settings: Settings
) -> None:
    with pytest.raises(SourceForbidden):
        await voices(references, settings, UrlSource("http://127.0.0.1/voice.wav"))
    with pytest.raises(SourceNotFound):
        await voices(references, settings, FileSource(Path("/missing.wav")))


async def test_recordings_of_one_person_join_and_those_of_two_do_not(
    references: References, settings: Settings, tmp_path: Path
) -> None:
    files = [
        encode(tmp_path / f"{index}.flac", samples=part(*span))
        for index, span in enumerate(((0, 8), (47.3, 57.3), (17, 24.2)))
    ]
    ada_1, ada_2, other = [await references.of_file(file) for file in files]
    embedding = joined([ada_1, ada_2])
    (voice,) = await voices(references, settings, embedding)
    assert voice.embedding @ ada_1.embedding > ada_1.embedding @ ada_2.embedding
    with pytest.raises(Unusable, match="different people"):
        joined([ada_1, other])


GOOD = np.eye(192, dtype="<f4")[0].tobytes()


@pytest.mark.parametrize(
    ("model", "values", "reason"),
    [
        ("ecapa:0123456789ab", GOOD, "of another model"),
        (EMBEDDING_MODEL, GOOD[:-4], "764 bytes, not 768"),
        (EMBEDDING_MODEL, b"", "0 bytes"),
        (EMBEDDING_MODEL, bytes(768), "no direction"),
        (EMBEDDING_MODEL, np.full(192, np.nan, "<f4").tobytes(), "no direction"),
        (EMBEDDING_MODEL, np.full(192, np.inf, "<f4").tobytes(), "no direction"),
    ],
)
async def test_foreign_embeddings_are_refused(
    references: References, settings: Settings, model: str, values: bytes, reason: str
) -> None:
    with pytest.raises(SpeakerReferenceUnusable, match=reason):
        await voices(references, settings, VoiceEmbedding(model, values))


async def test_an_enrolled_embedding_of_any_length_is_normalised(
    references: References, settings: Settings
) -> None:
    scaled = (3 * np.eye(192, dtype="<f4")[5]).tobytes()
    (voice,) = await voices(references, settings, VoiceEmbedding(EMBEDDING_MODEL, scaled))
    assert voice.embedding == pytest.approx(np.eye(192)[5])
