"""Installation on a volume: once, found again at each start, with an error for each failure."""

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from confined import without_flock_below
from parakeet_worker.bootstrap.installer import (
    _run,
    classify_failure,
    redact_credentials,
    without_credentials,
)
from parakeet_worker.bootstrap.settings import NAMES, BootstrapSettings
from parakeet_worker.checks.doctor import examine
from parakeet_worker.errors import InvalidSetting
from parakeet_worker.settings import Settings
from parakeet_worker.volume.lease import Fenced
from wheelhouse import BACKEND, UV, Site, wheel

_TIMEOUT_SECONDS = 300.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path)


def start(site: Site, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*site.command, *arguments],
        env={**site.environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def boot(site: Site, *arguments: str, **variables: str) -> dict[str, object]:
    """Run `handler.py`; return the report of the worker, with its log as `log`."""
    output, log = start(site, *arguments, **variables).communicate(timeout=_TIMEOUT_SECONDS)
    assert output, log
    return {**json.loads(output), "log": log}


def error_of(site: Site, *prefix: str, **variables: str) -> str:
    """The last line of a bootstrap that fails: an error with a code, and no traceback."""
    ended = subprocess.run(
        [*prefix, *site.command],
        env={**site.environment, **variables},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("parakeet: ")
    return last.removeprefix("parakeet: ")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gated_uv(folder: Path) -> Path:
    """A uv that creates the file `reached` before it installs, and waits for the file `go`."""
    script = folder / "uv"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = pip ]; then touch {folder}/reached\n'
        f"while [ ! -e {folder}/go ]; do sleep 0.05; done; fi\n"
        f'exec {UV} "$@"\n'
    )
    script.chmod(0o755)
    return script


def namespaced(setup: str) -> list[str]:
    """A command prefix that runs a command in its own mount namespace, after `setup`."""
    for flags in ("-m", "-rm"):
        prefix = ["unshare", flags, "sh", "-c", f'set -e; {setup}; exec "$@"', "sh"]
        if shutil.which("unshare") is None:
            break
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("this machine forbids mounts, even in a namespace")


def test_an_empty_volume_is_laid_out_and_the_worker_runs_from_it(site):
    report = boot(site, "--test_input", "{}")
    (environment,) = site.environments()
    assert report["python"] == str(environment / "bin" / "python")
    assert (report["ear"], report["mouth"], report["arguments"]) == (
        "1.0",
        "1.0",
        ["--test_input", "{}"],
    )
    assert (site.volume / "venv").resolve() == environment
    assert report["HF_HOME"] == str(site.volume / "hf_home")
    assert report["HF_HUB_CACHE"] == str(site.volume / "hf_hub_cache")
    assert (site.volume / "hf_home").is_dir()
    assert (site.volume / "hf_hub_cache").is_dir()
    marker = site.marker()
    assert marker["packages"] == {"ear": "1.0", "mouth": "1.0"}
    assert marker["environment"] == environment.name
    assert environment.name.startswith(f"{marker['fingerprint']}-")
    compiled = list(environment.glob("lib/python3*/site-packages/ear/__pycache__/*.pyc"))
    assert len(compiled) == 41
    assert not (site.volume / "uv_cache").exists()


def test_a_second_start_installs_nothing_and_needs_neither_uv_nor_wheels(site):
    first = boot(site)
    shutil.rmtree(site.wheels)
    second = boot(site, PARAKEET_UV="/none/uv")
    assert second["python"] == first["python"]
    assert second["log"] == ""


def test_on_a_volume_without_flock_downloads_are_cached_elsewhere(site, tmp_path):
    worker = start(site, **without_flock_below(site.volume, tmp_path))
    output, log = worker.communicate(timeout=120)
    assert json.loads(output)["ear"] == "1.0", log
    assert f"{site.volume} does not support flock" in log
    assert not (site.volume / "uv_cache").exists()


def test_folders_set_by_the_operator_are_kept(site):
    report = boot(site, HF_HOME="/models", PARAKEET_CONVERTED="/converted")
    assert (report["HF_HOME"], report["PARAKEET_CONVERTED"]) == ("/models", "/converted")


def test_the_marker_names_the_revision_of_a_model_downloaded_later(site):
    boot(site)
    refs = site.volume / "hf_hub_cache" / "models--nvidia--parakeet" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("541d1f99\n")
    boot(site)
    assert site.marker()["models"] == {"nvidia/parakeet": "541d1f99"}


