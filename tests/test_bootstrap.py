"""The software on a volume: installed once, found again, and every failure says what to do."""

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

from parakeet_worker.bootstrap.choices import NAMES, Choices
from parakeet_worker.bootstrap.installer import _run, complaint, redacted, without_secrets
from parakeet_worker.bootstrap.lease import Fenced, Leases
from parakeet_worker.bootstrap.owner import Owner
from parakeet_worker.doctor import examine
from parakeet_worker.errors import InvalidSetting
from parakeet_worker.settings import Settings
from wheelhouse import UV, Site, wheel

_LONG = 300.0


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
    """What the worker says of itself."""
    output, told = start(site, *arguments, **variables).communicate(timeout=_LONG)
    assert output, told
    return {**json.loads(output), "told": told}


def refused(site: Site, *prefix: str, **variables: str) -> str:
    """What a bootstrap says that fails, and that it is one line of ours and no traceback."""
    ended = subprocess.run(
        [*prefix, *site.command],
        env={**site.environment, **variables},
        capture_output=True,
        text=True,
        timeout=_LONG,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("parakeet: ")
    return last.removeprefix("parakeet: ")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gated_uv(folder: Path) -> Path:
    """A uv that says that it has come to packages, and goes on once the file `go` is there."""
    script = folder / "uv"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = pip ]; then touch {folder}/reached\n'
        f"while [ ! -e {folder}/go ]; do sleep 0.05; done; fi\n"
        f'exec {UV} "$@"\n'
    )
    script.chmod(0o755)
    return script


def namespaced(setup: str) -> list[str]:
    """A command before another that runs it among mounts of its own."""
    for flags in ("-m", "-rm"):
        prefix = ["unshare", flags, "sh", "-c", f'set -e; {setup}; exec "$@"', "sh"]
        if shutil.which("unshare") is None:
            break
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("this machine lets nobody mount anything, not even in a namespace")


def test_an_empty_volume_gets_the_layout_of_the_plan_and_the_worker_runs_from_it(site):
    said = boot(site, "--test_input", "{}")
    (environment,) = site.environments()
    assert said["python"] == str(environment / "bin" / "python")
    assert (said["ear"], said["mouth"], said["arguments"]) == ("1.0", "1.0", ["--test_input", "{}"])
    assert (site.volume / "venv").resolve() == environment
    assert said["HF_HOME"] == str(site.volume / "hf_home")
    assert said["HF_HUB_CACHE"] == str(site.volume / "hf_hub_cache")
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
    second = boot(site, PARAKEET_UV="/nowhere/uv")
    assert second["python"] == first["python"]
    assert second["told"] == ""


def test_the_operators_own_folders_are_left_to_them(site):
    said = boot(site, HF_HOME="/models", PARAKEET_CONVERTED="/converted")
    assert (said["HF_HOME"], said["PARAKEET_CONVERTED"]) == ("/models", "/converted")


def test_a_revision_of_a_model_that_came_since_is_in_the_marker(site):
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
    (site.volume / "venv").symlink_to("/nowhere")


def _folder_in_place_of_the_link(site: Site, _environment: Path) -> None:
    (site.volume / "venv").unlink()
    (site.volume / "venv" / "bin").mkdir(parents=True)


@pytest.mark.parametrize(
    "harm", [_no_marker, _torn_marker, _plans_marker, _link_elsewhere, _folder_in_place_of_the_link]
)
def test_a_marker_or_link_that_lies_is_mended_and_nothing_is_installed(site, harm):
    first = boot(site)
    marker = site.marker()
    harm(site, *site.environments())
    assert boot(site)["python"] == first["python"]
    assert site.marker() == marker
    assert [(site.volume / "venv").resolve()] == site.environments()


def _gone(_site: Site, environment: Path) -> None:
    shutil.rmtree(environment)


def _package_gone(_site: Site, environment: Path) -> None:
    shutil.rmtree(next(environment.glob("lib/*/site-packages/mouth")))


def _package_torn(_site: Site, environment: Path) -> None:
    files = [path for path in environment.rglob("*") if path.is_file() and not path.is_symlink()]
    os.truncate(max(files, key=lambda path: path.stat().st_size), 100)


def _list_torn(_site: Site, environment: Path) -> None:
    os.truncate(next(environment.glob("lib/*/site-packages/ear-*/RECORD")), 10)


def _python_gone(_site: Site, environment: Path) -> None:
    (environment / "bin" / "python").unlink()


