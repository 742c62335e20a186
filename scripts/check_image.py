"""Builds each target of the Dockerfile with buildah, starts it, and sends it jobs.

Without `--base`, images are built on a minimal Debian of the machine's release. Package mirrors and
certificates are mounted while building and running, and are not part of an image. The packages of
`baked`, seven gigabytes, are in a mounted folder too: a layer would be a second copy.
"""

import argparse
import base64
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from job_api import JobApi  # noqa: E402  # needs the path

FOLDER = ROOT / ".cache" / "check-image"
BASE_IMAGE = "localhost/debian"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TARGETS = ("baked", "volume")
SAMPLES = ("en", "de", "fr", "el")
START_SECONDS = 1800.0
END_SECONDS = 60.0


def main() -> None:
    chosen = _arguments()
    missing = _missing(chosen.base)
    if missing:
        print(f"skipped: {missing}")
        return
    try:
        base = chosen.base or _debian_base()
        for target in [chosen.target] if chosen.target else TARGETS:
            _check(Image.built(target, base, chosen.python), keep=chosen.keep)
    finally:
        if not chosen.keep:
            _clean()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the image's targets and run jobs in them.")
    parser.add_argument("--base", help="an image to build on  [default: a Debian made here]")
    own = ".".join(platform.python_version_tuple()[:2])
    parser.add_argument("--python", default=own, help=f"the base's Python  [default: {own}]")
    parser.add_argument("--keep", action="store_true", help="keep the images")
    parser.add_argument("target", nargs="?", choices=TARGETS)
    return parser.parse_args()


def _missing(base: str | None) -> str:
    if os.geteuid() != 0:
        return "mounting an image requires root"
    tools = ["buildah", "unshare", "chroot", *([] if base else ["debootstrap"])]
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _buildah(*arguments: str) -> str:
    """Run buildah; return its standard output, and append all output to the log."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    stores = ["--root", str(FOLDER / "root"), "--runroot", str(FOLDER / "run")]
    ran = _run("buildah", *stores, *arguments)
    with (FOLDER / "buildah.log").open("a") as log:
        log.write(f"buildah {' '.join(arguments)}\n{ran.stdout}{ran.stderr}\n")
    if ran.returncode != 0:
        sys.exit(f"buildah {arguments[0]} failed: {ran.stderr[-600:]}")
    return ran.stdout.strip()


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _debian_base() -> str:
    """A base image with Debian's essential packages and certificates."""
    if BASE_IMAGE in _buildah("images", "--format", "{{.Name}}"):
        return BASE_IMAGE
    release, mirror = _debian()
    print(f"building a base from Debian {release} ...", flush=True)
    container = _buildah("from", "scratch")
    root = _buildah("mount", container)
    completed = _run(
        "debootstrap", "--variant=minbase", "--include=ca-certificates", release, root, mirror
    )
    if completed.returncode != 0:
        sys.exit(f"debootstrap failed: {completed.stdout[-600:]}")
    _buildah("unmount", container)
    _buildah("commit", "--rm", container, BASE_IMAGE)
    return BASE_IMAGE


def _debian() -> tuple[str, str]:
    """Code name of the machine's release, and its package mirror."""
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines())
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI)")
    return facts["VERSION_CODENAME"].strip('"'), listed.stdout.split()[0]


def _mounted_files() -> list[tuple[Path, str]]:
    """Files of the machine to mount: certificates and configuration of package indexes."""
    pip, uv = FOLDER / "pip.conf", FOLDER / "uv.toml"
    configured = _run("python3", "-m", "pip", "config", "get", "global.index-url")
    index = os.environ.get("PIP_INDEX_URL") or configured.stdout.strip()
    pip.write_text(
        f"[global]\ncert = {CERTIFICATES}\n" + (f"index-url = {index}\n" if index else "")
    )
    default = f'[[index]]\nurl = "{index}"\ndefault = true\n' if index else ""
    uv.write_text(f"native-tls = true\n{default}")
    files = [(pip, "/etc/pip.conf"), (uv, "/etc/uv/uv.toml")]
    return [*files, (CERTIFICATES, str(CERTIFICATES))] if CERTIFICATES.exists() else files


