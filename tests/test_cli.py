import asyncio
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from confined import process_one
from loopback import WebServer, sends
from parakeet_worker.client import manifest
from parakeet_worker.client.files import Recording, gather, plan_tasks
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.options import Format
from parakeet_worker.version import __version__
from recordings import encode, silence, tone, wav
from test_native_compilation import needs_compiler

Ran = subprocess.CompletedProcess[str]
Parakeet = Callable[..., Ran]
Invoke = Callable[..., Result]

PITCHES = {"a.wav": 440, "b.wav": 880, "c.wav": 220}


# Prints whether SIGTERM has a handler when the first large module is about to be imported.
EARLY = """
import signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
sys.meta_path.insert(0, Finder())
import parakeet_worker.entrypoints.cli
"""


def test_as_process_1_it_handles_sigterm_before_its_imports() -> None:
    for prefix, handled in ((process_one(), "True\n"), ([], "False\n")):
        command = [*prefix, sys.executable, "-c", EARLY]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        assert ran.stdout == handled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings; the first is the longest, so that it is done last."""
    where = tmp_path / "folder"
    where.mkdir()
    for (name, hertz), seconds in zip(PITCHES.items(), (20, 2, 1), strict=True):
        (where / name).write_bytes(wav(tone(hertz, seconds)))
    return where


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    foreign = {
        name: message for name, message in os.environ.items() if not name.startswith("PARAKEET_")
    }
    yield {**foreign, "PARAKEET_ENGINE": "tones", "PARAKEET_SCRATCH": str(scratch)}
    assert list(scratch.iterdir()) == []


@pytest.fixture
def parakeet(folder: Path, environment: dict[str, str]) -> Parakeet:
    """Runs the command as a user does, in the folder of the recordings."""

    def run(*arguments: str | bytes, **settings: str) -> Ran:
        return subprocess.run(
            command(*arguments),
            cwd=folder,
            env={**environment, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.fixture
def invoke(folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs the command inside this process, which is faster."""
    monkeypatch.chdir(folder)

    def run(*arguments: str | Path, **settings: str) -> Result:
        return CliRunner().invoke(
            main, ["transcribe", "--quiet", *map(str, arguments)], env={**environment, **settings}
        )

    return run


def command(*arguments: str | bytes) -> list[str | bytes]:
    program = [sys.executable, "-m", "parakeet_worker.entrypoints.cli"]
    return [*program, "transcribe", "--quiet", *arguments]


def files_in(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != manifest.NAME
    }


# standard output and standard error


def test_one_file_gives_its_text_and_nothing_else(parakeet):
    ran = parakeet("b.wav")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("880.\n", "", 0)


def test_several_files_are_labelled_in_the_requested_order(invoke):
    ran = invoke("a.wav", "c.wav", "b.wav", "c.wav", PARAKEET_CONCURRENCY="2")
    assert ran.stdout == (
        "==> a.wav <==\n440.\n==> c.wav <==\n220.\n==> b.wav <==\n880.\n==> c.wav <==\n220.\n"
    )
    assert (ran.stderr, ran.exit_code) == ("", 0)


def test_audio_without_a_header_is_transcribed_with_its_format(invoke, folder):
    encode(folder / "call.ul", "-ar", "8000", "-f", "mulaw", samples=tone(440, 1))
    ran = invoke("call.ul", "b.wav", "--audio-format", "ulaw")
    assert ran.stdout == "==> call.ul <==\n440.\n==> b.wav <==\n880.\n"
    ran = invoke("call.ul", "--audio-format", "s16le")
    assert "audio_format: s16le requires a rate" in ran.stderr
    assert ran.exit_code == 2