def _no_marker(site: Site, _environment: Path) -> None:
    (site.volume / ".installation_complete").unlink()


def _torn_marker(site: Site, _environment: Path) -> None:
    (site.volume / ".installation_complete").write_text('{"environment": ')


def _plans_marker(site: Site, _environment: Path) -> None:
    (site.volume / ".installation_complete").write_text("installation_complete\n")


def _link_elsewhere(site: Site, _environment: Path) -> None:
    (site.volume / "venv").unlink()
    (site.volume / "venv").symlink_to("/none")


def _folder_in_place_of_the_link(site: Site, _environment: Path) -> None:
    (site.volume / "venv").unlink()
    (site.volume / "venv" / "bin").mkdir(parents=True)


@pytest.mark.parametrize(
    "damage",
    [_no_marker, _torn_marker, _plans_marker, _link_elsewhere, _folder_in_place_of_the_link],
)
def test_a_wrong_marker_or_link_is_corrected_without_an_installation(site, damage):
    first = boot(site)
    marker = site.marker()
    damage(site, *site.environments())
    assert boot(site)["python"] == first["python"]
    assert site.marker() == marker
    assert [(site.volume / "venv").resolve()] == site.environments()


def _removed(_site: Site, environment: Path) -> None:
    shutil.rmtree(environment)


def _package_removed(_site: Site, environment: Path) -> None:
    shutil.rmtree(next(environment.glob("lib/*/site-packages/mouth")))


def _package_torn(_site: Site, environment: Path) -> None:
    files = [path for path in environment.rglob("*") if path.is_file() and not path.is_symlink()]
    os.truncate(max(files, key=lambda path: path.stat().st_size), 100)


def _list_torn(_site: Site, environment: Path) -> None:
    os.truncate(next(environment.glob("lib/*/site-packages/ear-*/RECORD")), 10)


def _python_removed(_site: Site, environment: Path) -> None:
    (environment / "bin" / "python").unlink()


def _record_torn(_site: Site, environment: Path) -> None:
    os.truncate(environment / ".complete.json", 20)


def _record_forged(_site: Site, environment: Path) -> None:
    (environment / ".complete.json").write_text('{"fingerprint": 1, "sizes": 3}')


@pytest.mark.parametrize(
    "damage",
    [
        _removed,
        _package_removed,
        _package_torn,
        _list_torn,
        _python_removed,
        _record_torn,
        _record_forged,
    ],
)
def test_a_damaged_environment_is_reinstalled(site, damage):
    boot(site)
    (environment,) = site.environments()
    damage(site, environment)
    report = boot(site)
    assert report["python"] != str(environment / "bin" / "python")
    assert report["ear"] == "1.0"
    assert [(site.volume / "venv").resolve()] == site.environments()
    assert site.marker()["environment"] == site.environments()[0].name
    assert boot(site)["log"] == ""


def test_an_upgrade_keeps_environments_in_use_and_removes_unused_ones(site):
    running = start(site, STAY="60")
    try:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["ear"] == "1.0"
        site.lock("2.0")
        assert boot(site)["ear"] == "2.0"
        assert len(site.environments()) == 2
    finally:
        running.kill()
        running.communicate()
    site.lock("3.0")
    assert boot(site)["ear"] == "3.0"
    (only,) = site.environments()
    assert (site.volume / "venv").resolve() == only


def test_an_environment_started_recently_on_another_machine_is_kept(site):
    boot(site)
    (old,) = site.environments()
    stamp = next((site.volume / "uses" / old.name).iterdir())
    stamp.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": "5"}))
    site.lock("2.0")
    boot(site)
    assert old in site.environments()
    os.utime(stamp, (time.time() - 8 * 86400,) * 2)
    site.lock("3.0")
    boot(site)
    assert old not in site.environments()


def test_a_return_to_an_old_lock_reuses_its_environment(site):
    running = start(site, STAY="60")
    try:
        assert running.stdout is not None
        first = json.loads(running.stdout.readline())
        site.lock("2.0")
        boot(site)
        site.lock("1.0")
        again = boot(site, PARAKEET_UV="/none/uv")
        assert again["python"] == first["python"]
        assert str((site.volume / "venv").resolve()) in str(first["python"])
    finally:
        running.kill()
        running.communicate()