@dataclass(frozen=True, slots=True)
class Image:
    """A built target, with its configuration."""

    target: str
    mounts: tuple[tuple[Path, str], ...]
    command: tuple[str, ...]
    variables: dict[str, str]
    folder: str
    user: str
    history: str

    @classmethod
    def built(cls, target: str, base: str, python: str) -> "Image":
        print(f"building {target} on {base} ...", flush=True)
        packages = FOLDER / target
        shutil.rmtree(packages, ignore_errors=True)
        packages.mkdir(parents=True)
        large = {"baked": "/app/.venv", "volume": "/runpod-volume"}[target]
        mounts = (*_mounted_files(), (packages, large))
        uv = ROOT / ".cache" / "uv" / "bin" / "uv"
        cached = (Path(_run(str(uv), "cache", "dir").stdout.strip()), "/var/cache/uv")
        values = {"BASE": base, "PYTHON": python, "WEIGHTS": "demo", "UV_NO_CACHE": "0"}
        options = [f"--build-arg={name}={value}" for name, value in values.items()]
        options += [f"--volume={path}:{inside}" for path, inside in (*mounts, cached)]
        name = f"localhost/parakeet:{target}"
        local = ["--pull-never"] if base == BASE_IMAGE else []
        _buildah(
            "bud", "--isolation", "chroot", "--network", "host", *local, *options,
            "--target", target, "--tag", name, ".",
        )  # fmt: skip
        inspected = json.loads(_buildah("inspect", "--type", "image", name))["OCIv1"]
        config = inspected["config"]
        return cls(
            target=target,
            mounts=mounts,
            command=tuple(config["Cmd"]),
            variables=dict(line.split("=", 1) for line in config["Env"]),
            folder=config["WorkingDir"],
            user=config.get("User", "root"),
            history=json.dumps(inspected),
        )

    @contextmanager
    def container(self) -> Iterator[Path]:
        """Mount the root file system of a new container."""
        container = _buildah("from", "--pull-never", f"localhost/parakeet:{self.target}")
        try:
            yield Path(_buildah("mount", container))
        finally:
            _buildah("rm", container)