def test_each_failed_file_is_one_line_and_the_others_are_transcribed(parakeet, folder):
    (folder / "text.mp3").write_text("this is no audio at all\n" * 100)
    (folder / "empty.wav").touch()
    (folder / "short.wav").write_bytes(wav(tone(440, 0.02)))
    (folder / "sub").mkdir()
    ran = parakeet("a.wav", "none.wav", "text.mp3", "empty.wav", "sub", "short.wav", "b.wav")
    assert ran.returncode == 1
    assert ran.stdout == "==> a.wav <==\n440.\n==> b.wav <==\n880.\n"
    reported = [re.match(r"([\w.]+): (\w+): .+", line) for line in ran.stderr.splitlines()]
    assert [match and match.groups() for match in reported] == [
        ("none.wav", "source_not_found"),
        ("text.mp3", "audio_undecodable"),
        ("empty.wav", "audio_empty"),
        ("sub", "source_not_found"),
        ("short.wav", "audio_too_short"),
    ]


def test_a_warning_is_reported_and_not_a_failure(invoke, folder):
    whole = encode(folder / "whole.ogg", "-c:a", "libvorbis", samples=tone(440, 20)).read_bytes()
    (folder / "cut.ogg").write_bytes(whole[: whole.rfind(b"OggS")])
    ran = invoke("cut.ogg")
    assert (ran.stdout, ran.exit_code) == ("440.\n", 0)
    assert re.fullmatch(r"cut\.ogg: warning: .+\n", ran.stderr)


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_several_json_answers_are_json_lines_that_name_their_files(invoke, format_):
    ran = invoke(*PITCHES, "none.wav", "--format", format_)
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == list(PITCHES)
    assert [answer["text"] for answer in answers] == ["440.", "880.", "220."]
    assert ran.exit_code == 1
    single = invoke("b.wav", "--format", format_)
    assert {"file": "b.wav", **json.loads(single.stdout)} == answers[1]


def test_timestamps_alone_mean_json(invoke):
    ran = invoke("b.wav", "--timestamps")
    assert ran.exit_code == 0
    (word,) = json.loads(ran.stdout)["timestamps"]["word"]
    assert (word["word"], word["start"], word["end"]) == ("880.", 0.0, 2.0)
    assert invoke("b.wav", "--timestamps", "-f", "json").stdout == ran.stdout
    assert "timestamps" not in json.loads(invoke("b.wav", "-f", "json").stdout)


def test_a_name_that_is_no_utf_8_is_shown_as_well_as_it_can_be(parakeet, folder):
    os.rename(folder / "a.wav", os.fsencode(folder) + b"/\xff.wav")  # noqa: PTH104
    ran = parakeet(b"\xff.wav", "b.wav", b"\xfe.wav", "--format", "json")
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(answer["file"], answer["text"]) for answer in answers] == [
        ("�.wav", "440."),
        ("b.wav", "880."),
    ]
    assert ran.stderr.startswith("�.wav: source_not_found: ")
    assert ran.returncode == 1


def test_files_may_be_named_like_options(invoke, folder):
    (folder / "b.wav").rename(folder / "-o")
    (folder / "c.wav").rename(folder / "--format")
    ran = invoke("./-o", "--", "-o", "--format", "a.wav")
    assert ran.stdout == (
        "==> -o <==\n880.\n==> -o <==\n880.\n==> --format <==\n220.\n==> a.wav <==\n440.\n"
    )
    assert ran.exit_code == 0


def test_a_closed_pipe_causes_no_traceback(folder, environment):
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        command("a.wav", "b.wav"),
        cwd=folder,
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (ran.stderr, ran.returncode) == (b"", 1)


# wrong usage


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Missing argument 'INPUT...'"),
        (["a.wav", "--format", "jsn"], "Invalid value for '--format'"),
        (["a.wav", "--fromat", "json"], "--fromat"),
        (["a.wav", "--timestamps", "--format", "text"], "--timestamp requires --format json"),
        (["a.wav", "--timestamps", "--format", "srt"], "--timestamp requires --format json"),
        (["a.wav", "--overwrite"], "--overwrite requires --output"),
        (["a.wav", "-o", __file__], "Directory"),
    ],
)
def test_wrong_usage_exits_with_status_2_and_names_the_error(invoke, arguments, reason):
    ran = invoke(*arguments)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert reason in ran.stderr