def test_a_paused_holder_is_fenced_and_runs_the_environment_of_the_new_holder(site, tmp_path):
    paused = start(site, PARAKEET_UV=str(gated_uv(tmp_path)))
    wait_until((tmp_path / "reached").exists)
    paused.send_signal(signal.SIGSTOP)
    other = boot(site)
    (tmp_path / "go").touch()
    paused.send_signal(signal.SIGCONT)
    output, log = paused.communicate(timeout=_TIMEOUT_SECONDS)
    assert json.loads(output)["python"] == other["python"]
    assert "another worker has taken over" in log
    assert len(site.environments()) == 1


def test_a_holder_paused_during_verification_reports_no_volume_error(site, tmp_path):
    # The first import of it waits.
    reached, go = tmp_path / "reached", tmp_path / "go"
    waits = (
        "import os, time\nVERSION = '1.0'\n"
        f"if not os.path.exists({str(reached)!r}):\n    open({str(reached)!r}, 'w').close()\n"
        f"    while not os.path.exists({str(go)!r}):\n        time.sleep(0.05)\n"
    )
    wheel(site.wheels, "ear", "1.0", files=1, data={"ear/__init__.py": waits})
    site.lock_what_is_there("1.0")
    paused = start(site)
    wait_until(reached.exists)
    paused.send_signal(signal.SIGSTOP)
    other = boot(site)
    go.touch()
    paused.send_signal(signal.SIGCONT)
    output, log = paused.communicate(timeout=_TIMEOUT_SECONDS)
    assert paused.returncode == 0, log
    assert json.loads(output)["python"] == other["python"]
    assert "another worker has taken over" in log
    assert "volume_unusable" not in log


def test_the_lease_of_a_dead_process_on_this_machine_is_taken_immediately(site, tmp_path):
    killed = start(site, PARAKEET_UV=str(gated_uv(tmp_path)))
    wait_until((tmp_path / "reached").exists)
    killed.kill()
    killed.communicate()
    assert boot(site, PARAKEET_LEASE_SECONDS="3600")["ear"] == "1.0"
    assert len(site.environments()) == 1
    assert list((site.volume / "environments").iterdir()) == site.environments()


def test_uv_is_killed_with_its_bootstrap(site, tmp_path):
    gate = gated_uv(tmp_path)
    gate.write_text(gate.read_text().replace("touch", f"echo $$ > {tmp_path}/pid; touch"))
    killed = start(site, PARAKEET_UV=str(gate))
    wait_until((tmp_path / "reached").exists)
    pid = int((tmp_path / "pid").read_text())
    killed.kill()
    killed.communicate()
    wait_until(
        lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
    )


def test_a_partial_environment_is_never_run_and_is_removed(site, tmp_path):
    script = tmp_path / "uv"
    script.write_text(
        f'#!/bin/sh\n{UV} "$@"\n[ "$1" = pip ] || exit 0\n'
        f"for made in {site.volume}/environments/.*/lib/*/site-packages/ear/__init__.py; do\n"
        ': > "$made"; done\nkill -9 $PPID\n'
    )
    script.chmod(0o755)
    ended = start(site, PARAKEET_UV=str(script))
    ended.communicate(timeout=_TIMEOUT_SECONDS)
    assert ended.returncode == -signal.SIGKILL
    assert site.environments() == []
    assert boot(site)["ear"] == "1.0"
    assert list((site.volume / "environments").iterdir()) == site.environments()


def test_a_truncated_wheel_is_rejected_and_the_complete_one_installed_later(site):
    torn = site.wheels / "ear-1.0-py3-none-any.whl"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    assert error_of(site).startswith("package_untrusted: ")
    assert site.environments() == []
    torn.write_bytes(whole)
    assert boot(site)["ear"] == "1.0"


def test_a_wheel_with_another_hash_is_untrusted(site):
    wheel(site.wheels, "ear", "1.0", files=3)
    assert error_of(site).startswith("package_untrusted: ")
    assert site.environments() == []


def test_an_environment_that_lacks_a_module_is_not_published(site):
    rows = site.root / "requirements" / "profiles.toml"
    rows.write_text(rows.read_text().replace('"mouth"]', '"mouth", "nose"]'))
    message = error_of(site)
    assert "install_failed" in message
    assert "cannot find nose" in message
    assert site.environments() == []


def test_a_read_only_volume_is_an_error_unless_it_is_complete(site):
    site.volume.mkdir()
    mount = f"mount --bind {site.volume} {site.volume}; mount -o remount,bind,ro {site.volume}"
    prefix = namespaced(mount)
    message = error_of(site, *prefix)
    assert message.startswith(f"volume_readonly: {site.volume} is not writable")
    assert "PARAKEET_HOME" in message
    first = boot(site)
    ran = subprocess.run(
        [*prefix, *site.command], env=site.environment, capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout)["python"] == first["python"]
    assert json.loads(ran.stdout)["PARAKEET_CONVERTED"] is None
    assert "cannot be written to" in ran.stderr


