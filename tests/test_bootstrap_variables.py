"""What platforms write into an environment does not keep a worker from starting."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from confined import mounted, without_user
from parakeet_worker.bootstrap.choices import Choices
from parakeet_worker.bootstrap.variables import clean, foreign, value
from parakeet_worker.errors import InvalidSetting
from parakeet_worker.settings import Settings
from test_queue_main import ROOT, tone

SERVICE = {
    "PARAKEET_SERVICE_HOST": "10.0.0.7",
    "PARAKEET_SERVICE_PORT": "8000",
    "PARAKEET_SERVICE_PORT_HTTP": "8000",
    "PARAKEET_PORT": "tcp://10.0.0.7:8000",
    "PARAKEET_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "PARAKEET_PORT_8000_TCP_ADDR": "10.0.0.7",
    "PARAKEET_PORT_8000_TCP_PORT": "8000",
    "PARAKEET_PORT_8000_TCP_PROTO": "tcp",
    "PARAKEET_WORKER_SERVICE_HOST": "10.0.0.8",
    "PARAKEET_WORKER_PORT": "tcp://10.0.0.8:8000",
    "PARAKEET_NAME": "/web/parakeet",
    "PARAKEET_ENV_PATH": "/usr/bin",
}


@pytest.mark.parametrize("name", SERVICE)
def test_what_kubernetes_and_docker_set_for_a_service_is_ignored(name: str) -> None:
    assert foreign(name, SERVICE[name])
    Settings.from_environment({name: SERVICE[name]})


@pytest.mark.parametrize(
    ("name", "text"),
    [("PARAKEET_PORT", "8000"), ("PARAKEET_MODLE", "demo"), ("PARAKEET_SERVICE", "10.0.0.7")],
)
def test_a_mistake_is_not_taken_for_a_platforms(name: str, text: str) -> None:
    assert not foreign(name, text)
    with pytest.raises(InvalidSetting, match="no such setting"):
        Settings.from_environment({name: text})


def test_one_warning_names_all_that_was_ignored() -> None:
    (warning,) = clean({**SERVICE, "HOME": "/home/me"})
    assert all(name in warning for name in SERVICE)


def test_blanks_are_stripped_and_empty_values_are_none() -> None:
    environment = {
        "PARAKEET_HOME": " /vol/Parakeet\n", "HF_HUB_CACHE": "", "HF_HOME": " \t",
        "RUNPOD_PING_INTERVAL": "", "RUNPOD_AI_API_KEY": "key\n", "CUDA_VISIBLE_DEVICES": "",
        "OTHER": " x ", "HOME": "/home/me",
    }  # fmt: skip
    assert clean(environment) == []
    assert environment == {
        "PARAKEET_HOME": "/vol/Parakeet", "RUNPOD_AI_API_KEY": "key",
        # Without a value it means something: no GPU.
        "CUDA_VISIBLE_DEVICES": "",
        "OTHER": " x ", "HOME": "/home/me",
    }  # fmt: skip
    assert Choices.from_environment({"PARAKEET_HOME": "/vol/P\n"}).home == Path("/vol/P")
    assert Settings.from_environment({"PARAKEET_MODEL": " demo\n"}).model == "demo"
    assert Settings.from_environment({"PARAKEET_SCRATCH": "  "}) == Settings()


@pytest.mark.parametrize("name", ["PARAKEET_HOME", "PARAKEET_MODEL", "S3_SECRET_KEY"])
@pytest.mark.parametrize("text", ['"hush"', "'hush'", "hu\nsh"])
def test_quotes_and_line_breaks_are_refused_by_name_and_not_repeated(name: str, text: str) -> None:
    with pytest.raises(InvalidSetting, match=name) as refused:
        value({name: text}, name)
    assert "\n" not in str(refused.value)
    assert "hu" not in str(refused.value)
    reader = Choices if name == "PARAKEET_HOME" else Settings
    with pytest.raises(InvalidSetting, match=name):
        reader.from_environment({name: text})


@pytest.mark.parametrize("name", ["PARAKEET_HOME", "PARAKEET_LOCAL"])
def test_a_relative_home_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name}: must be an absolute path, got 'Parakeet'"):
        Choices.from_environment({name: "Parakeet"})


def test_a_job_is_answered_under_what_kubernetes_sets(tmp_path: Path) -> None:
    ended = answered([], tmp_path, {"HOME": str(tmp_path), **SERVICE, "HF_HUB_CACHE": ""})
    assert ended.stderr.count("ignored, set by the platform") == 1


def test_a_user_without_home_and_entry_is_served(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    ended = answered(without_user(), tmp_path, {"PARAKEET_MODEL": "demo"})
    assert "there is no HOME and no user 12345 in passwd" in ended.stderr
    assert not (tmp_path / "~").exists()
    doctor = ["-m", "parakeet_worker.entrypoints.cli", "doctor"]
    asked = run(without_user(), doctor, tmp_path, {"PARAKEET_ENGINE": "tones"})
    assert "Traceback" not in asked.stderr
    assert "scratch" in asked.stdout
    code = "from parakeet_worker import open_model\nwith open_model(engine='tones'): print('up')"
    python = run(without_user(), ["-c", code], tmp_path, {})
    assert python.stdout.split() == ["up"], python.stderr


READ_ONLY = """
mount -t tmpfs none /mnt; mkdir -p /mnt/scratch
for folder in /tmp /var/tmp /usr/tmp /dev/shm; do
    [ ! -d $folder ] || mount -t tmpfs -o ro none $folder
done
cd /proc
"""


@pytest.mark.parametrize("scratch", ["/mnt/scratch", ""])
def test_without_a_temporary_folder_the_setting_names_one(scratch: str) -> None:
    variables = {"HOME": "/mnt", "PARAKEET_SCRATCH": scratch, "PARAKEET_ENGINE": "tones"}
    job = json.dumps({"input": {"audio_base64": tone(440)}})
    command = [str(ROOT / "handler.py"), "--test_input", job]
    ended = run(mounted(READ_ONLY), command, Path("/"), variables)
    assert "Traceback" not in ended.stderr
    if scratch:
        assert "{'output': {'text': '440.'}}" in ended.stdout, ended.stderr
    else:
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("parakeet: invalid_setting: PARAKEET_SCRATCH: no temporary folder")


def answered(
    prefix: Sequence[str], folder: Path, variables: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    job = json.dumps({"input": {"audio_base64": tone(440)}})
    variables = {"PARAKEET_ENGINE": "tones", **variables}
    ended = run(prefix, [str(ROOT / "handler.py"), "--test_input", job], folder, variables)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "{'output': {'text': '440.'}}" in ended.stdout
    return ended


def run(
    prefix: Sequence[str], arguments: Sequence[str], folder: Path, variables: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*prefix, sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