def test_an_unknown_setting_is_status_2_with_the_right_name(parakeet):
    ran = parakeet("a.wav", PARAKEET_MODLE="demo")
    assert (ran.stdout, ran.returncode) == ("", 2)
    assert ran.stderr == (
        "parakeet: invalid_setting: PARAKEET_MODLE: no such setting; did you mean PARAKEET_MODEL?\n"
    )


def test_a_model_that_is_not_there_is_status_2(invoke):
    ran = invoke("a.wav", "--model", "/none/such.nemo", PARAKEET_ENGINE="native")
    assert (ran.stdout, ran.exit_code) == ("", 2)
    assert ran.stderr.startswith("parakeet: weights_missing: ")
    assert "/none/such.nemo" in ran.stderr


# results in a folder


@pytest.mark.parametrize("format_", get_args(Format))
def test_a_result_in_a_folder_is_what_standard_output_would_be(invoke, tmp_path, format_):
    output = tmp_path / "new" / "results"
    ran = invoke("b.wav", "-o", output, "--format", format_)
    assert (ran.stdout, ran.stderr, ran.exit_code) == ("", "", 0)
    ending = {"text": "txt", "verbose_json": "json"}.get(format_, format_)
    assert files_in(output) == {f"b.{ending}": invoke("b.wav", "--format", format_).stdout}


def test_results_of_files_with_equal_names_differ(invoke, folder, tmp_path):
    other = folder / "other"
    other.mkdir()
    (folder / "a.mp3").write_bytes(wav(tone(1000, 1)))
    (other / "a.wav").write_bytes(wav(tone(2000, 1)))
    paths = [folder / "a.wav", folder / "a.mp3", other / "a.wav", folder / "b.wav"]
    assert invoke(*paths, "-o", tmp_path / "results").exit_code == 0
    assert files_in(tmp_path / "results") == {
        "a.wav.txt": "440.\n",
        "a.mp3.txt": "1000.\n",
        "a.wav-2.txt": "2000.\n",
        "b.txt": "880.\n",
    }


def test_nothing_is_overwritten_unasked(invoke, tmp_path):
    output = tmp_path / "results"
    output.mkdir()
    (output / "a.txt").write_text("dear to me")
    ran = invoke("a.wav", "b.wav", "-o", output)
    assert ran.exit_code == 1
    assert files_in(output) == {"a.txt": "dear to me", "b.txt": "880.\n"}
    assert re.fullmatch(r"a\.wav: invalid_request: .*a\.txt: .*--overwrite.*\n", ran.stderr)

    again = invoke("a.wav", "b.wav", "-o", output, "--overwrite")
    assert (again.stdout, again.stderr, again.exit_code) == ("", "", 0)
    assert files_in(output) == {"a.txt": "440.\n", "b.txt": "880.\n"}


def test_a_failed_file_leaves_the_earlier_result_alone(invoke, folder, tmp_path):
    output = tmp_path / "results"
    output.mkdir()
    (output / "a.txt").write_text("the earlier result")
    (folder / "a.wav").write_text("broken")
    assert invoke("a.wav", "-o", output, "--overwrite").exit_code == 1
    assert files_in(output) == {"a.txt": "the earlier result"}


def test_a_result_that_cannot_be_written_is_a_failed_file_and_leaves_nothing(invoke, tmp_path):
    output = tmp_path / "results"
    (output / "a.txt").mkdir(parents=True)
    ran = invoke("a.wav", "b.wav", "-o", output, "--overwrite")
    assert ran.exit_code == 1
    assert re.fullmatch(
        r".*a\.wav: result_not_written: .*a\.txt cannot be written: .+\n", ran.stderr
    )
    assert sorted(files_in(output)) == ["b.txt"]
    assert list((output / "a.txt").iterdir()) == []