def test_a_home_that_is_a_file_is_an_error(site):
    site.volume.write_text("")
    assert error_of(site).startswith(f"volume_unusable: {site.volume}: ")


def test_insufficient_space_is_an_error_before_the_installation(site):
    site.lock("1.0", gib=1e9)
    message = error_of(site, PARAKEET_UV="/none/uv")
    assert message.startswith(f"volume_full: {site.volume} has no room for the software: ")
    assert "1e+09 are needed" in message


@pytest.mark.parametrize("kilobytes", [8, 100, 400])
def test_a_volume_that_becomes_full_is_an_error_and_keeps_no_partial_environment(site, kilobytes):
    site.lock("1.0", gib=0)
    site.volume.mkdir()
    prefix = namespaced(f"mount -t tmpfs -o size={kilobytes}k none {site.volume}")
    assert error_of(site, *prefix).startswith(f"volume_full: {site.volume} has no room")
    assert boot(site)["ear"] == "1.0"


def test_an_unreachable_index_is_an_error_before_any_download(site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/simple"
        message = error_of(site, PARAKEET_INDEX_URL=url)
    assert message.startswith("index_unreachable: http://127.0.0.1:")
    assert "PARAKEET_INDEX_URL" in message
    assert "secret" not in message


@contextmanager
def simple_index(wheels: Path, cut: int, credentials: str = "") -> Iterator[str]:
    """A package index whose first `cut` downloads end in the middle."""
    left = [cut]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            sent = self.headers.get("Authorization", "")
            if credentials and sent != f"Basic {b64encode(credentials.encode()).decode()}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                return
            name = self.path.strip("/").rpartition("/")[2]
            made = wheels / name
            if made.is_file():
                body = made.read_bytes()
            else:
                links = [
                    f'<a href="/{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"'
                    f">{path.name}</a>"
                    for path in sorted(wheels.glob(f"{name}-*.whl"))
                ]
                body = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if not made.is_file() else "binary/wheel")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if made.is_file() and left[0] > 0:
                left[0] -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple"
        finally:
            server.shutdown()
            thread.join()


def test_interrupted_downloads_are_retried(site):
    wheels = site.wheels.rename(site.root / "prepacked")
    site.wheels.mkdir()
    with simple_index(wheels, cut=2) as url:
        assert boot(site, PARAKEET_INDEX_URL=url)["ear"] == "1.0"


def test_without_uv_pip_downloads_the_pinned_version_by_hash(site, tmp_path):
    made = tmp_path / "uv-9.9.9-py3-none-any.whl"
    wheel(tmp_path / "plain", "uv", "9.9.9", files=1).rename(made)
    import zipfile

    with zipfile.ZipFile(made, "a") as archive:
        script = zipfile.ZipInfo("uv-9.9.9.data/scripts/uv")
        script.external_attr = 0o100755 << 16
        archive.writestr(script, f'#!/bin/sh\nexec {UV} "$@"\n')
    made.rename(site.wheels / made.name)
    digest = hashlib.sha256((site.wheels / made.name).read_bytes()).hexdigest()
    lock = site.root / "requirements" / "uv.txt"
    lock.write_text(f"uv==9.9.9 --hash=sha256:{'0' * 64}\n")
    assert error_of(site, PARAKEET_UV="").startswith("package_untrusted: ")
    lock.write_text(f"uv==9.9.9 --hash=sha256:{digest}\n")
    assert boot(site, PARAKEET_UV="")["ear"] == "1.0"
    assert (site.volume / "tools" / "uv-9.9.9" / "bin" / "uv").exists()


def test_a_uv_that_does_not_run_is_an_error(site):
    assert error_of(site, PARAKEET_UV="/none/uv").startswith("uv_missing: /none/uv")


def test_an_unknown_profile_is_an_error_with_a_suggestion(site):
    message = error_of(site, PARAKEET_PROFILE="nativ")
    assert message.startswith("invalid_setting: PARAKEET_PROFILE: must be one of native")
    assert "did you mean native?" in message


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan"])
def test_an_invalid_number_is_rejected(value):
    with pytest.raises(InvalidSetting, match="PARAKEET_LEASE_SECONDS"):
        BootstrapSettings.from_environment({"PARAKEET_LEASE_SECONDS": value})


