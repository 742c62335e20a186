"""Speakers and known speakers from a request to its answer, over every transport."""

import json
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from click.testing import CliRunner, Result

from http_server import Process, running_server
from job_api import JobApi, running_worker
from parakeet_worker import Client
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.errors import SpeakerReferenceUnusable
from parakeet_worker.model import Model, open_model
from recordings import RATE, encode, silence, wav
from voices import ada, ben, carla, conversation, part

KNOWN = {"Ada": ada(), "Carla": carla(), "Ben": ben()}
SPEAKERS = ["Ada", "Ben"]


def base64(content: bytes) -> str:
    return b64encode(content).decode()


def data_uri(content: bytes) -> str:
    return f"data:audio/wav;base64,{base64(content)}"


def entries(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "audio_base64": base64(KNOWN[name])} for name in names or KNOWN]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    path.write_bytes(wav(conversation()))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_server(tmp_path_factory.mktemp("server"), {"PARAKEET_MODEL": "demo"}) as running:
        running.wait_until_ready()
        yield running
        assert list(running.scratch.iterdir()) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    scratch = tmp_path_factory.mktemp("scratch")
    with open_model("demo", device="cpu", scratch=scratch) as opened:
        yield opened
    assert list(scratch.iterdir()) == []


def posted(server: Process, talk: Path, **fields: Any) -> httpx.Response:
    with talk.open("rb") as file:
        return httpx.post(
            f"{server.url}/transcribe", data=fields, files={"file": file}, timeout=120.0
        )


def speakers_of(parts: Sequence[Any]) -> list[str]:
    """In order of time, once per turn."""
    names = [each["speaker"] for each in parts]
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


def test_words_segments_and_text_name_known_people_in_a_form_and_in_json(
    server: Process, talk: Path
) -> None:
    fields = {"format": "verbose_json"}
    answer = posted(server, talk, **fields, known_speakers=json.dumps(entries())).json()
    assert speakers_of(answer["words"]) == speakers_of(answer["segments"]) == SPEAKERS
    assert [line.partition(":")[0] for line in answer["text"].splitlines()] == SPEAKERS
    payload = {**fields, "audio_base64": base64(talk.read_bytes()), "known_speakers": entries()}
    same = httpx.post(f"{server.url}/transcribe", json=payload, timeout=120.0).json()
    assert same["words"] == answer["words"]


def test_unknown_people_are_numbered_apart_from_known_ones(server: Process, talk: Path) -> None:
    answer = posted(
        server, talk, format="verbose_json", known_speakers=json.dumps(entries("Ben", "Carla"))
    ).json()
    assert speakers_of(answer["words"]) == ["Speaker 1", "Ben"]
    plain = posted(server, talk, format="verbose_json", speakers="true").json()
    assert speakers_of(plain["words"]) == ["Speaker 1", "Speaker 2"]
    # The confidence of a name is that of the speaker and that of the person.
    for labelled, numbered in zip(answer["words"], plain["words"], strict=True):
        if labelled["speaker"] == "Ben":
            assert 0 < labelled["speaker_confidence"] < numbered["speaker_confidence"]
        else:
            assert labelled["speaker_confidence"] == numbered["speaker_confidence"]


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("srt", "[Ada] "),
        ("vtt", "<v Ben>"),
        ("tsv", "\tAda\t"),
        ("rttm", "> Ben 0."),
    ],
)
def test_every_format_has_the_names(
    server: Process, talk: Path, format_: str, expected: str
) -> None:
    answer = posted(server, talk, format=format_, known_speakers=json.dumps(entries())).json()
    assert expected in answer[format_]
    assert "Speaker" not in answer[format_]


def call_of(folder: Path) -> Path:
    """Ada and then Ben in the first channel, Ada alone in the second."""
    left, right = conversation(), part(47.3, 57.3)
    both = np.stack((left, np.pad(right, (0, len(left) - len(right)))), axis=1)
    return encode(folder / "call.wav", samples=both.reshape(-1), channels=2)