# names of results


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["talk.mp3"], ["talk"]),
        (["talk.mp3", "song.mp3"], ["talk", "song"]),
        (["talk.mp3", "talk.wav"], ["talk.mp3", "talk.wav"]),
        (["x/talk.mp3", "y/talk.mp3", "z/talk.mp3"], ["talk.mp3", "talk.mp3-2", "talk.mp3-3"]),
        (["talk.mp3", "talk.mp3"], ["talk.mp3", "talk.mp3-2"]),
        (["talk", "talk.mp3"], ["talk", "talk.mp3"]),
        (["a.mp3", "a.wav", "a.mp3.txt"], ["a.mp3", "a.wav", "a.mp3.txt"]),
        (["a.mp3.txt", "a.mp3", "a.wav"], ["a.mp3", "a.mp3-2", "a.wav"]),
        (["x/a.b", "y/a.b", "a.b-2.c"], ["a.b", "a.b-2", "a.b-2.c"]),
        (["a.b-2.c", "x/a.b", "y/a.b"], ["a.b-2", "a.b", "a.b-3"]),
        (["Talk.mp3", "talk.wav"], ["Talk.mp3", "talk.wav"]),
        (["x/Talk.mp3", "y/talk.mp3"], ["Talk.mp3", "talk.mp3-2"]),
        (["vol.1.mp3", "vol.2.mp3"], ["vol.1", "vol.2"]),
        ([".hidden", ".hidden.mp3"], [".hidden", ".hidden.mp3"]),
    ],
)
def test_results_are_named_after_their_files(files, names):
    tasks = plan_tasks([Recording(Path(file)) for file in files], ["srt"], Path("out"))
    assert [task.targets["srt"] for task in tasks] == [
        Path("out") / f"{name}.srt" for name in names
    ]
    assert [task.path for task in tasks] == [Path(file) for file in files]


PARTS = st.sampled_from(["a", "A", "a.b", "a.b-2", "a.b-3", "b", ".b", "a-2", "a.b.b"])
FILES = st.builds(
    lambda folder, parts: Path(folder) / "".join(parts),
    st.sampled_from("012"),
    st.lists(PARTS, min_size=1, max_size=2),
)


@given(st.lists(FILES, min_size=2, max_size=12))
def test_no_two_files_share_a_result(files):
    tasks = plan_tasks([Recording(file) for file in files], ["text", "srt"], Path("out"))
    targets = [target for task in tasks for target in task.targets.values()]
    assert len({str(target).casefold() for target in targets}) == 2 * len(files)
    assert all(target.parent == Path("out") for target in targets)


def test_without_a_folder_results_go_to_standard_output():
    assert [task.targets for task in plan_tasks([Recording(Path("a.mp3"))], ["text"], None)] == [{}]


def test_results_of_pipes_and_urls_go_to_standard_output(tmp_path):
    inputs = ["-", "/dev/stdin", "https://user:key@example.com/talks/one.mp3?signature=secret"]
    tasks = plan_tasks(gather(inputs), ["text"], None, alongside=True)
    assert [task.targets for task in tasks] == [{}, {}, {}]
    assert [task.name for task in tasks] == [
        "-", "/dev/stdin", "https://example.com/talks/one.mp3",
    ]  # fmt: skip
    named = plan_tasks(gather(inputs), ["text"], tmp_path)
    assert [task.targets["text"].name for task in named] == [
        "stdin.txt", "stdin-2.txt", "one.txt",
    ]  # fmt: skip


# pipes and addresses


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_read(folder, environment, name):
    with (folder / "b.wav").open("rb") as file:
        ran = subprocess.run(
            command(name), cwd=folder, env=environment, stdin=file, capture_output=True, check=False
        )
    assert (ran.stdout, ran.stderr, ran.returncode) == (b"880.\n", b"", 0)


