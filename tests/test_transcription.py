"""`parakeet transcribe` over many files: killed, resumed, repeated, cancelled."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from endpoint_api import KEY, EndpointApi
from faulty_worker import HeldEngine, faulty_pipeline
from http_server import until
from job_api import running_worker
from parakeet_worker.client import manifest
from parakeet_worker.client.answer import LOCAL
from parakeet_worker.client.files import gather, plan_tasks
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.entrypoints.cli import run as runs
from parakeet_worker.entrypoints.cli.results import Results, Run
from parakeet_worker.options import Format
from parakeet_worker.settings import Settings
from recordings import tone, wav

Parakeet = Callable[..., "Ran"]

PITCHES = list(range(200, 2200, 20))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointApi]:
    home = tmp_path_factory.mktemp("worker")
    tones = {"PARAKEET_ENGINE": "tones", "OMP_NUM_THREADS": "1"}
    with (
        (home / "log").open("w") as log,
        EndpointApi() as api,
        running_worker(api, home, tones, log=log),
    ):
        yield api


@pytest.fixture
def environment(api: EndpointApi, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "RUNPOD_API_KEY": KEY,
        "RUNPOD_ENDPOINT_BASE_URL": api.base_url,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recordings, one of them in a folder below."""
    where = tmp_path / "talks"
    (where / "below").mkdir(parents=True)
    (where / "a.wav").write_bytes(wav(tone(440, 0.8)))
    (where / "below" / "b.wav").write_bytes(wav(tone(880, 0.8)))
    return where


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "parakeet_worker.entrypoints.cli", *map(str, arguments)]


@dataclass(frozen=True, slots=True)
class Ran:
    stdout: str
    stderr: str
    returncode: int


@pytest.fixture
def parakeet(
    folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Parakeet:
    """The command in the folder of the recordings; inside this process, which is faster."""
    monkeypatch.chdir(folder)

    def run(*arguments: str | Path, **settings: str) -> Ran:
        quiet = ["--quiet"] if arguments[0] == "transcribe" else []
        ran = CliRunner().invoke(
            main, [*map(str, arguments), *quiet], env={**environment, **settings}
        )
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
        return Ran(ran.stdout, ran.stderr, ran.exit_code)

    return run


def results(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".wav" and path.name != manifest.NAME
    }


def events(folder: Path) -> Counter[str]:
    return Counter(line["event"] for line in manifest.read(folder / manifest.NAME))


def audio(result: Path) -> bytes:
    """The recording of a result, as it is posted."""
    return b64encode(result.with_suffix(".wav").read_bytes())


def transcribed(api: EndpointApi, since: int = 0) -> Counter[str]:
    """How often each recording was posted."""
    return Counter(payload["audio_base64"] for payload in api.inputs()[since:])


def test_results_are_written_next_to_the_files_and_a_second_run_sends_no_request(
    parakeet, folder, api
):
    ran = parakeet("transcribe", ".", "-e", "loopback", "-f", "srt")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)
    assert {name: text.splitlines()[2] for name, text in results(folder).items()} == {
        "a.srt": "440.",
        "below/b.srt": "880.",
    }
    before = sum(api.received.values())
    again = parakeet("transcribe", ".", "-e", "loopback", "-f", "srt")
    assert (again.stdout, again.stderr, again.returncode) == ("", "", 0)
    assert sum(api.received.values()) == before


def test_an_endpoint_writes_what_the_local_engine_writes(parakeet):
    def text(*arguments: str) -> str:
        ran = parakeet("transcribe", *arguments, PARAKEET_ENGINE="tones")
        assert (ran.stderr, ran.returncode) == ("", 0)
        return ran.stdout

    for format_ in get_args(Format):
        chosen = ("a.wav", "--format", format_)
        assert text(*chosen, "-e", "loopback", "-o", "-") == text(*chosen)
    several = ("a.wav", "below/b.wav", "--timestamps")
    assert text(*several, "-e", "loopback", "-o", "-") == text(*several)


def test_an_endpoint_writes_several_formats_from_one_job(parakeet, folder, api):
    def written(*arguments: str) -> dict[str, str]:
        ran = parakeet("transcribe", "a.wav", *arguments, PARAKEET_ENGINE="tones")
        assert (ran.stderr, ran.returncode) == ("", 0)
        files = results(folder)
        for name in files:
            (folder / name).unlink()
        (folder / manifest.NAME).unlink()
        return files

    chosen = ("-f", "vtt", "-f", "srt", "-f", "text", "-f", "tsv")
    for more in (("-f", "json"), ("-f", "json", "--timestamps"), ("-f", "verbose_json"), ()):
        since = len(api.posted)
        remote = written(*chosen, *more, "-e", "loopback")
        assert len(api.posted) == since + 1
        assert remote == written(*chosen, *more, "--beside")
        assert len(remote) == (5 if more else 4)