def test_separate_channels_have_speakers_of_their_own(server: Process, tmp_path: Path) -> None:
    call = call_of(tmp_path)
    fields = {"channels": "separate", "format": "verbose_json"}

    def labels(**speakers: Any) -> dict[int, list[str]]:
        answer = posted(server, call, **fields, **speakers).json()
        return {
            channel: speakers_of([each for each in answer["words"] if each["channel"] == channel])
            for channel in (1, 2)
        }

    # Ada is in both channels: nothing of the first one is known in the second.
    assert labels(speakers="true") == {1: ["Speaker 1", "Speaker 2"], 2: ["Speaker 3"]}
    known = labels(known_speakers=json.dumps(entries("Ada")))
    assert known == {1: ["Ada", "Speaker 1"], 2: ["Ada"]}


def test_words_that_two_people_speak_over_are_marked(server: Process, tmp_path: Path) -> None:
    talk, begins = part(17.0, 24.0), round(3.5 * RATE)
    over = part(0.0, 8.5)
    samples = np.pad(talk, (0, begins + len(over) - len(talk)))
    samples[begins:] += over
    path = tmp_path / "over.wav"
    path.write_bytes(wav(samples))
    answer = posted(server, path, speakers="true", format="verbose_json").json()
    assert set(speakers_of(answer["words"])) == {"Speaker 1", "Speaker 2"}
    marked = [word for word in answer["words"] if word.get("overlap")]
    assert len(marked) >= 3
    assert all(word["start"] > 3.3 and word["end"] < 7.2 for word in marked)
    timed = posted(server, path, speakers="true", timestamp="true").json()["timestamps"]
    assert [word["start"] for word in timed["word"] if word.get("overlap")] == [
        word["start"] for word in marked
    ]


def test_a_stream_labels_its_last_message_only(server: Process, talk: Path) -> None:
    fields = {"format": "verbose_json", "known_speakers": json.dumps(entries())}
    whole = posted(server, talk, **fields).json()
    events = posted(server, talk, **fields, stream="true").text.strip().split("\n\n")
    kinds, documents = zip(*(event.split("\ndata: ") for event in events), strict=True)
    assert kinds == (*["event: segment"] * (len(events) - 1), "event: result")
    *segments, result = map(json.loads, documents)
    assert speakers_of(result["words"]) == SPEAKERS
    assert result["words"] == whole["words"]
    assert len(segments) >= 2
    assert all("speaker" not in each for each in segments)
    assert all("speaker" not in word for each in segments for word in each["words"])
    # The partials have the same words, before their speakers are known.
    assert [word["word"] for each in segments for word in each["words"]] == [
        word["word"] for word in result["words"]
    ]