def test_a_fifo_is_read_once_and_never_counts_as_finished(folder, environment, tmp_path):
    fifo = folder / "pipe.wav"
    os.mkfifo(fifo)
    for hertz in (880, 440):
        process = subprocess.Popen(
            command("pipe.wav", "-o", str(tmp_path / "out")), cwd=folder, env=environment
        )
        fifo.write_bytes(wav(tone(hertz, 1)))
        assert process.wait() == 0
        assert files_in(tmp_path / "out") == {"stdin.txt": f"{hertz}.\n"}


def test_a_pipe_that_is_too_large_is_refused(folder, environment):
    ran = subprocess.run(
        command("-", "b.wav"), cwd=folder, input=bytes(200_000), capture_output=True, check=False,
        env={**environment, "PARAKEET_MAX_AUDIO_BYTES": "100000"},
    )  # fmt: skip
    assert ran.stderr.startswith(b"-: audio_too_large: ")
    assert (ran.stdout.splitlines()[-1], ran.returncode) == (b"880.", 1)


async def test_a_url_is_an_input(parakeet, folder, web: WebServer, tmp_path):
    web.at("/talk.wav", sends((folder / "b.wav").read_bytes()))

    async def run(*arguments: str | Path) -> Ran:
        settings = {"PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true"}
        return await asyncio.to_thread(parakeet, *map(str, arguments), **settings)

    address = f"{web.address}/talk.wav?key=secret"
    ran = await run(address)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("880.\n", "", 0)
    arguments = (address, "a.wav", "-o", tmp_path / "out")
    assert (await run(*arguments)).returncode == 0
    assert files_in(tmp_path / "out") == {"a.txt": "440.\n", "talk.txt": "880.\n"}
    assert "secret" not in (tmp_path / "out" / manifest.NAME).read_text()
    requests = len(web.received)
    assert (await run(*arguments)).returncode == 0
    assert len(web.received) == requests
    # Another query may be another recording.
    assert (await run(address + "2", "-o", tmp_path / "out", "--overwrite")).returncode == 0
    assert len(web.received) == requests + 1


# several formats


def test_several_formats_are_written_from_one_transcription(invoke, tmp_path):
    formats = ["srt", "vtt", "txt", "tsv", "json"]
    arguments = [argument for name in formats for argument in ("-f", name)]
    ran = invoke("b.wav", *arguments, "-o", tmp_path / "out")
    assert (ran.stderr, ran.exit_code) == ("", 0)
    expected = {f"b.{name}": invoke("b.wav", "-f", name).stdout for name in formats}
    assert files_in(tmp_path / "out") == expected
    lines = list(manifest.read(tmp_path / "out" / manifest.NAME))
    assert [line.get("same_job_as") for line in lines] == [None] + ["b.srt"] * 4
    (tmp_path / "out" / "b.vtt").unlink()
    assert invoke("b.wav", *arguments, "-o", tmp_path / "out").exit_code == 0
    assert files_in(tmp_path / "out") == expected


def test_limits_of_subtitles_apply_to_the_formats_that_have_cues(invoke, tmp_path):
    limits = ("--max-line-length", "10", "--max-lines", "1", "--max-cps", "20", "--max-duration", 1)
    ran = invoke("b.wav", "-f", "srt", "-f", "text", *limits, "-o", tmp_path / "out")
    assert (ran.stderr, ran.exit_code) == ("", 0)
    written = files_in(tmp_path / "out")
    assert written["b.txt"] == invoke("b.wav", "-f", "text").stdout
    blocks = [block.splitlines() for block in written["b.srt"].strip().split("\n\n")]
    assert all(len(block) == 3 and len(block[2]) <= 10 for block in blocks)
    assert "--> 00:00:01,000" in written["b.srt"]
    assert written["b.srt"] == invoke("b.wav", "-f", "srt", *limits).stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--max-lines", "1"], "limits of subtitles require --format srt or vtt"),
        (["-f", "srt", "--max-lines", "9"], "max_lines"),
        (["-f", "srt", "-f", "vtt"], "several formats require --output or --beside"),
        (["-f", "json", "-f", "verbose_json", "--beside"], "to the same file"),
        (["--wait"], "--wait requires --endpoint"),
        (["-e", "abc", "--model", "demo"], "--model cannot be combined with --endpoint"),
    ],
)
def test_options_that_contradict_each_other(invoke, arguments, reason):
    ran = invoke("b.wav", *arguments)
    assert (ran.stdout, ran.exit_code) == ("", 2)
    assert reason in ran.stderr