def test_the_local_engine_supports_folders_and_resuming(parakeet, folder, api):
    before = sum(api.received.values())
    tones = {"PARAKEET_ENGINE": "tones"}
    assert parakeet("transcribe", ".", "--beside", **tones).returncode == 0
    assert results(folder) == {"a.txt": "440.\n", "below/b.txt": "880.\n"}
    written = (folder / "a.txt").stat().st_mtime_ns
    assert parakeet("transcribe", ".", "--beside", **tones).returncode == 0
    assert (folder / "a.txt").stat().st_mtime_ns == written
    assert sum(api.received.values()) == before


async def test_files_of_the_local_engine_share_batches(tmp_path, capsys):
    pitches = range(300, 700, 50)
    for hertz in pitches:
        (tmp_path / f"{hertz}.wav").write_bytes(wav(tone(hertz, 0.8)))
    engine, settings = HeldEngine(), Settings(engine="tones", scratch=tmp_path)
    with faulty_pipeline(settings, engine) as pipeline:
        run = Run(
            tasks=plan_tasks(gather([str(tmp_path)]), ["text"], None, alongside=False),
            formats=["text"],
            transcribe=runs.local(pipeline, {}, ["text"]),
            options={},
            where=LOCAL,
            concurrency=settings.concurrency,
            overwrite=False,
        )
        with Results(run) as results:
            running = asyncio.create_task(runs.transcribe_all(run, results))
            # While the engine computes the first files, the rest arrives.
            assert await asyncio.to_thread(engine.held.wait, 60)
            rest = 0.8 * (len(pitches) - len(engine.batches[0]))
            await until(lambda: pipeline.batcher.load.waiting_seconds > rest - 0.1)
            engine.released.set()
            await running
        load = pipeline.batcher.load
    # The first batch has all files if the engine's thread starts after the last one.
    batches = 1 if len(engine.batches[0]) == len(pitches) else 2
    assert (load.chunks, load.batches) == (len(pitches), batches)
    assert re.findall(r"\d+\.$", capsys.readouterr().out, re.MULTILINE) == [
        f"{hertz}." for hertz in pitches
    ]


def test_a_run_killed_after_half_of_a_hundred_files_resumes_without_repetition(
    parakeet, environment, tmp_path, api
):
    many = tmp_path / "many"
    many.mkdir()
    for hertz in PITCHES:
        (many / f"{hertz}.wav").write_bytes(wav(tone(hertz, 0.8)))
    since = len(api.posted)
    arguments = ("transcribe", many, "-e", "loopback", "-j", "8")
    with subprocess.Popen(command(*arguments), env=environment) as process:
        # Halfway: some are finished, some are at the worker, most have not started.
        api.wait_until(lambda: len(list(many.glob("*.txt"))) >= 30)
        process.kill()
    finished = {path.name: path.stat().st_mtime_ns for path in many.glob("*.txt")}
    assert 30 <= len(finished) < 100
    unknown = len(api.posted) - since - events(many)["sent"]
    assert 0 <= unknown <= 8

    ran = parakeet(*arguments)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)
    assert results(many) == {f"{hertz}.txt": f"{hertz}.\n" for hertz in sorted(PITCHES, key=str)}
    assert {name: (many / name).stat().st_mtime_ns for name in finished} == finished
    assert events(many)["done"] == 100
    # Repeated are only jobs that the killed run posted without receiving their id.
    posts = transcribed(api, since)
    assert sum(posts.values()) == 100 + unknown
    assert {posts[audio(many / name).decode()] for name in finished} == {1}
    before = sum(api.received.values())
    assert parakeet(*arguments).returncode == 0
    assert sum(api.received.values()) == before


@pytest.mark.usefixtures("without_waits")
def test_each_lost_answer_of_run_costs_one_more_job_with_the_same_result(parakeet, folder, api):
    since = len(api.posted)
    api.faults["run"].extend(["lose", "lose"])
    arguments = ("transcribe", ".", "-e", "loopback", "-j", "1")
    assert parakeet(*arguments).returncode == 0
    jobs = list(api.posted)[since:]
    assert [api.result(job)["output"]["text"] for job in jobs] == ["440.", "440.", "440.", "880."]
    assert events(folder) == events(folder / "below") == {"sent": 1, "done": 1}
    assert results(folder) == {"a.txt": "440.\n", "below/b.txt": "880.\n"}
    assert re.search(r"results +2\n", parakeet("cost").stdout)
    assert parakeet(*arguments).returncode == 0
    assert len(api.posted) == since + len(jobs)