def test_settings_accept_the_variables_of_the_bootstrap():
    assert Settings.from_environment(dict.fromkeys(NAMES, "x")) == Settings()
    with pytest.raises(InvalidSetting, match="did you mean PARAKEET_PROFILE"):
        Settings.from_environment({"PARAKEET_PROFIL": "native"})


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("error: failed to copy file: No space left on device (os error 28)", "volume_full"),
        ("error: Disk quota exceeded (os error 122)", "volume_full"),
        ("OSError: [Errno 30] Read-only file system: 'x'", "volume_readonly"),
        ("error: Hash mismatch for `torch==2.8.0`", "package_untrusted"),
        ("error: Failed to fetch: `http://127.0.0.1/`\n dns error", "index_unreachable"),
        ("error: no version of torch==2.8.0", "install_failed"),
        ("", "install_failed"),
    ],
)
def test_failures_of_the_installer_are_classified(output, code):
    assert classify_failure(output, 2, Path("/volume")).code == code


def test_a_url_is_shown_without_its_password():
    assert without_credentials("https://a:b@mirror/simple/x@1") == "https://mirror/simple/x@1"


def test_profiles_name_locks_with_the_modules_that_must_import():
    from parakeet_worker.bootstrap.profile import Profile

    requirements = Path(__file__).resolve().parent.parent / "requirements"
    native, nemo = (Profile.load(name, requirements) for name in ("native", "nemo"))
    assert native.fingerprint != nemo.fingerprint
    assert native.python.exists()
    assert "torch==2.8.0" in native.lock.read_text()
    assert "nemo-toolkit==" in nemo.lock.read_text()
    assert all("--hash" in profile.lock.read_text() for profile in (native, nemo))
    assert sys.version_info >= (3, 11)


def test_profiles_import_every_dependency_of_the_project():
    from parakeet_worker.bootstrap.profile import Profile

    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[^\w-]", each)[0] for each in project["dependencies"]}
    modules = {name.replace("-", "_").replace("pyyaml", "yaml") for name in named}
    for name in ("native", "nemo"):
        assert modules <= set(Profile.load(name, root / "requirements").imports)


def test_a_failed_optional_wheel_is_a_warning(site):
    site.lock_what_is_there("1.0", optional="/none/flash_attn-1.0-py3-none-any.whl")
    report = boot(site)
    assert "warning: skipped the optional flash_attn-1.0-py3-none-any.whl" in report["log"]
    assert report["ear"] == "1.0"


def test_the_operator_can_replace_the_optional_wheels(site):
    site.lock_what_is_there("1.0", optional="/none/flash_attn-1.0-py3-none-any.whl")
    nose = wheel(site.wheels, "nose", "1.0", files=1)
    assert "warning" not in boot(site, PARAKEET_OPTIONAL_WHEELS=str(nose))["log"]
    assert "nose" in site.marker()["packages"]
    shutil.rmtree(site.volume)
    assert "warning" not in boot(site, PARAKEET_OPTIONAL_WHEELS="none")["log"]


@pytest.mark.parametrize(
    ("requires", "code"), [("carpenter", ""), ("carpenter, unlisted", "install_failed")]
)
def test_sources_are_built_by_packages_with_a_hash_only(site, requires, code):
    backend = f"import {requires}\n{BACKEND}"
    wheel(site.wheels, "carpenter", "1.0", files=1, data={"carpenter/backend.py": backend})
    wheel(site.wheels, "unlisted", "1.0", files=1)
    site.lock_source("mouth", "2.0", requires=requires.split(", "), build=["carpenter"])
    if code:
        assert error_of(site).startswith(f"{code}: ")
        return
    report = boot(site)
    assert (report["ear"], report["mouth"]) == ("1.0", "2.0")
    assert set(site.marker()["packages"]) == {"ear", "mouth"}
    # The build requirements are installed by hash, too.
    shutil.rmtree(site.volume)
    wheel(site.wheels, "carpenter", "1.0", files=2, data={"carpenter/backend.py": BACKEND})
    assert error_of(site).startswith("package_untrusted: ")