@contextmanager
def started(
    image: Image, root: Path, variables: Mapping[str, str], *arguments: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run the image's command as process 1, on the machine's network; logs to `FOLDER`."""
    user = next(
        line.split(":") for line in (root / "etc" / "passwd").read_text().splitlines()
        if line.split(":")[0] == image.user
    )  # fmt: skip
    environment = {"HOME": user[5], **image.variables, **variables}
    assignments = [f"{name}={value}" for name, value in environment.items()]
    command = [
        "chroot", f"--userspec={user[2]}:{user[3]}", str(root),
        "env", "-i", f"--chdir={image.folder}", *assignments, *image.command, *arguments,
    ]  # fmt: skip
    mounting = [
        f"touch {root}{inside}; mount --bind {path} {root}{inside}"
        if path.is_file() else
        f"mkdir -p {root}{inside}; mount --bind {path} {root}{inside}"
        for path, inside in image.mounts
    ]  # fmt: skip
    mounting = [f"mkdir -p {root}/etc/uv", *mounting]
    mounting += [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    with (FOLDER / f"{image.target}.log").open("a") as log:
        running = subprocess.Popen(
            [*alone, "sh", "-ec", "; ".join([*mounting, 'exec "$@"']), "sh", *command],
            stdout=log, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def first_process(running: "subprocess.Popen[str]") -> int:
    """PID, on the machine, of process 1 of the container."""
    listed = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    if len(listed) != 1:
        sys.exit(f"it ended with status {running.poll()}; see {FOLDER}")
    return int(listed[0])


def _check(image: Image, *, keep: bool) -> None:
    variables = {} if image.target == "baked" else {"PARAKEET_MODEL": "demo"}
    if CERTIFICATES.exists():
        variables["SSL_CERT_FILE"] = str(CERTIFICATES)
    with image.container() as root:
        _check_content(image, root)
        _check_test_input(image, root, variables)
        _check_jobs(image, root, variables)
        _check_http(image, root, variables)
    if not keep:
        shutil.rmtree(FOLDER / image.target)


def _report(image: Image, fact: str, holds: object) -> None:
    print(f"{'ok' if holds else 'FAILED':<7}{image.target:<7} {fact}", flush=True)
    if not holds:
        sys.exit(1)


def _check_content(image: Image, root: Path) -> None:
    files = sorted(path.name for path in (root / "app").iterdir())
    expected = {"handler.py", "pyproject.toml", "README.md", "requirements", "src"}
    _report(image, f"/app holds {', '.join(files)}", expected <= {*files} <= {*expected, ".venv"})
    left = [
        inside for path, inside in image.mounts
        if path.is_file() and path.parent == FOLDER and (root / inside[1:]).exists()
        and (root / inside[1:]).stat().st_size
    ]  # fmt: skip
    _report(image, "mounted files are not in the image", not left)
    size = _run("du", "-sxm", str(root)).stdout.split()[0]
    print(f"{'':<7}{image.target:<7} {size} MB without mounts")


def _job(language: str) -> tuple[dict[str, Any], str]:
    manifest = json.loads((ROOT / "samples" / "manifest.json").read_text())
    entry = next(entry for entry in manifest if entry["file"].startswith(f"{language}."))
    content = (ROOT / "samples" / entry["file"]).read_bytes()
    return {"audio_base64": base64.b64encode(content).decode()}, entry["text"]


def _check_test_input(image: Image, root: Path, variables: Mapping[str, str]) -> None:
    job, text = _job("fi")
    began = time.monotonic()
    arguments = ("--test_input", json.dumps({"input": job}))
    with started(image, root, variables, *arguments) as running:
        status = running.wait(START_SECONDS)
    log = (FOLDER / f"{image.target}.log").read_text()
    took = f"{time.monotonic() - began:.0f} s after the first start"
    _report(image, f"--test_input is answered, {took}", status == 0 and text in log)


def _check_jobs(image: Image, root: Path, variables: Mapping[str, str]) -> None:
    """The job loop transcribes every job, and SIGTERM ends process 1."""
    with JobApi() as api:
        environment = {**api.environment(Path("/none")), **variables}
        del environment["HOME"]
        jobs = {language: _job(language) for language in SAMPLES}
        for language, (job, _) in jobs.items():
            api.submit(language, job)
        with started(image, root, environment) as running:
            texts = {job: api.result(job, START_SECONDS)["output"]["text"] for job in jobs}
            right = all(texts[job] == text for job, (_, text) in jobs.items())
            _report(image, f"the job loop answers {len(jobs)} jobs", right)
            first = first_process(running)
            _check_process(image, root, first)
            os.kill(first, signal.SIGTERM)
            _report(image, "SIGTERM ends process 1 with status 0", _ended(running) == 0)


def _check_process(image: Image, root: Path, first: int) -> None:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{first}/status").read_text().splitlines()
    )
    spaces, users = status["NSpid"].split(), {int(one) for one in status["Uid"].split()}
    command = Path(f"/proc/{first}/cmdline").read_text().split("\0")
    python = Path(command[0]).name.startswith("python")
    _report(image, f"process {spaces[-1]} is {command[0]}", spaces[-1] == "1" and python)
    named = (root / "etc" / "passwd").read_text().splitlines()
    uid = next(int(line.split(":")[2]) for line in named if line.startswith(f"{image.user}:"))
    _report(image, f"it runs as {image.user}", users == {uid})


def _check_http(image: Image, root: Path, variables: Mapping[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**variables, "RUNPOD_ENDPOINT_ID": "loopback", "PORT": port, "PORT_HEALTH": port}
    with started(image, root, environment) as running:
        healthy = _healthy(f"http://127.0.0.1:{port}/ping", running)
        _report(image, "on a load-balancing endpoint it serves HTTP", healthy)
        os.kill(first_process(running), signal.SIGTERM)
        _report(image, "SIGTERM ends the HTTP server with status 0", _ended(running) == 0)


def _ended(running: "subprocess.Popen[str]") -> int | None:
    """Exit status; None if it does not end in time."""
    with suppress(subprocess.TimeoutExpired):
        running.wait(END_SECONDS)
    return running.poll()


def _healthy(url: str, running: "subprocess.Popen[str]") -> bool:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and running.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return True
        time.sleep(0.2)
    return False


def _clean() -> None:
    """Remove everything except the logs; buildah unmounts its containers first."""
    if (FOLDER / "root").exists():
        _buildah("rm", "--all")
        _buildah("rmi", "--all", "--force")
    mounted = Path("/proc/mounts").read_text()
    for folder in (*TARGETS, "root", "run"):
        if str(FOLDER / folder) in mounted:
            sys.exit(f"{FOLDER / folder} is still mounted: not removed")
        shutil.rmtree(FOLDER / folder, ignore_errors=True)


if __name__ == "__main__":
    main()