def test_a_job_that_an_earlier_run_has_sent_is_fetched(parakeet, environment, folder, api):
    api.endings.append({"status": "IN_QUEUE"})
    with subprocess.Popen(
        command("transcribe", "a.wav", "-e", "loopback"), cwd=folder, env=environment
    ) as process:
        api.wait_until(lambda: (folder / manifest.NAME).exists() and events(folder)["sent"] == 1)
        process.kill()
    job = list(api.posted)[-1]
    api.posted[job].ended = {"status": "COMPLETED", "output": {"text": "from before"}}
    assert parakeet("transcribe", "a.wav", "-e", "loopback").returncode == 0
    assert results(folder) == {"a.txt": "from before\n"}
    assert list(api.posted)[-1] == job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cancels_its_jobs_and_prints_how_to_resume(
    environment, folder, api, number
):
    api.endings.extend([{"status": "IN_PROGRESS"}] * 2)
    since = len(api.posted)
    with subprocess.Popen(
        command("transcribe", ".", "-e", "loopback"),
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        api.wait_until(lambda: len(api.posted) == since + 2)
        process.send_signal(number)
        _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text == "parakeet: interrupted; run the same command again to resume\n"
    assert sorted(api.cancelled[-2:]) == sorted(list(api.posted)[since:])
    assert results(folder) == {}


def test_failures_are_listed_at_the_end_and_tried_again_by_the_next_run(parakeet, folder, api):
    (folder / "text.mp3").write_text("no audio at all\n" * 100)
    api.endings.append({"status": "TIMED_OUT"})
    ran = parakeet("transcribe", "a.wav", "text.mp3", "none.wav", "below", "-e", "loopback", "-j1")
    assert ran.returncode == 1
    assert ran.stdout == ""
    failures = [re.match(r"([\w./]+): (\w+): .+", line) for line in ran.stderr.splitlines()]
    assert [files and files.groups() for files in failures] == [
        ("a.wav", "job_expired"),
        ("text.mp3", "audio_undecodable"),
        ("none.wav", "source_not_found"),
    ]
    assert results(folder) == {
        "below/b.txt": "880.\n",
        "text.mp3": (folder / "text.mp3").read_text(),
    }
    assert events(folder) == {"sent": 2, "failed": 2}
    before = len(api.posted)
    assert parakeet("transcribe", "a.wav", "below", "-e", "loopback").returncode == 0
    assert results(folder)["a.txt"] == "440.\n"
    assert len(api.posted) == before + 1


def test_a_wrong_key_is_reported_once_and_for_no_file(parakeet, folder):
    ran = parakeet("transcribe", ".", "-e", "loopback", RUNPOD_API_KEY="wrong")
    assert ran.returncode == 2
    assert re.fullmatch(r"parakeet: endpoint_denied: .+ 401: check the API key\n", ran.stderr)
    assert results(folder) == {}
    without = parakeet("transcribe", ".", "-e", "loopback", RUNPOD_API_KEY="")
    assert without.returncode == 2
    assert "api_key" in without.stderr


def test_a_changed_recording_is_transcribed_again_and_an_edited_result_is_kept(parakeet, folder):
    arguments = ("transcribe", ".", "-e", "loopback")
    assert parakeet(*arguments).returncode == 0
    (folder / "a.wav").write_bytes(wav(tone(660, 0.8)))
    assert parakeet(*arguments).returncode == 0
    assert results(folder)["a.txt"] == "660.\n"
    (folder / "a.wav").write_bytes(wav(tone(550, 1.0)))
    (folder / "a.txt").write_text("corrected by hand")
    ran = parakeet(*arguments)
    assert ran.returncode == 1
    assert "--overwrite" in ran.stderr
    assert results(folder)["a.txt"] == "corrected by hand"
    assert parakeet(*arguments, "--overwrite").returncode == 0
    assert results(folder)["a.txt"] == "550.\n"


def test_another_run_in_the_same_folder_is_refused(parakeet, folder):
    with manifest.Manifest(folder):
        ran = parakeet("transcribe", "a.wav", "-e", "loopback")
    assert ran.returncode == 1
    assert "another run is writing its results there" in ran.stderr


def test_the_cost_of_a_run_is_computed_from_its_manifest(parakeet, folder):
    assert parakeet("transcribe", ".", "-e", "loopback").returncode == 0
    lines = [json.loads(line) for line in (folder / manifest.NAME).read_text().split("\n") if line]
    (done,) = [line for line in lines if line["event"] == "done"]
    assert done["audio_seconds"] == pytest.approx(0.8)
    assert done["worker"] == "worker-1"
    ran = parakeet("cost", "--gpu", "L4")
    assert ran.returncode == 0
    failures = dict(re.split(r"  +", line, maxsplit=1) for line in ran.stdout.splitlines()[:4])
    assert failures["results"] == "2"
    assert failures["audio"] == "0.00 hours"
    assert re.search(r"price +0\.\d+ dollars on L4", ran.stdout)
    assert "August 2026" in ran.stdout
    nothing = parakeet("cost", folder.parent / "missing")
    assert nothing.returncode == 2
