import json
import os
from pathlib import Path

import pytest

from parakeet_worker.client import manifest
from parakeet_worker.client.answer import LOCAL, Usage
from parakeet_worker.client.cost import DOLLARS_PER_SECOND, account, find
from parakeet_worker.client.files import ENDINGS, Recording, gather, plan_tasks
from parakeet_worker.client.manifest import Manifest
from parakeet_worker.client.transports import QueuedJob
from parakeet_worker.errors import AudioEmpty, EndpointUnreachable, InvalidRequest

OPTIONS = {"format": "srt"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "talk.mp3"
    path.write_bytes(b"audio")
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "talk.srt"


def temporary_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def test_kept_results_are_final_for_later_runs(source, target):
    with Manifest(target.parent) as kept:
        assert not kept.finished(source, target, OPTIONS)
        kept.keep(source, target, OPTIONS, "message", Usage(1.0))
        assert kept.finished(source, target, OPTIONS)
    assert target.read_text() == "message"
    assert not temporary_of(target).exists()
    with Manifest(target.parent) as later:
        assert later.finished(source, target, OPTIONS)
        assert later.owns(target)
        assert not later.finished(source, target, {"format": "vtt"})
        source.write_bytes(b"other audio")
        assert not later.finished(source, target, OPTIONS)
        target.write_text("edited")
        assert not later.owns(target)


def test_killed_between_the_line_and_the_name_it_is_given_its_name(source, target):
    target.write_text("the result of an earlier recording")
    with Manifest(target.parent) as killed:
        killed.keep(source, target, OPTIONS, "message", Usage())
    target.rename(temporary_of(target))
    target.write_text("the result of an earlier recording")
    with Manifest(target.parent) as later:
        assert later.finished(source, target, OPTIONS)
    assert target.read_text() == "message"
    assert not temporary_of(target).exists()


def test_killed_before_the_line_it_counts_as_not_done(source, target):
    temporary_of(target).write_text("sa")
    with Manifest(target.parent) as later:
        assert not later.finished(source, target, OPTIONS)
        later.keep(source, target, OPTIONS, "message", Usage())
    assert target.read_text() == "message"


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_line_that_was_cut_off_counts_as_not_there_and_spoils_no_other(source, target, cut):
    with Manifest(target.parent) as killed:
        killed.keep(source, target, OPTIONS, "message", Usage())
    path = target.parent / manifest.NAME
    whole = path.read_bytes()
    path.write_bytes(whole + whole.strip()[:-cut])
    with Manifest(target.parent) as later:
        assert later.finished(source, target, OPTIONS)
        later.keep(source, target.with_suffix(".vtt"), OPTIONS, "more", Usage())
    assert [line["target"] for line in manifest.read(path)] == ["talk.srt", "talk.vtt"]


@pytest.mark.parametrize(
    "line", ["[]", "{}", '"done"', '{"event": "done"}', '{"event": ["done"]}', "\x00\xff"]
)
def test_foreign_lines_are_skipped(tmp_path, line):
    (tmp_path / manifest.NAME).write_text(line + "\n")
    assert list(manifest.read(tmp_path / manifest.NAME)) == []


def test_a_job_is_known_until_its_end_is(source, target):
    job = QueuedJob("abc-e1", 12.5, "parakeet/1/talk.mp3", ("a warning",))
    with Manifest(target.parent) as first:
        first.note_sent(source, target, OPTIONS, "https://one", job)
    with Manifest(target.parent) as later:
        assert later.job(source, target, OPTIONS, "https://one") == job
        assert later.job(source, target, OPTIONS, "https://two") is None
        assert later.job(source, target, {"format": "vtt"}, "https://one") is None
        later.note_failed(source, target, OPTIONS, EndpointUnreachable("https://one", "lost"))
        assert later.job(source, target, OPTIONS, "https://one") == job
        later.note_failed(source, target, OPTIONS, AudioEmpty("empty"))
        assert later.job(source, target, OPTIONS, "https://one") is None


def test_one_run_at_a_time_and_no_empty_manifest_is_left(tmp_path):
    with Manifest(tmp_path), pytest.raises(InvalidRequest, match="another run"):
        Manifest(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        Manifest(tmp_path / "file")


# what it cost


def line(**facts: object) -> str:
    return json.dumps({"event": "done", "target": "a", "digest": "d", **facts}) + "\n"


def test_jobs_that_one_worker_did_side_by_side_are_billed_once(tmp_path):
    spans = [
        ("one", 100.0, 10.0),
        ("one", 105.0, 10.0),
        ("one", 107.0, 2.0),
        ("one", 200.0, 5.0),
        ("two", 100.0, 10.0),
    ]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / manifest.NAME).write_text(
        "".join(
            line(audio_seconds=360, worker=worker, started=started, executed_seconds=seconds)
            for worker, started, seconds in spans
        )
        + line(audio_seconds=1800, executed_seconds=1.5)
        + line(target="b")
        + json.dumps({"event": "failed", "target": "c", "code": "audio_empty"})
    )
    reported = account(find([tmp_path, tmp_path / "below"]))
    assert (reported.results, reported.failures, reported.unfinished, reported.unknown) == (
        7,
        1,
        0,
        1,
    )
    assert reported.audio_seconds == 3600
    assert reported.job_seconds == 38.5
    assert reported.worker_seconds == 15 + 5 + 10 + 1.5
    assert reported.dollars("L4") == pytest.approx(31.5 * 0.00019)
    assert max(DOLLARS_PER_SECOND.values()) < 0.01


@pytest.mark.parametrize("worker", [LOCAL, "http://localhost:8000", "https://gpu.example/v1"])
def test_what_runpod_did_not_transcribe_has_no_price(tmp_path, worker):
    (tmp_path / manifest.NAME).write_text(
        line(audio_seconds=3600, worker=worker, started=1.0, executed_seconds=100.0)
        + line(target="b", audio_seconds=60, worker="one", started=1.0, executed_seconds=2.0)
        + line(target="c", same_job_as="b")
    )
    totals = account(find([tmp_path]))
    assert (totals.results, totals.unbilled, totals.unknown) == (2, 1, 0)
    assert (totals.audio_seconds, totals.billed_audio_seconds) == (3660, 60)
    assert totals.worker_seconds == totals.job_seconds == 2.0


def test_a_load_balancing_endpoint_of_runpods_has_a_price(tmp_path):
    (tmp_path / manifest.NAME).write_text(
        line(audio_seconds=60, worker="https://abc.api.runpod.ai", executed_seconds=2.0)
    )
    assert account(find([tmp_path])).worker_seconds == 2.0


def test_a_manifest_has_no_blank_lines(source, target):
    with Manifest(target.parent) as kept:
        kept.keep(source, target, OPTIONS, "message", Usage())
        kept.keep(source, target.with_suffix(".vtt"), OPTIONS, "more", Usage(), same_job_as=target)
    lines = (target.parent / manifest.NAME).read_text().splitlines()
    assert [json.loads(text)["event"] for text in lines] == ["done", "done"]


# files


def test_folders_and_patterns_give_their_recordings_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["b.mp3", "a.WAV", "notes.txt", "sub/c.ogg", "sub/.hidden.mp3", ".x/d.mp3", "sub/e.odd"]
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    (tmp_path / "empty").mkdir()

    def paths_of(*value: str) -> list[str]:
        return [str(recording.path) for recording in gather([Path(each) for each in value])]

    assert paths_of(".") == ["a.WAV", "b.mp3", "sub/c.ogg"]
    assert paths_of("sub", ".") == ["sub/c.ogg", "a.WAV", "b.mp3"]
    assert paths_of("**/*") == ["a.WAV", "b.mp3", "sub/c.ogg"]
    assert paths_of("sub/*.odd", "*.mp3") == ["sub/e.odd", "b.mp3"]
    assert paths_of("notes.txt", "empty", "none*", "none.mp3") == [
        "notes.txt", "empty", "none*", "none.mp3",
    ]  # fmt: skip
    assert all(ending == ending.lower() for ending in ENDINGS)


def test_results_keep_the_folder_structure():
    recordings = [
        Recording(Path("talks/a.mp3")),
        Recording(Path("talks/sub/a.mp3"), Path("sub")),
        Recording(Path("talks/sub/a.wav"), Path("sub")),
    ]
    alongside_ = plan_tasks(recordings, ["text"], None, alongside=True)
    assert [str(task.targets["text"]) for task in alongside_] == [
        "talks/a.txt", "talks/sub/a.mp3.txt", "talks/sub/a.wav.txt",
    ]  # fmt: skip
    below = plan_tasks(recordings, ["text"], Path("out"))
    assert [str(task.targets["text"]) for task in below] == [
        "out/a.txt", "out/sub/a.mp3.txt", "out/sub/a.wav.txt",
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_returned_as_it_is(tmp_path):
    (tmp_path / "secret").mkdir(mode=0)
    assert [recording.path for recording in gather([tmp_path])] == [tmp_path / "secret"]


@pytest.mark.parametrize("planted", ["link", "dangling link", "file", "hard link"])
def test_results_are_not_written_through_planted_symlinks(
    planted, source, target, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "precious"
    if planted != "dangling link":
        elsewhere.write_text("precious")
    if "hard" in planted:
        temporary_of(target).hardlink_to(elsewhere)
    elif "link" in planted:
        temporary_of(target).symlink_to(elsewhere)
    else:
        temporary_of(target).write_text("half")
    with Manifest(target.parent) as kept:
        kept.keep(source, target, OPTIONS, "message", Usage())
    assert target.read_text() == "message"
    assert not target.is_symlink()
    assert not temporary_of(target).exists()
    assert planted == "dangling link" or elsewhere.read_text() == "precious"
    assert planted != "dangling link" or not elsewhere.exists()


def test_a_manifest_that_is_a_link_is_refused(target, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "precious"
    elsewhere.write_text("precious")
    (target.parent / manifest.NAME).symlink_to(elsewhere)
    with pytest.raises(InvalidRequest):
        Manifest(target.parent)
    assert elsewhere.read_text() == "precious"