def _record_torn(_site: Site, environment: Path) -> None:
    os.truncate(environment / ".complete.json", 20)


def _record_forged(_site: Site, environment: Path) -> None:
    (environment / ".complete.json").write_text('{"fingerprint": 1, "sizes": 3}')


@pytest.mark.parametrize(
    "harm",
    [_gone, _package_gone, _package_torn, _list_torn, _python_gone, _record_torn, _record_forged],
)
def test_an_environment_that_the_marker_lies_about_is_installed_anew(site, harm):
    boot(site)
    (environment,) = site.environments()
    harm(site, environment)
    said = boot(site)
    assert said["python"] != str(environment / "bin" / "python")
    assert said["ear"] == "1.0"
    assert [(site.volume / "venv").resolve()] == site.environments()
    assert site.marker()["environment"] == site.environments()[0].name
    assert boot(site)["told"] == ""


def test_an_upgrade_stands_beside_what_still_runs_and_what_nobody_runs_is_removed(site):
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


def test_an_environment_that_another_machine_started_lately_is_kept(site):
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


def test_who_goes_back_to_an_old_lock_finds_its_environment_again(site):
    running = start(site, STAY="60")
    try:
        assert running.stdout is not None
        first = json.loads(running.stdout.readline())
        site.lock("2.0")
        boot(site)
        site.lock("1.0")
        again = boot(site, PARAKEET_UV="/nowhere/uv")
        assert again["python"] == first["python"]
        assert str((site.volume / "venv").resolve()) in str(first["python"])
    finally:
        running.kill()
        running.communicate()


def test_a_holder_that_was_paused_wakes_up_fenced_and_runs_what_the_other_installed(site, tmp_path):
    paused = start(site, PARAKEET_UV=str(gated_uv(tmp_path)))
    until((tmp_path / "reached").exists)
    paused.send_signal(signal.SIGSTOP)
    other = boot(site)
    (tmp_path / "go").touch()
    paused.send_signal(signal.SIGCONT)
    output, told = paused.communicate(timeout=_LONG)
    assert json.loads(output)["python"] == other["python"]
    assert "another worker has taken over" in told
    assert len(site.environments()) == 1


def test_a_holder_that_was_paused_while_verifying_blames_no_volume(site, tmp_path):
    # The first that imports it waits.
    reached, go = tmp_path / "reached", tmp_path / "go"
    waits = (
        "import os, time\nVERSION = '1.0'\n"
        f"if not os.path.exists({str(reached)!r}):\n    open({str(reached)!r}, 'w').close()\n"
        f"    while not os.path.exists({str(go)!r}):\n        time.sleep(0.05)\n"
    )
    wheel(site.wheels, "ear", "1.0", files=1, data={"ear/__init__.py": waits})
    site.lock_what_is_there("1.0")
    paused = start(site)
    until(reached.exists)
    paused.send_signal(signal.SIGSTOP)
    other = boot(site)
    go.touch()
    paused.send_signal(signal.SIGCONT)
    output, told = paused.communicate(timeout=_LONG)
    assert paused.returncode == 0, told
    assert json.loads(output)["python"] == other["python"]
    assert "another worker has taken over" in told
    assert "volume_unusable" not in told


def test_a_lease_that_was_taken_over_may_not_publish(tmp_path):
    slow, quick = Leases(tmp_path / "leases", 0.2), Leases(tmp_path / "leases", 0.2)
    first = slow.try_take()
    assert first is not None
    first.check()
    assert quick.try_take() is None
    time.sleep(0.3)  # it was never entered, and so has no heart
    second = quick.try_take()
    assert second is not None
    with pytest.raises(Fenced):
        first.check()
    with first:
        assert not first.held()
    with second:
        second.check()
        assert slow.try_take() is None


def test_a_lease_with_a_heart_is_not_taken_however_long_it_is_watched(tmp_path):
    ours, theirs = Leases(tmp_path, 2.0), Leases(tmp_path, 2.0)
    lease = ours.try_take()
    assert lease is not None
    with lease:
        lease.tell("thinking")
        for _ in range(30):
            assert theirs.try_take() is None
            time.sleep(0.1)
        assert "thinking" in theirs.holder()
    assert theirs.try_take() is not None


def test_of_a_dead_holder_on_the_same_machine_the_lease_is_taken_at_once(site, tmp_path):
    killed = start(site, PARAKEET_UV=str(gated_uv(tmp_path)))
    until((tmp_path / "reached").exists)
    killed.kill()
    killed.communicate()
    assert boot(site, PARAKEET_LEASE_SECONDS="3600")["ear"] == "1.0"
    assert len(site.environments()) == 1
    assert list((site.volume / "environments").iterdir()) == site.environments()


