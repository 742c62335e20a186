"""A worker starts in spite of what platforms write into its environment."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from confined import mounted, without_user
from parakeet_worker.bootstrap.settings import BootstrapSettings
from parakeet_worker.bootstrap.variables import clean, is_set_by_platform, read_variable
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
def test_variables_of_kubernetes_services_and_docker_links_are_ignored(name: str) -> None:
    assert is_set_by_platform(name, SERVICE[name])
    Settings.from_environment({name: SERVICE[name]})


@pytest.mark.parametrize(
    ("name", "text"),
    [("PARAKEET_PORT", "8000"), ("PARAKEET_MODLE", "demo"), ("PARAKEET_SERVICE", "10.0.0.7")],
)
def test_a_misspelt_setting_is_not_taken_for_a_platform_variable(name: str, text: str) -> None:
    assert not is_set_by_platform(name, text)
    with pytest.raises(InvalidSetting, match="no such setting"):
        Settings.from_environment({name: text})


def test_one_warning_names_all_ignored_variables() -> None:
    (warning,) = clean({**SERVICE, "HOME": "/home/me"})
    assert all(name in warning for name in SERVICE)


def test_whitespace_is_stripped_and_empty_values_are_removed() -> None:
    environment = {
        "PARAKEET_HOME": " /vol/Parakeet\n", "HF_HUB_CACHE": "", "HF_HOME": " \t",
        "RUNPOD_PING_INTERVAL": "", "RUNPOD_AI_API_KEY": "key\n", "CUDA_VISIBLE_DEVICES": "",
        "OTHER": " x ", "HOME": "/home/me",
    }  # fmt: skip
    assert clean(environment) == []
    assert environment == {
        "PARAKEET_HOME": "/vol/Parakeet", "RUNPOD_AI_API_KEY": "key",
        # An empty value has a meaning: no GPU.
        "CUDA_VISIBLE_DEVICES": "",
        "OTHER": " x ", "HOME": "/home/me",
    }  # fmt: skip
    assert BootstrapSettings.from_environment({"PARAKEET_HOME": "/vol/P\n"}).home == Path("/vol/P")
    assert Settings.from_environment({"PARAKEET_MODEL": " demo\n"}).model == "demo"
    assert Settings.from_environment({"PARAKEET_SCRATCH": "  "}) == Settings()


@pytest.mark.parametrize("name", ["PARAKEET_HOME", "PARAKEET_MODEL", "S3_SECRET_KEY"])
@pytest.mark.parametrize("text", ['"hush"', "'hush'", "hu\nsh"])
def test_quotes_and_line_breaks_are_rejected_without_repeating_the_value(
    name: str, text: str
) -> None:
    with pytest.raises(InvalidSetting, match=name) as refused:
        read_variable({name: text}, name)
    assert "\n" not in str(refused.value)
    assert "hu" not in str(refused.value)
    reader = BootstrapSettings if name == "PARAKEET_HOME" else Settings
    with pytest.raises(InvalidSetting, match=name):
        reader.from_environment({name: text})


THIRD_PARTY = (
    "HF_HOME", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY",
    "RUNPOD_API_KEY", "RUNPOD_WEBHOOK_GET_JOB", "HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE",
    "CUDA_VISIBLE_DEVICES", "TMPDIR", "PORT", "XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_INDEX_URL",
)  # fmt: skip


@pytest.mark.parametrize("name", THIRD_PARTY)
@pytest.mark.parametrize("quote", ["'", '"', "`"])
def test_quotes_around_third_party_values_are_removed_with_a_warning(name: str, quote: str) -> None:
    environment = {"HOME": "/home/me", name: f" {quote}hush{quote}\n"}
    assert clean(environment) == [f"removed the quotes around the value of {name}"]
    assert environment == {"HOME": "/home/me", name: "hush"}


@pytest.mark.parametrize("text", ["hush", "'hush", "hush'", "'hush\"", "'", "a'b'c"])
def test_other_quotes_in_third_party_values_are_kept(text: str) -> None:
    environment = {"HOME": "/home/me", "HF_TOKEN": text, "OTHER": "'x'"}
    assert clean(environment) == []
    assert environment == {"HOME": "/home/me", "HF_TOKEN": text, "OTHER": "'x'"}


def test_quotes_around_nothing_leave_no_value() -> None:
    environment = {"HOME": "/home/me", "HF_HOME": "''"}
    clean(environment)
    assert environment == {"HOME": "/home/me"}


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HUGGINGFACE_TOKEN"])
def test_a_line_break_in_a_third_party_key_is_rejected_without_repeating_it(name: str) -> None:
    with pytest.raises(InvalidSetting, match=name) as raised:
        Settings.from_environment({name: "hu\nsh"})
    assert "hu" not in str(raised.value)


def test_a_quoted_cache_folder_reaches_the_library_without_quotes(tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path), "HF_HUB_CACHE": f'"{tmp_path}"', "PARAKEET_MODEL": "a/b",
                 "HF_HUB_OFFLINE": "1"}  # fmt: skip
    command = ["-m", "parakeet_worker.entrypoints.cli", "verify"]
    ended = run([], command, tmp_path, variables)
    assert "removed the quotes around the value of HF_HUB_CACHE" in ended.stderr
    assert f"{tmp_path}/models--a--b" in ended.stderr
    assert [path.name for path in tmp_path.iterdir() if '"' in path.name] == []


@pytest.mark.parametrize("name", ["PARAKEET_HOME"])
def test_a_relative_home_is_rejected(name: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name}: must be an absolute path, got 'Parakeet'"):
        BootstrapSettings.from_environment({name: "Parakeet"})


def test_a_job_is_answered_with_variables_of_kubernetes_services(tmp_path: Path) -> None:
    ended = answered([], tmp_path, {"HOME": str(tmp_path), **SERVICE, "HF_HUB_CACHE": ""})
    assert ended.stderr.count("ignored, set by the platform") == 1


def test_a_user_without_home_and_passwd_entry_is_served(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    ended = answered(without_user(), tmp_path, {"PARAKEET_MODEL": "demo"})
    assert "there is no HOME and no user 12345 in passwd" in ended.stderr
    assert not (tmp_path / "~").exists()
    doctor = ["-m", "parakeet_worker.entrypoints.cli", "doctor"]
    report = run(without_user(), doctor, tmp_path, {"PARAKEET_ENGINE": "tones"})
    assert "Traceback" not in report.stderr
    assert "scratch" in report.stdout
    code = "from parakeet_worker import open_model\nwith open_model(engine='tones'): print('up')"
    python = run(without_user(), ["-c", code], tmp_path, {})
    assert python.stdout.split() == ["up"], python.stderr


# A folder that contains this checkout keeps its files.
READ_ONLY = f"""
mount -t tmpfs none /mnt; mkdir -p /mnt/scratch
for folder in /tmp /var/tmp /usr/tmp /dev/shm; do
    [ -d $folder ] || continue
    case '{ROOT}' in
        $folder/*) mount --bind $folder $folder; mount -o remount,bind,ro $folder ;;
        *) mount -t tmpfs -o ro none $folder ;;
    esac
done
cd /proc
"""


@pytest.mark.parametrize("scratch", ["/mnt/scratch", ""])
def test_without_a_temporary_folder_the_scratch_setting_is_used(scratch: str) -> None:
    variables = {"HOME": "/mnt", "PARAKEET_SCRATCH": scratch, "PARAKEET_ENGINE": "tones"}
    job = json.dumps({"input": {"audio_base64": tone(440)}})
    command = [str(ROOT / "handler.py"), "--test_input", job]
    ended = run(mounted(READ_ONLY), command, Path("/"), variables)
    assert "Traceback" not in ended.stderr
    if scratch:
        assert "{'output': {'text': '440.'}}" in ended.stdout, ended.stderr
    else:
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("parakeet: invalid_setting: PARAKEET_SCRATCH: there is no writable")


def test_without_a_temporary_folder_other_programs_use_the_scratch_setting_too() -> None:
    script = (
        "import os, tempfile; from parakeet_worker.bootstrap import variables;"
        "variables.clean(os.environ); print(os.environ['TMPDIR'], tempfile.gettempdir())"
    )
    variables = {"HOME": "/mnt", "PARAKEET_SCRATCH": "/mnt/scratch"}
    ended = run(mounted(READ_ONLY), ["-c", script], Path("/"), variables)
    assert ended.stdout == "/mnt/scratch /mnt/scratch\n", ended.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("RUNPOD_LOG_LEVEL", "loud"), ("RUNPOD_PING_INTERVAL", "often")]
)
def test_a_variable_that_the_sdk_cannot_read_is_named(
    tmp_path: Path, name: str, value: str
) -> None:
    variables = {"HOME": str(tmp_path), "PARAKEET_ENGINE": "tones", name: value}
    ended = run([], [str(ROOT / "handler.py"), "--test_input", "{}"], tmp_path, variables)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"parakeet: invalid_setting: {name}: ")


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