def test_the_queue_names_known_people(talk: Path, tmp_path: Path) -> None:
    audio = {"audio_base64": base64(talk.read_bytes()), "format": "verbose_json"}
    voiceless = [{"name": "Silence", "audio_base64": base64(wav(silence(4)))}]
    with JobApi() as api:
        api.submit("whole", {**audio, "known_speakers": entries()})
        api.submit("streamed", {**audio, "known_speakers": entries(), "stream": True})
        api.submit("failing", {**audio, "known_speakers": voiceless})
        variables = {"PARAKEET_MODEL": "demo", "PARAKEET_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        with running_worker(api, tmp_path, variables):
            whole = api.result("whole")["output"]
            streamed = api.result("streamed")["output"]
            failing = api.result("failing")
    assert speakers_of(whole["words"]) == speakers_of(whole["segments"]) == SPEAKERS
    assert streamed["words"] == whole["words"]
    delivery = api.deliveries["streamed"]
    assert delivery.order == [*["chunk"] * len(delivery.chunks), "done"]
    assert len(delivery.chunks) >= 2
    assert all("speaker" not in chunk["segment"] for chunk in delivery.chunks)
    assert failing["error"].startswith("speaker_reference_unusable: ")
    assert failing["output"]["field"] == "known_speakers.0"


def test_openai_clients_name_known_people(server: Process, talk: Path) -> None:
    with openai.OpenAI(api_key="any", base_url=f"{server.url}/v1", max_retries=0) as client:
        answer = client.audio.transcriptions.create(
            file=talk,
            model="gpt-4o-transcribe-diarize",
            response_format="diarized_json",
            chunking_strategy="auto",
            known_speaker_names=list(KNOWN),
            known_speaker_references=[data_uri(content) for content in KNOWN.values()],
        )
    assert speakers_of([segment.model_dump() for segment in answer.segments]) == SPEAKERS


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"names": ["Ada"], "references": []}, "invalid_request", "known_speaker_names"),
        ({"names": [], "references": ["x"]}, "invalid_request", "known_speaker_references"),
        ({"names": ["Ada", "Ada"], "references": ["x", "x"]}, "invalid_request",
         "known_speaker_names"),
        ({"names": ["Ada"], "references": ["x"], "response_format": "json"}, "invalid_request",
         "known_speaker_names"),
        ({"names": ["Ada"], "references": ["data:audio/wav;base64,AAAA"]},
         "speaker_reference_unusable", "known_speaker_references"),
    ],
)  # fmt: skip
def test_openai_clients_learn_what_is_wrong(
    server: Process, talk: Path, fields: dict[str, Any], code: str, field: str
) -> None:
    options = {"response_format": "diarized_json", **fields}
    known = {f"known_speaker_{name}[]": options.pop(name) for name in ("names", "references")}
    with talk.open("rb") as file:
        answer = httpx.post(
            f"{server.url}/v1/audio/transcriptions",
            files={"file": file}, data={**options, **known}, timeout=120.0,
        )  # fmt: skip
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert field in str(answer.json()["error"])


def test_an_unusable_reference_is_an_error_that_names_it(server: Process, talk: Path) -> None:
    voiceless = {"name": "Silence", "audio_base64": base64(wav(silence(4)))}
    answer = posted(server, talk, known_speakers=json.dumps([*entries("Ada"), voiceless]))
    assert answer.status_code == 400
    document = answer.json()
    assert document["code"] == "speaker_reference_unusable"
    assert (document["field"], document["name"]) == ("known_speakers.1", "Silence")


def test_references_in_a_form_are_limited_together(server: Process, talk: Path) -> None:
    answer = posted(server, talk, known_speakers=" " * (33 << 20))
    assert answer.status_code == 400
    assert answer.json()["field"] == "known_speakers"


def test_a_list_has_known_speakers_for_all_or_for_one(server: Process, talk: Path) -> None:
    audio = base64(talk.read_bytes())
    payload = {
        "inputs": [
            {"audio_base64": audio},
            {"audio_base64": audio, "known_speakers": [{"name": "Ada", "audio_base64": "AAAA"}]},
        ],
        "format": "verbose_json",
        "known_speakers": entries("Ada"),
    }
    first, second = httpx.post(f"{server.url}/transcribe", json=payload, timeout=120.0).json()
    assert speakers_of(first["words"]) == ["Ada", "Speaker 1"]
    assert second["code"] == "speaker_reference_unusable"


def test_words_of_one_turn_have_the_certainty_of_their_own_voice(model: Model, talk: Path) -> None:
    transcript = model.transcribe(talk, speakers=True)
    turn = transcript.turns[0]
    labels = [
        word.speaker
        for word in transcript.words
        if word.speaker is not None
        and turn.start_seconds < word.start_seconds < word.end_seconds < turn.end_seconds
    ]
    assert {label.name for label in labels} == {turn.speaker}
    assert len({label.confidence for label in labels}) == len(labels) > 1


def test_python_names_known_people(model: Model, talk: Path) -> None:
    transcript = model.transcribe(talk, known_speakers=KNOWN)
    assert transcript.speakers == ("Ada", "Ben")
    one = model.transcribe(talk, speakers={"exact": 1}, known_speakers=KNOWN)
    assert len(one.speakers) == 1
    with pytest.raises(SpeakerReferenceUnusable, match=r"known_speakers.0 \(Ada\)"):
        model.transcribe(talk, known_speakers={"Ada": wav(silence(3))})