def test_uv_dies_with_the_bootstrap_that_was_killed(site, tmp_path):
    gate = gated_uv(tmp_path)
    gate.write_text(gate.read_text().replace("touch", f"echo $$ > {tmp_path}/pid; touch"))
    killed = start(site, PARAKEET_UV=str(gate))
    until((tmp_path / "reached").exists)
    pid = int((tmp_path / "pid").read_text())
    killed.kill()
    killed.communicate()
    until(
        lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
    )


def test_what_was_left_half_written_is_never_run_and_is_cleaned_up(site, tmp_path):
    script = tmp_path / "uv"
    script.write_text(
        f'#!/bin/sh\n{UV} "$@"\n[ "$1" = pip ] || exit 0\n'
        f"for made in {site.volume}/environments/.*/lib/*/site-packages/ear/__init__.py; do\n"
        ': > "$made"; done\nkill -9 $PPID\n'
    )
    script.chmod(0o755)
    ended = start(site, PARAKEET_UV=str(script))
    ended.communicate(timeout=_LONG)
    assert ended.returncode == -signal.SIGKILL
    assert site.environments() == []
    assert boot(site)["ear"] == "1.0"
    assert list((site.volume / "environments").iterdir()) == site.environments()


def test_a_wheel_that_is_half_there_is_refused_and_the_whole_one_installed_later(site):
    torn = site.wheels / "ear-1.0-py3-none-any.whl"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    assert refused(site).startswith("package_untrusted: ")
    assert site.environments() == []
    torn.write_bytes(whole)
    assert boot(site)["ear"] == "1.0"


def test_a_wheel_of_other_content_is_refused_as_untrusted(site):
    wheel(site.wheels, "ear", "1.0", files=3)
    assert refused(site).startswith("package_untrusted: ")
    assert site.environments() == []


def test_what_does_not_import_is_not_published(site):
    rows = site.root / "requirements" / "profiles.toml"
    rows.write_text(rows.read_text().replace('"mouth"]', '"mouth", "nose"]'))
    assert "install_failed" in (said := refused(site))
    assert "cannot find nose" in said
    assert site.environments() == []


def test_a_read_only_volume_is_told_and_runs_where_it_is_complete(site):
    site.volume.mkdir()
    mount = f"mount --bind {site.volume} {site.volume}; mount -o remount,bind,ro {site.volume}"
    prefix = namespaced(mount)
    said = refused(site, *prefix)
    assert said.startswith(f"volume_readonly: {site.volume} is not writable")
    assert "PARAKEET_HOME" in said
    first = boot(site)
    ran = subprocess.run(
        [*prefix, *site.command], env=site.environment, capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout)["python"] == first["python"]
    assert json.loads(ran.stdout)["PARAKEET_CONVERTED"] is None
    assert "cannot be written to" in ran.stderr


def test_a_home_that_is_a_file_is_told(site):
    site.volume.write_text("")
    assert refused(site).startswith(f"volume_unusable: {site.volume}: ")


def test_too_little_room_is_told_before_work_begins(site):
    site.lock("1.0", gib=1e9)
    said = refused(site, PARAKEET_UV="/nowhere/uv")
    assert said.startswith(f"volume_full: {site.volume} has no room for the software: ")
    assert "1e+09 are needed" in said


@pytest.mark.parametrize("kilobytes", [8, 100, 400])
def test_a_volume_that_fills_up_is_told_and_nothing_half_is_left(site, kilobytes):
    site.lock("1.0", gib=0)
    site.volume.mkdir()
    prefix = namespaced(f"mount -t tmpfs -o size={kilobytes}k none {site.volume}")
    assert refused(site, *prefix).startswith(f"volume_full: {site.volume} has no room")
    assert boot(site)["ear"] == "1.0"


