"""Known speakers in requests: fields, names and files."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    SourceNotFound,
    SpeakerReferenceUnusable,
)
from parakeet_worker.options import MAX_KNOWN_SPEAKERS, MAX_REFERENCE_BYTES, SpeakerCount
from parakeet_worker.request import InlineSource, S3Source, UrlSource, VoiceEmbedding
from parakeet_worker.wire.known_speakers import entries, entry, read_enrolled
from test_wire_native import URL, only, refusal

VOICE = {"name": "Ada", "audio_base64": "AAAA"}


def known(*speakers: Any, **fields: Any) -> dict[str, Any]:
    return {"audio_url": URL, "known_speakers": list(speakers), **fields}


def test_a_voice_is_a_recording_anywhere_or_an_embedding():
    embedding = VoiceEmbedding("campplus:1", b"abcd")
    request = only(
        known(
            VOICE,
            {"name": "Ben", "audio_url": "https://example.com/ben.mp3"},
            {"name": "Carla", "audio_url": "s3://voices/carla.mp3"},
            {"name": "Dora", "audio_s3": {"key": "dora.mp3"}},
            entry("Émile-2", embedding),
        )
    )
    assert [each.name for each in request.known_speakers] == [
        "Ada", "Ben", "Carla", "Dora", "Émile-2",
    ]  # fmt: skip
    assert [each.voice for each in request.known_speakers] == [
        InlineSource("AAAA"), UrlSource("https://example.com/ben.mp3"),
        S3Source("carla.mp3", "voices"), S3Source("dora.mp3"), embedding,
    ]  # fmt: skip


def test_known_speakers_imply_labels_and_keep_the_limits_of_their_number():
    assert only(known(VOICE)).speakers == SpeakerCount()
    # Of many known people only some speak in a recording.
    one = only(known(VOICE, {**VOICE, "name": "Ben"}, speakers={"max": 1}))
    assert one.speakers == SpeakerCount(1, 1)
    assert len(one.known_speakers) == 2
    assert refusal(known(VOICE, speakers=False)).facts["field"] == "speakers"


@pytest.mark.parametrize(
    ("speakers", "field"),
    [
        ([], "known_speakers"),
        ([VOICE] * (MAX_KNOWN_SPEAKERS + 1), "known_speakers"),
        ("Ada", "known_speakers"),
        ([{"audio_base64": "AAAA"}], "known_speakers.0.name"),
        ([{**VOICE, "name": ""}], "known_speakers.0.name"),
        ([{**VOICE, "name": " "}], "known_speakers.0.name"),
        ([{**VOICE, "name": "Ada\n"}], "known_speakers.0.name"),
        ([{**VOICE, "name": "A\tda"}], "known_speakers.0.name"),
        ([{**VOICE, "name": "x" * 101}], "known_speakers.0.name"),
        ([{**VOICE, "name": "\ud800"}], "known_speakers.0.name"),
        ([{**VOICE, "name": "Speaker 3"}], "known_speakers.0.name"),
        ([{**VOICE, "name": "speaker_3"}], "known_speakers.0.name"),
        ([VOICE, {**VOICE, "name": "ada"}], "known_speakers.1.name"),
        ([VOICE, {"name": "Ben"}], "known_speakers.1"),
        ([{**VOICE, "audio_url": URL}], "known_speakers.0"),
        ([{"name": "Ben", "audio_url": "file:///etc/passwd"}], "known_speakers.0.audio_url"),
        ([{"name": "Ben", "embedding": "AAAA"}], "known_speakers.0.embedding_model"),
        ([{**VOICE, "embedding_model": "x"}], "known_speakers.0.embedding_model"),
        ([{**VOICE, "age": 3}], "known_speakers.0.age"),
    ],
)
def test_impossible_known_speakers_are_rejected_by_field(speakers, field):
    payload = {"audio_url": URL, "known_speakers": speakers}
    assert refusal(payload).facts["field"] == field


def test_an_embedding_that_is_not_base64_is_refused():
    broken = {"name": "Ada", "embedding": "??", "embedding_model": "campplus:1"}
    with pytest.raises(SpeakerReferenceUnusable, match="not base64"):
        only(known(broken))


def test_files_bytes_and_addresses_become_entries(tmp_path: Path):
    path = tmp_path / "ada.wav"
    path.write_bytes(b"voice")
    encoded = b64encode(b"voice").decode()
    assert entries({"Ada": path, "Ben": b"voice", "Carla": URL}) == [
        {"name": "Ada", "audio_base64": encoded},
        {"name": "Ben", "audio_base64": encoded},
        {"name": "Carla", "audio_url": URL},
    ]
    with pytest.raises(SourceNotFound):
        entries({"Ada": tmp_path / "missing.wav"})
    with path.open("wb") as file:
        file.truncate(MAX_REFERENCE_BYTES + 1)
    with pytest.raises(AudioTooLarge):
        entries({"Ada": path})


def test_enrolled_voices_are_read_and_other_files_refused(tmp_path: Path):
    path = tmp_path / "enrolled.json"
    enrolled = [entry("Ada", VoiceEmbedding("campplus:1", b"abcd"))]
    path.write_text(json.dumps({"known_speakers": enrolled}))
    assert read_enrolled(path) == enrolled
    for content in ("", "[]", "{}", '{"known_speakers": [1]}', "\ud800".encode(errors="replace")):
        path.write_text(content if isinstance(content, str) else content.decode())
        with pytest.raises(InvalidRequest):
            read_enrolled(path)
    with pytest.raises(InvalidRequest):
        read_enrolled(tmp_path / "missing.json")