def test_the_client_sends_files_of_voices(server: Process, talk: Path, tmp_path: Path) -> None:
    voice = encode(tmp_path / "ben.mp3", samples=part(20.9, 24.2))
    with Client(server.url) as client:
        answer = client.transcribe(
            talk, format="verbose_json", known_speakers={"Ada": ada(), "Ben": voice}
        )
    assert speakers_of(answer.document["words"]) == SPEAKERS


@pytest.fixture
def parakeet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in this process, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [*map(str, arguments)])


def test_enrolled_voices_are_named_on_the_command_line(
    server: Process, talk: Path, tmp_path: Path, parakeet: Callable[..., Result]
) -> None:
    for name, content in KNOWN.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    (tmp_path / "more.wav").write_bytes(wav(part(65.0, 72.0)))
    enrolled = parakeet(
        "speakers", "enroll", "Ada=Ada.wav", "Ada=more.wav", "Ben=Ben.wav", "-o", "voices.json"
    )
    assert enrolled.exit_code == 0, enrolled.stderr
    voices = tmp_path / "voices.json"
    assert stat.S_IMODE(voices.stat().st_mode) == 0o600
    listed = json.loads(voices.read_text())["known_speakers"]
    assert [each["name"] for each in listed] == SPEAKERS
    # A request carries the same list.
    answer = posted(server, talk, format="verbose_json", known_speakers=json.dumps(listed)).json()
    assert speakers_of(answer["words"]) == SPEAKERS
    for options in (["--model", "demo"], ["--endpoint", server.url, "-o", "-"]):
        ran = parakeet("transcribe", talk, "--known-speakers", "voices.json", *options)
        assert [line.partition(":")[0] for line in ran.stdout.splitlines()] == SPEAKERS, ran.stderr
    written = parakeet(
        "transcribe", talk, "--known-speaker", "Ada=Ada.wav", "--speakers=2", "--model", "demo",
        "-o", "out",
    )  # fmt: skip
    assert written.exit_code == 0, written.stderr
    assert (tmp_path / "out" / "talk.txt").read_text().startswith("Ada: ")
    # A manifest has no voices.
    manifest = (tmp_path / "out" / ".parakeet.jsonl").read_text()
    assert base64(KNOWN["Ada"])[:200] not in manifest
    assert len(manifest) < 10_000


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["Ada=silence.wav"], 1, "silence.wav: 0.0 s of speech"),
        (["Ada=ada.wav", "Ada=ben.wav"], 1, "Ada: the recordings are of different people"),
        (["Ada"], 2, "must be NAME=FILE"),
        (["Ada=missing.wav"], 2, "missing.wav does not exist"),
        (["Speaker 1=ada.wav"], 2, "label of unknown speakers"),
    ],
)
def test_what_cannot_be_enrolled_writes_nothing(
    tmp_path: Path,
    parakeet: Callable[..., Result],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    (tmp_path / "ada.wav").write_bytes(ada())
    (tmp_path / "ben.wav").write_bytes(ben())
    (tmp_path / "silence.wav").write_bytes(wav(silence(4)))
    ran = parakeet("speakers", "enroll", *arguments, "-o", "voices.json")
    assert ran.exit_code == status
    assert message in ran.stderr
    assert not (tmp_path / "voices.json").exists()


def test_foreign_embeddings_are_refused_on_the_command_line(
    talk: Path, tmp_path: Path, parakeet: Callable[..., Result]
) -> None:
    foreign = {"name": "Ada", "embedding": "AAAA", "embedding_model": "other:1"}
    (tmp_path / "voices.json").write_text(json.dumps({"known_speakers": [foreign]}))
    ran = parakeet("transcribe", talk, "--known-speakers", "voices.json", "--model", "demo")
    assert ran.exit_code == 1
    assert "speaker_reference_unusable" in ran.stderr
    assert "enroll again" in ran.stderr