@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        ("", "a wheel from a URL needs a hash"),
        ("#sha256=" + "0" * 64, "package_untrusted"),
        ("right", ""),
    ],
)
def test_an_optional_wheel_from_a_url_needs_a_hash(site, fragment, message):
    nose = wheel(site.wheels, "nose", "1.0", files=1)
    if fragment == "right":
        fragment = f"#sha256={hashlib.sha256(nose.read_bytes()).hexdigest()}"
    with simple_index(site.wheels, 0) as url:
        log = boot(site, PARAKEET_OPTIONAL_WHEELS=f"{url}/{nose.name}{fragment}")["log"]
    assert ("skipped the optional nose-1.0-py3-none-any.whl" in log) == bool(message)
    assert message in log
    assert ("nose" in site.marker()["packages"]) == (not message)


def test_credentials_in_a_url_are_sent_and_never_logged(site):
    with simple_index(site.wheels, 0, credentials="bob:s3cr/etpw") as url:
        address = url.replace("://", "://bob:s3cr%2Fetpw@")
        report = boot(site, PARAKEET_INDEX_URL=address, PARAKEET_FIND_LINKS="")
        assert report["ear"] == "1.0"
        assert "s3cr" not in str(report["log"])
        assert index_checks(site, PARAKEET_INDEX_URL=address) == ["reachable"]


@pytest.mark.parametrize("variable", ["PARAKEET_INDEX_URL", "PARAKEET_FIND_LINKS"])
def test_credentials_of_a_url_without_a_port_are_not_logged(site, variable):
    # Nothing listens there; the standard library would take the password for the port.
    address = {variable: "http://bob:s3cretpw@127.0.0.2/simple"}
    message = error_of(site, **address)
    assert message.startswith("index_unreachable: http://127.0.0.2/simple is unreachable")
    assert "s3cret" not in message
    (finding,) = index_checks(site, **address)
    assert "s3cret" not in finding


def index_checks(site, **variables):
    checks = examine({**site.environment, **variables}, site.root)
    return [check.finding for check in checks if check.name == "index"]


def test_credentials_are_redacted_in_every_notation():
    for address in ("https://bob:pw@host/simple", "https://bob:p/w@host/simple",
                    "https://tok@host/simple"):  # fmt: skip
        assert without_credentials(address) == "https://host/simple"
        assert redact_credentials(f"not at {address}: no") == "not at https://host/simple: no"
    assert without_credentials("https://host:8000/a@b") == "https://host:8000/a@b"
    assert without_credentials("https://[::1]/a@b") == "https://[::1]/a@b"


def test_without_a_network_the_index_is_unreachable(site):
    if subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0:  # noqa: S607
        pytest.skip("this machine forbids network namespaces")
    nothing = {"PARAKEET_INDEX_URL": "", "PARAKEET_FIND_LINKS": "", "UV_NO_CONFIG": "1"}
    message = error_of(site, "unshare", "-n", **nothing)
    assert message.startswith("index_unreachable: ")
    assert "PARAKEET_INDEX_URL" in message


def test_the_next_installation_removes_abandoned_folders(site):
    left = [
        site.volume / ".removed-12345678",
        site.volume / "environments" / ".removed-12345678",
        site.volume / "environments" / f".{'0' * 16}-0-abcdef",
    ]
    for folder in left:
        (folder / "lib").mkdir(parents=True)
    boot(site)
    assert [folder for folder in left if folder.exists()] == []


def test_the_download_cache_is_removed_before_a_volume_counts_as_full(site):
    site.volume.mkdir()
    prefix = namespaced(
        f"mount -t tmpfs -o size=20m none {site.volume}; mkdir {site.volume}/uv_cache; "
        f"head -c 12582912 /dev/zero > {site.volume}/uv_cache/wheel"
    )
    ran = subprocess.run(
        [*prefix, *site.command], env=site.environment, capture_output=True, text=True, check=True
    )
    assert "freeing space: volume_full: " in ran.stderr
    assert json.loads(ran.stdout)["ear"] == "1.0"


def test_a_failure_of_the_installer_after_fencing_is_ignored(tmp_path):
    held = iter([True])

    def check_cancelled() -> None:
        if not next(held, False):  # taken over while the command runs
            raise Fenced

    with pytest.raises(Fenced):
        _run(["sh", "-c", "echo No space left; exit 9"], 60.0, check_cancelled, tmp_path)


def test_stamps_of_dead_workers_are_removed(site):
    boot(site)
    (environment,) = site.environments()
    (uses,) = (site.volume / "uses").iterdir()
    old = uses / "elsewhere-1"
    old.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": "5"}))
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    boot(site)
    assert not old.exists()
    assert environment.exists()
