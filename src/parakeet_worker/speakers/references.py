"""Recordings and embeddings of known speakers to their voices."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parakeet_worker import sources, threads
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import (
    AudioEmpty,
    AudioMissing,
    AudioTooLarge,
    AudioTooLong,
    AudioTooShort,
    AudioUndecodable,
    InvalidRequest,
    SpeakerReferenceUnusable,
)
from parakeet_worker.options import (
    MAX_REFERENCE_BYTES,
    MAX_REFERENCE_SECONDS,
    MIN_REFERENCE_SECONDS,
    SpeakerCount,
)
from parakeet_worker.request import KnownSpeaker, Request, Source, VoiceEmbedding
from parakeet_worker.scratch import Scratch
from parakeet_worker.settings import Settings
from parakeet_worker.speakers.clustering import Vectors, unit
from parakeet_worker.speakers.diarization import FRAME_SECONDS, Diarization, WindowQueue
from parakeet_worker.speakers.known import Voice
from parakeet_worker.speakers.weights import EMBEDDING
from parakeet_worker.speakers.windows import EMBEDDING_SIZE

EMBEDDING_MODEL = f"{EMBEDDING.path.stem}:{EMBEDDING.sha256[:12]}"
"""The embedding network and its weights, in enrolled embeddings."""

MIN_SPEECH_SECONDS = 1.0
"""Speech in a reference, at least."""

_OTHER_PERSON_SECONDS = 1.0
_OTHER_PERSON_SHARE = 0.15
# Short recordings of one person are often less similar than a speaker and a reference.
_JOINED_SIMILARITY = 0.5
_UNUSABLE = (
    AudioEmpty,
    AudioMissing,
    AudioTooLarge,
    AudioTooLong,
    AudioTooShort,
    AudioUndecodable,
    InvalidRequest,
)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The voice in one recording."""

    embedding: Vectors
    """(192,), of length one."""
    speech_seconds: float


class References:
    """Computes the voices of one request's known speakers."""

    def __init__(self, networks: WindowQueue, ffmpeg: Path, settings: Settings) -> None:
        self._networks = networks
        self._ffmpeg = ffmpeg
        limit = min(settings.max_audio_bytes, MAX_REFERENCE_BYTES)
        self._settings = settings.model_copy(update={"max_audio_bytes": limit})

    async def voices(
        self, known: Sequence[KnownSpeaker], scratch: Scratch, decoders: asyncio.Semaphore
    ) -> tuple[Voice, ...]:
        """The voices in their order; recordings are fetched into `scratch`, one at a time.

        Raises `SpeakerReferenceUnusable`, errors of the sources, and what the networks raise.
        """
        voices = []
        for speaker in known:
            if isinstance(speaker.voice, VoiceEmbedding):
                voices.append(Voice(speaker.name, _checked(speaker, speaker.voice)))
                continue
            async with decoders:
                voices.append(await self._voice(speaker, speaker.voice, scratch))
        return tuple(voices)

    async def _voice(self, speaker: KnownSpeaker, source: Source, scratch: Scratch) -> Voice:
        request = Request(source)
        size = sources.max_bytes(request, self._settings.max_audio_bytes)
        try:
            async with scratch.made() as folder:
                async with scratch.reserved(size):
                    path = await sources.fetch(request, folder, self._settings)
                reference = await self.of_file(path)
        except _UNUSABLE as failure:
            raise SpeakerReferenceUnusable(
                speaker.field, speaker.name, failure.sentence
            ) from failure
        except Unusable as failure:
            raise SpeakerReferenceUnusable(speaker.field, speaker.name, str(failure)) from failure
        return Voice(speaker.name, reference.embedding)

    async def of_file(self, path: Path) -> Reference:
        """The voice in a file. Raises `Unusable`, and what decoding and networks raise."""
        decoded = Decoding(
            path,
            ffmpeg=self._ffmpeg,
            max_seconds=MAX_REFERENCE_SECONDS,
            timeout_seconds=self._settings.decode_timeout_seconds,
            memory_bytes=self._settings.decoder_memory_bytes,
            precision=self._settings.resampling_precision,
        )
        async with aclosing(decoded.samples()) as blocks:
            samples = np.concatenate([block async for block in blocks])
        seconds = len(samples) / SAMPLE_RATE
        if seconds < MIN_REFERENCE_SECONDS:
            raise Unusable(f"{seconds:.1f} s of audio, minimum {MIN_REFERENCE_SECONDS:g} s")
        return await threads.computed(self._of_samples, samples)

    def _of_samples(self, samples: Samples) -> Reference:
        with closing(Diarization(self._networks)) as diarization:
            diarization.feed(samples)
            activity = diarization.finish(SpeakerCount())
        speech = float(activity.active.any(axis=1).sum()) * FRAME_SECONDS
        if speech < MIN_SPEECH_SECONDS:
            raise Unusable(f"{speech:.1f} s of speech, minimum {MIN_SPEECH_SECONDS:g} s")
        seconds = activity.active.sum(axis=0) * FRAME_SECONDS
        main = int(np.argmax(seconds))
        other = float(np.delete(seconds, main).max(initial=0.0))
        if other >= max(_OTHER_PERSON_SECONDS, _OTHER_PERSON_SHARE * speech):
            raise Unusable(
                f"{other:.1f} s of {speech:.1f} s of speech are by another person; "
                "one person has to speak alone"
            )
        return Reference(activity.centroids[main], speech)


class Unusable(Exception):
    """Why a recording is no reference, as one short sentence."""


def joined(references: Sequence[Reference]) -> VoiceEmbedding:
    """One embedding of several recordings of a person. Raises `Unusable` if they are of several."""
    vectors = np.stack([each.embedding for each in references])
    seconds = np.array([each.speech_seconds for each in references], dtype=np.float32)
    mean = unit((vectors * seconds[:, None]).sum(axis=0))
    if (vectors @ vectors.T).min() < _JOINED_SIMILARITY:
        raise Unusable("the recordings are of different people")
    return VoiceEmbedding(EMBEDDING_MODEL, mean.astype("<f4").tobytes())


def _checked(speaker: KnownSpeaker, embedding: VoiceEmbedding) -> Vectors:
    """(192,) of length one. Raises `SpeakerReferenceUnusable`."""
    if embedding.model != EMBEDDING_MODEL:
        reason = f"the embedding is of another model; enroll again for {EMBEDDING_MODEL}"
        raise SpeakerReferenceUnusable(speaker.field, speaker.name, reason)
    if len(embedding.values) != 4 * EMBEDDING_SIZE:
        reason = f"the embedding has {len(embedding.values)} bytes, not {4 * EMBEDDING_SIZE}"
        raise SpeakerReferenceUnusable(speaker.field, speaker.name, reason)
    vector = np.frombuffer(embedding.values, dtype="<f4").astype(np.float32)
    length = np.linalg.norm(vector.astype(np.float64))
    if not np.isfinite(length) or length < 1e-6:
        reason = "the embedding has no direction"
        raise SpeakerReferenceUnusable(speaker.field, speaker.name, reason)
    return unit(vector)