def test_a_dead_index_is_told_before_anything_is_fetched(site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/simple"
        said = refused(site, PARAKEET_INDEX_URL=url)
    assert said.startswith("index_unreachable: http://127.0.0.1:")
    assert "PARAKEET_INDEX_URL" in said
    assert "secret" not in said


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


def test_downloads_that_break_off_are_taken_up_again(site):
    wheels = site.wheels.rename(site.root / "served")
    site.wheels.mkdir()
    with simple_index(wheels, cut=2) as url:
        assert boot(site, PARAKEET_INDEX_URL=url)["ear"] == "1.0"


def test_without_a_uv_pip_fetches_the_pinned_one_by_its_hash(site, tmp_path):
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
    assert refused(site, PARAKEET_UV="").startswith("package_untrusted: ")
    lock.write_text(f"uv==9.9.9 --hash=sha256:{digest}\n")
    assert boot(site, PARAKEET_UV="")["ear"] == "1.0"
    assert (site.volume / "tools" / "uv-9.9.9" / "bin" / "uv").exists()


def test_a_uv_that_does_not_run_is_told(site):
    assert refused(site, PARAKEET_UV="/nowhere/uv").startswith("uv_missing: /nowhere/uv")


def test_an_unknown_profile_is_told_with_the_nearest(site):
    said = refused(site, PARAKEET_PROFILE="nativ")
    assert said.startswith("invalid_setting: PARAKEET_PROFILE: must be one of native")
    assert "did you mean native?" in said


@pytest.mark.parametrize("said", ["soon", "-1", "0", "nan"])
def test_a_number_that_is_none_is_refused(said):
    with pytest.raises(InvalidSetting, match="PARAKEET_LEASE_SECONDS"):
        Choices.from_environment({"PARAKEET_LEASE_SECONDS": said})


def test_the_settings_know_the_names_of_the_bootstrap():
    assert Settings.from_environment(dict.fromkeys(NAMES, "x")) == Settings()
    with pytest.raises(InvalidSetting, match="did you mean PARAKEET_PROFILE"):
        Settings.from_environment({"PARAKEET_PROFIL": "native"})


@pytest.mark.parametrize(
    ("said", "code"),
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
def test_an_installers_complaint_is_understood(said, code):
    assert complaint(said, 2, Path("/volume")).code == code


def test_a_url_is_told_without_its_password():
    assert without_secrets("https://a:b@mirror/simple/x@1") == "https://mirror/simple/x@1"


def test_a_process_is_known_to_live_or_not_on_its_own_machine_only():
    me = Owner.here()
    assert me.lives()
    assert Owner.read(json.dumps(me.written())) == me
    assert Owner(me.machine, me.pid, "1").lives() is False
    assert Owner("elsewhere", me.pid, me.started).lives() is None
    assert Owner.read("{}") is Owner.read("[") is Owner.read("3") is None


def test_the_profiles_of_the_project_name_locks_that_hold_what_must_import():
    from parakeet_worker.bootstrap.profile import Profile

    requirements = Path(__file__).resolve().parent.parent / "requirements"
    native, nemo = (Profile.named(name, requirements) for name in ("native", "nemo"))
    assert native.fingerprint != nemo.fingerprint
    assert native.python.exists()
    assert "torch==2.8.0" in native.lock.read_text()
    assert "nemo-toolkit==" in nemo.lock.read_text()
    assert all("--hash" in profile.lock.read_text() for profile in (native, nemo))
    assert sys.version_info >= (3, 11)


def copies(site: Site) -> list[Path]:
    return sorted((site.root / "local").glob("*"))


def local(site: Site) -> dict[str, str]:
    return {"PARAKEET_LOCAL": str(site.root / "local")}


def test_a_copy_on_the_containers_disk_is_run_and_made_once(site):
    first = boot(site, **local(site))
    (environment,) = site.environments()
    (copy,) = copies(site)
    assert copy.name == environment.name
    assert first["python"] == str(copy / "bin" / "python")
    assert (site.volume / "venv").resolve() == environment
    made = copy.stat().st_mtime_ns
    second = boot(site, **local(site))
    assert (second["python"], second["told"]) == (first["python"], "")
    assert copies(site) == [copy]
    assert copy.stat().st_mtime_ns == made
    packed = {path.relative_to(environment) for path in environment.rglob("*") if path.is_file()}
    copied = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    assert packed - copied == {Path(".complete.json"), Path(".small.tar")}
    assert len(copied) > 160  # modules, and what they were compiled to


def test_the_copy_links_to_what_is_large_and_to_headers(site):
    wheel(site.wheels, "ear", "1.0", data={"ear/big.bin": "0" * (1 << 20), "ear/include/a.h": "x"})
    site.lock_what_is_there("1.0")
    boot(site, **local(site))
    (environment,), (copy,) = site.environments(), copies(site)
    (package,) = copy.glob("lib/python3*/site-packages/ear")
    original = environment / package.relative_to(copy)
    assert (package / "big.bin").readlink() == original / "big.bin"
    assert (package / "include").readlink() == original / "include"
    assert not (package / "__init__.py").is_symlink()


def test_a_copy_that_was_harmed_or_whose_volume_moved_is_made_anew(site):
    boot(site, **local(site))
    (copy,) = copies(site)
    shutil.rmtree(next(copy.glob("lib/*/site-packages/mouth")))
    assert boot(site, **local(site))["mouth"] == "1.0"
    assert copies(site) == [copy]
    assert len(site.environments()) == 1


@pytest.mark.parametrize("kept", [0, 1000, -1], ids=["empty", "torn", "of other content"])
def test_an_archive_that_is_damaged_is_never_run_and_installed_anew(site, kept):
    boot(site, **local(site))
    (environment,), (copy,) = site.environments(), copies(site)
    shutil.rmtree(copy)
    archive = environment / ".small.tar"
    content = archive.read_bytes()
    at = content.index(b"VERSION = '1.0'")
    changed = content[:at] + b"VERSION = '6.6'" + content[at + 15 :]
    archive.write_bytes(content[:kept] if kept >= 0 else changed)
    said = boot(site, **local(site))
    assert "its archive is damaged" in str(said["told"])
    assert said["ear"] == "1.0"
    (anew,) = copies(site)
    assert anew.name != copy.name
    assert [anew.name] == [each.name for each in site.environments()]


def test_where_there_is_no_room_for_a_copy_it_is_run_from_the_volume_with_a_warning(site):
    (site.root / "local").mkdir()
    prefix = namespaced(f"mount -t tmpfs -o size=64k none {site.root / 'local'}")
    ran = subprocess.run(
        [*prefix, *site.command],
        env={**site.environment, **local(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (environment,) = site.environments()
    assert json.loads(ran.stdout)["python"] == str(environment / "bin" / "python")
    assert "run from the volume, slowly: No space left on device" in ran.stderr


def test_what_was_installed_without_an_archive_is_run_from_the_volume_with_a_warning(site):
    first = boot(site)
    second = boot(site, **local(site))
    assert second["python"] == first["python"]
    assert "without an archive" in str(second["told"])


def test_a_copy_is_made_only_where_one_was_asked_for():
    assert Choices.from_environment({}).local is None
    assert Choices.from_environment({"PARAKEET_LOCAL": "none"}).local is None
    assert Choices.from_environment({"PARAKEET_LOCAL": "/here"}).local == Path("/here")


def test_two_that_copy_at_once_run_one_copy(site):
    boot(site, **local(site))
    shutil.rmtree(site.root / "local")
    started = [start(site, **local(site)) for _ in range(4)]
    said = [json.loads(each.communicate(timeout=_LONG)[0])["python"] for each in started]
    (copy,) = copies(site)
    assert set(said) == {str(copy / "bin" / "python")}


def test_what_a_profile_proves_to_import_is_all_that_the_project_depends_on():
    from parakeet_worker.bootstrap.profile import Profile

    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[^\w-]", each)[0] for each in project["dependencies"]}
    modules = {name.replace("-", "_").replace("pyyaml", "yaml") for name in named}
    for name in ("native", "nemo"):
        assert modules <= set(Profile.named(name, root / "requirements").imports)


def test_an_optional_wheel_that_cannot_be_had_is_a_warning(site):
    site.lock_what_is_there("1.0", optional="/nowhere/flash_attn-1.0-py3-none-any.whl")
    said = boot(site)
    assert "warning: left out flash_attn-1.0-py3-none-any.whl, nothing needs it" in said["told"]
    assert said["ear"] == "1.0"


def test_optional_wheels_come_from_where_the_operator_says(site):
    site.lock_what_is_there("1.0", optional="/nowhere/flash_attn-1.0-py3-none-any.whl")
    nose = wheel(site.wheels, "nose", "1.0", files=1)
    assert "warning" not in boot(site, PARAKEET_OPTIONAL_WHEELS=str(nose))["told"]
    assert "nose" in site.marker()["packages"]
    shutil.rmtree(site.volume)
    assert "warning" not in boot(site, PARAKEET_OPTIONAL_WHEELS="none")["told"]


@pytest.mark.parametrize(
    ("fragment", "told"),
    [
        ("", "nothing is installed from an address without its hash"),
        ("#sha256=" + "0" * 64, "package_untrusted"),
        ("right", ""),
    ],
)
def test_an_optional_wheel_from_an_address_must_have_its_hash(site, fragment, told):
    nose = wheel(site.wheels, "nose", "1.0", files=1)
    if fragment == "right":
        fragment = f"#sha256={hashlib.sha256(nose.read_bytes()).hexdigest()}"
    with simple_index(site.wheels, 0) as url:
        said = boot(site, PARAKEET_OPTIONAL_WHEELS=f"{url}/{nose.name}{fragment}")["told"]
    assert ("left out nose-1.0-py3-none-any.whl" in said) == bool(told)
    assert told in said
    assert ("nose" in site.marker()["packages"]) == (not told)


def test_credentials_in_an_address_are_sent_and_never_printed(site):
    with simple_index(site.wheels, 0, credentials="bob:s3cr/etpw") as url:
        address = url.replace("://", "://bob:s3cr%2Fetpw@")
        said = boot(site, PARAKEET_INDEX_URL=address, PARAKEET_FIND_LINKS="")
        assert said["ear"] == "1.0"
        assert "s3cr" not in str(said["told"])
        assert index_checks(site, PARAKEET_INDEX_URL=address) == ["answers"]


@pytest.mark.parametrize("variable", ["PARAKEET_INDEX_URL", "PARAKEET_FIND_LINKS"])
def test_credentials_of_an_address_without_a_port_are_not_printed(site, variable):
    # Nothing listens there; the standard library would take the password for the port.
    address = {variable: "http://bob:s3cretpw@127.0.0.2/simple"}
    said = refused(site, **address)
    assert said.startswith("index_unreachable: http://127.0.0.2/simple cannot be reached")
    assert "s3cret" not in said
    (found,) = index_checks(site, **address)
    assert "s3cret" not in found


def index_checks(site, **variables):
    checks = examine({**site.environment, **variables}, site.root)
    return [check.found for check in checks if check.name == "index"]


def test_an_address_is_shown_without_credentials_however_they_are_written():
    for address in ("https://bob:pw@host/simple", "https://bob:p/w@host/simple",
                    "https://tok@host/simple"):  # fmt: skip
        assert without_secrets(address) == "https://host/simple"
        assert redacted(f"not at {address}: no") == "not at https://host/simple: no"
    assert without_secrets("https://host:8000/a@b") == "https://host:8000/a@b"
    assert without_secrets("https://[::1]/a@b") == "https://[::1]/a@b"


def test_without_a_network_the_index_is_said_to_be_out_of_reach(site):
    if subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0:  # noqa: S607
        pytest.skip("this machine takes nobody's network away")
    nothing = {"PARAKEET_INDEX_URL": "", "PARAKEET_FIND_LINKS": "", "UV_NO_CONFIG": "1"}
    said = refused(site, "unshare", "-n", **nothing)
    assert said.startswith("index_unreachable: ")
    assert "PARAKEET_INDEX_URL" in said


def test_what_was_half_removed_or_half_built_is_gone_after_the_next_installation(site):
    left = [
        site.volume / ".removed-12345678",
        site.volume / "environments" / ".removed-12345678",
        site.volume / "environments" / f".{'0' * 16}-0-abcdef",
    ]
    for folder in left:
        (folder / "lib").mkdir(parents=True)
    boot(site)
    assert [folder for folder in left if folder.exists()] == []


def test_room_is_made_of_what_can_be_fetched_again_before_a_volume_is_called_full(site):
    site.volume.mkdir()
    prefix = namespaced(
        f"mount -t tmpfs -o size=20m none {site.volume}; mkdir {site.volume}/uv_cache; "
        f"head -c 12582912 /dev/zero > {site.volume}/uv_cache/wheel"
    )
    ran = subprocess.run(
        [*prefix, *site.command], env=site.environment, capture_output=True, text=True, check=True
    )
    assert "making room: volume_full: " in ran.stderr
    assert json.loads(ran.stdout)["ear"] == "1.0"


def test_who_was_fenced_believes_no_complaint_of_its_installer(tmp_path):
    held = iter([True])

    def go_on() -> None:
        if not next(held, False):  # taken over while the installer ran
            raise Fenced

    with pytest.raises(Fenced):
        _run(["sh", "-c", "echo No space left; exit 9"], 60.0, go_on, tmp_path)


def test_what_long_gone_workers_said_they_use_does_not_pile_up(site):
    boot(site)
    (environment,) = site.environments()
    (uses,) = (site.volume / "uses").iterdir()
    old = uses / "elsewhere-1"
    old.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": "5"}))
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    boot(site)
    assert not old.exists()
    assert environment.exists()