# before the model loads, and after the run


def test_missing_files_are_reported_without_loading_a_model(invoke):
    ran = invoke("none.wav", "nothing*", PARAKEET_ENGINE="native", PARAKEET_MODEL="/none/such.nemo")
    assert (ran.stdout, ran.exit_code) == ("", 1)
    assert ran.stderr.splitlines() == [
        "none.wav: source_not_found: none.wav does not exist",
        "nothing*: source_not_found: nothing* does not exist",
    ]


def test_a_run_ends_with_a_summary(folder, environment, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)

    def summary(*arguments: str) -> str:
        ran = CliRunner().invoke(main, ["transcribe", *arguments], env=environment)
        return ran.stderr.splitlines()[-1]

    first = summary("a.wav", "b.wav", "-o", str(tmp_path))
    assert re.fullmatch(
        r"parakeet: 2 transcribed; 22\.0 s of audio in \d+\.\d s, \d+\.\dx real time", first
    )
    again = summary("a.wav", "b.wav", "none.wav", "-o", str(tmp_path))
    assert again == "parakeet: 0 transcribed, 2 already there, 1 failed"


def test_a_full_disk_ends_the_run_with_its_reason(folder, environment, tmp_path):
    (tmp_path / "out").mkdir()
    arguments = shlex.join(command(*PITCHES, "-j", "1", "-f", "json", "--timestamps", "-o", "out"))
    with_small_disk = f"mount -t tmpfs -o size=4k none out && exec {arguments}"
    for name in PITCHES:
        (folder / name).rename(tmp_path / name)
    ran = subprocess.run(
        ["/usr/bin/unshare", "--mount", "--map-root-user", "sh", "-c", with_small_disk],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("parakeet: result_not_written: out/")
    assert "No space left on device" in ran.stderr
    assert ran.stderr.count("\n") == 1


# on a terminal


def on_a_terminal(arguments: list[str], *, stdout: Any, **options: Any) -> tuple[str, bytes]:
    """What a terminal shows while the command runs, and what went to `stdout` if that is a pipe."""
    own, peer = pty.openpty()
    termios.tcsetwinsize(peer, (24, 80))
    process = subprocess.Popen(
        command(*arguments), stderr=peer, stdout=stdout or peer, stdin=peer, **options
    )
    os.close(peer)
    shown = b""
    while True:
        try:
            shown += os.read(own, 4096)
        except OSError:  # that is how a terminal ends
            break
    os.close(own)
    piped, _ = process.communicate()
    assert process.returncode == 0
    return shown.decode(), piped or b""


def test_a_terminal_shows_a_progress_bar_and_a_pipe_gets_the_data_alone(folder, environment):
    shown, piped = on_a_terminal(
        ["a.wav", "b.wav"], stdout=subprocess.PIPE, cwd=folder, env=environment
    )
    assert piped == b"==> a.wav <==\n440.\n==> b.wav <==\n880.\n"
    assert re.search(r"\b[12]/2\b.*file", shown)
    assert "440" not in shown


def test_on_a_terminal_results_do_not_mix_with_the_progress_bar(folder, environment):
    shown, _ = on_a_terminal(["a.wav", "b.wav"], stdout=None, cwd=folder, env=environment)
    assert re.search(r"(^|\r|\n)==> a\.wav <==\r\n440\.\r\n", shown)
    assert re.search(r"(^|\r|\n)==> b\.wav <==\r\n880\.\r\n", shown)


# the installed command


def test_the_installed_command_prints_version_and_options():
    parakeet = Path(sys.executable).with_name("parakeet")
    shown = subprocess.run([parakeet, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"parakeet, version {__version__}\n"
    short = subprocess.run([parakeet, "-h"], capture_output=True, text=True, check=True)
    assert "..." not in short.stdout.replace("COMMAND [ARGS]...", "")
    usage = CliRunner().invoke(main, ["transcribe", "--help"])
    for option in ("--format", "--timestamp", "--model", "--output", "--overwrite"):
        assert option in usage.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_names_the_command(shell):
    script = CliRunner().invoke(main, ["completion", shell])
    assert script.exit_code == 0
    assert "_PARAKEET_COMPLETE" in script.stdout


def test_help_imports_no_heavy_module():
    code = (
        "import sys; from parakeet_worker.entrypoints.cli import main\n"
        "main(['transcribe', '-h'], standalone_mode=False)\n"
        "heavy = {'numpy', 'torch', 'httpx', 'pydantic', 'aiohttp', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_silence_is_an_empty_line(invoke, tmp_path):
    (tmp_path / "quiet.wav").write_bytes(wav(silence(1)))
    ran = invoke(tmp_path / "quiet.wav")
    assert (ran.stdout, ran.stderr, ran.exit_code) == ("\n", "", 0)


@needs_compiler
def test_kernels_are_compiled_for_a_card_that_is_not_here(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "kernels"
    requests = ["compile-kernels", str(folder), "--model", "demo", "--card", "8.9"]
    made = CliRunner().invoke(main, requests, env=environment)
    assert made.exit_code == 0, made.output
    assert re.fullmatch(r"sm_89   \d+ kernels, [\d.]+ s\n", made.stdout)
    assert len(list(folder.glob("sm_89-bf16-*.json"))) == 2, "one is reproducible"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--card", "7.5"], "no kernels for compute capability 7.5"),
        (["--card", "hopper"], "not a compute capability such as 9.0"),
    ],
)
def test_cards_without_kernels_are_refused(
    tmp_path: Path, environment: dict[str, str], options: list[str], message: str
) -> None:
    requests = ["compile-kernels", str(tmp_path / "kernels"), "--model", "demo", *options]
    refused = CliRunner().invoke(main, requests, env=environment)
    assert refused.exit_code == 2
    assert message in refused.output


def test_a_converted_model_transcribes_like_its_checkpoint(
    invoke: Invoke, folder: Path, environment: dict[str, str]
) -> None:
    target = folder / "model" / "prepacked.safetensors"
    requests = ["convert", str(target), "--model", "demo", "--precision", "fp32"]
    made = CliRunner().invoke(main, requests, env=environment)
    assert made.exit_code == 0, made.output
    sample = str(Path(__file__).parent.parent / "samples" / "en.ogg")
    texts = [
        invoke(sample, "--model", model, PARAKEET_ENGINE="native").stdout
        for model in (str(target.parent), "demo")
    ]
    assert texts[0] == texts[1] != ""
    wrong = CliRunner().invoke(main, ["convert", "model.bin", "--model", "demo"], env=environment)
    assert wrong.exit_code == 2


@pytest.mark.parametrize(
    ("value", "status"), [("2", 0), ("2-4", 0), ("any", 0), ("4-2", 2), ("0", 2), ("two", 2)]
)
def test_speakers_are_a_number_or_a_range(invoke, value, status):
    assert invoke("a.wav", f"--speakers={value}").exit_code == status


@pytest.mark.parametrize("before", [("--speakers",), ("--speakers", "1"), ("--speakers=any",)])
def test_an_input_may_follow_speakers(invoke, before):
    sample = str(Path(__file__).parent.parent / "samples" / "en.ogg")
    answer = invoke(*before, sample, "--model", "demo", "--format", "tsv", PARAKEET_ENGINE="native")
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith("start\tend\tspeaker\ttext\n")
    assert "\tSpeaker 1\t" in answer.stdout
