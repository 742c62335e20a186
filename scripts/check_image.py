"""Builds each target of the Dockerfile with buildah, starts it, and sends it jobs.

Without a base named, the image stands on a small Debian of the machine's own release. Mirrors and
certificates are mounted while building and running; nothing of them is in the image. The packages
of `baked`, seven gigabytes, lie in a folder that is mounted too: a layer would be a second copy.
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

from job_api import JobApi  # noqa: E402  # where the tests are is known only now

FOLDER = ROOT / ".cache" / "check-image"
STAND_IN = "localhost/stand-in"
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
        base = chosen.base or _stand_in()
        for target in [chosen.target] if chosen.target else TARGETS:
            _check(Image.built(target, base, chosen.python), keep=chosen.keep)
    finally:
        if not chosen.keep:
            _clean()


def _arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description="Build the image's targets and run jobs in them.")
    asked.add_argument("--base", help="an image to build on  [default: a Debian made here]")
    own = ".".join(platform.python_version_tuple()[:2])
    asked.add_argument("--python", default=own, help=f"the base's Python  [default: {own}]")
    asked.add_argument("--keep", action="store_true", help="leave images for the next time")
    asked.add_argument("target", nargs="?", choices=TARGETS)
    return asked.parse_args()


def _missing(base: str | None) -> str:
    if os.geteuid() != 0:
        return "only root can make the image's root folder"
    tools = ["buildah", "unshare", "chroot", *([] if base else ["debootstrap"])]
    without = [tool for tool in tools if shutil.which(tool) is None]
    return f"there is no {' and no '.join(without)} here" if without else ""


def _buildah(*arguments: str) -> str:
    """What it prints on standard output; all that it says goes to the log."""
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


def _stand_in() -> str:
    """A base with nothing in it but Debian's essential packages and certificates."""
    if STAND_IN in _buildah("images", "--format", "{{.Name}}"):
        return STAND_IN
    release, mirror = _debian()
    print(f"making a base from Debian {release} ...", flush=True)
    container = _buildah("from", "scratch")
    root = _buildah("mount", container)
    made = _run(
        "debootstrap", "--variant=minbase", "--include=ca-certificates", release, root, mirror
    )
    if made.returncode != 0:
        sys.exit(f"debootstrap failed: {made.stdout[-600:]}")
    _buildah("unmount", container)
    _buildah("commit", "--rm", container, STAND_IN)
    return STAND_IN


def _debian() -> tuple[str, str]:
    """The machine's release and the mirror that its package manager asks."""
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines())
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI)")
    return facts["VERSION_CODENAME"].strip('"'), listed.stdout.split()[0]


def _lent() -> list[tuple[Path, str]]:
    """What the machine lends to a build and to a run: certificates and package indexes."""
    pip, uv = FOLDER / "pip.conf", FOLDER / "uv.toml"
    asked = _run("python3", "-m", "pip", "config", "get", "global.index-url")
    index = os.environ.get("PIP_INDEX_URL") or asked.stdout.strip()
    pip.write_text(
        f"[global]\ncert = {CERTIFICATES}\n" + (f"index-url = {index}\n" if index else "")
    )
    default = f'[[index]]\nurl = "{index}"\ndefault = true\n' if index else ""
    uv.write_text(f"native-tls = true\n{default}")
    lent = [(pip, "/etc/pip.conf"), (uv, "/etc/uv/uv.toml")]
    return [*lent, (CERTIFICATES, str(CERTIFICATES))] if CERTIFICATES.exists() else lent


@dataclass(frozen=True, slots=True)
class Image:
    """A target that was built, and what it says of how it wants to be run."""

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
        beside = FOLDER / target
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        large = {"baked": "/app/.venv", "volume": "/runpod-volume"}[target]
        mounts = (*_lent(), (beside, large))
        uv = ROOT / ".cache" / "uv" / "bin" / "uv"
        cached = (Path(_run(str(uv), "cache", "dir").stdout.strip()), "/var/cache/uv")
        given = {"BASE": base, "PYTHON": python, "WEIGHTS": "demo", "UV_NO_CACHE": "0"}
        options = [f"--build-arg={name}={said}" for name, said in given.items()]
        options += [f"--volume={path}:{inside}" for path, inside in (*mounts, cached)]
        name = f"localhost/parakeet:{target}"
        local = ["--pull-never"] if base == STAND_IN else []
        _buildah(
            "bud", "--isolation", "chroot", "--network", "host", *local, *options,
            "--target", target, "--tag", name, ".",
        )  # fmt: skip
        said = json.loads(_buildah("inspect", "--type", "image", name))["OCIv1"]
        config = said["config"]
        return cls(
            target=target,
            mounts=mounts,
            command=tuple(config["Cmd"]),
            variables=dict(line.split("=", 1) for line in config["Env"]),
            folder=config["WorkingDir"],
            user=config.get("User", "root"),
            history=json.dumps(said),
        )

    @contextmanager
    def container(self) -> Iterator[Path]:
        """A root folder made from the image."""
        container = _buildah("from", "--pull-never", f"localhost/parakeet:{self.target}")
        try:
            yield Path(_buildah("mount", container))
        finally:
            _buildah("rm", container)


@contextmanager
def started(
    image: Image, root: Path, variables: Mapping[str, str], *arguments: str
) -> Iterator["subprocess.Popen[str]"]:
    """The image's own command as process 1, on the machine's network; its log is in `FOLDER`."""
    user = next(
        line.split(":") for line in (root / "etc" / "passwd").read_text().splitlines()
        if line.split(":")[0] == image.user
    )  # fmt: skip
    environment = {"HOME": user[5], **image.variables, **variables}
    said = [f"{name}={value}" for name, value in environment.items()]
    command = [
        "chroot", f"--userspec={user[2]}:{user[3]}", str(root),
        "env", "-i", f"--chdir={image.folder}", *said, *image.command, *arguments,
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
    """The machine's number of what is process 1 in there."""
    told = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    if len(told) != 1:
        sys.exit(f"it ended with status {running.poll()}; see {FOLDER}")
    return int(told[0])


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


def _told(image: Image, fact: str, holds: object) -> None:
    print(f"{'ok' if holds else 'FAILED':<7}{image.target:<7} {fact}", flush=True)
    if not holds:
        sys.exit(1)


def _check_content(image: Image, root: Path) -> None:
    files = sorted(path.name for path in (root / "app").iterdir())
    wanted = {"handler.py", "pyproject.toml", "README.md", "requirements", "src"}
    _told(image, f"/app holds {', '.join(files)}", wanted <= {*files} <= {*wanted, ".venv"})
    left = [
        inside for path, inside in image.mounts
        if path.is_file() and path.parent == FOLDER and (root / inside[1:]).exists()
        and (root / inside[1:]).stat().st_size
    ]  # fmt: skip
    _told(image, "nothing that was lent to the build is in it", not left)
    size = _run("du", "-sxm", str(root)).stdout.split()[0]
    print(f"{'':<7}{image.target:<7} {size} MB without what is mounted")


def _job(language: str) -> tuple[dict[str, Any], str]:
    manifest = json.loads((ROOT / "samples" / "manifest.json").read_text())
    entry = next(entry for entry in manifest if entry["file"].startswith(f"{language}."))
    content = (ROOT / "samples" / entry["file"]).read_bytes()
    return {"audio_base64": base64.b64encode(content).decode()}, entry["text"]


def _check_test_input(image: Image, root: Path, variables: Mapping[str, str]) -> None:
    given, text = _job("fi")
    began = time.monotonic()
    arguments = ("--test_input", json.dumps({"input": given}))
    with started(image, root, variables, *arguments) as running:
        status = running.wait(START_SECONDS)
    log = (FOLDER / f"{image.target}.log").read_text()
    took = f"{time.monotonic() - began:.0f} s after the first start"
    _told(image, f"--test_input is answered, {took}", status == 0 and text in log)


def _check_jobs(image: Image, root: Path, variables: Mapping[str, str]) -> None:
    """The real job loop: every job has its own words, and SIGTERM ends process 1."""
    with JobApi() as api:
        told = {**api.environment(Path("/nowhere")), **variables}
        del told["HOME"]
        jobs = {language: _job(language) for language in SAMPLES}
        for language, (given, _) in jobs.items():
            api.submit(language, given)
        with started(image, root, told) as running:
            heard = {job: api.result(job, START_SECONDS)["output"]["text"] for job in jobs}
            right = all(heard[job] == text for job, (_, text) in jobs.items())
            _told(image, f"the job loop answers {len(jobs)} jobs", right)
            first = first_process(running)
            _check_process(image, root, first)
            os.kill(first, signal.SIGTERM)
            _told(image, "SIGTERM ends the first process in order", _ended(running) == 0)


def _check_process(image: Image, root: Path, first: int) -> None:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{first}/status").read_text().splitlines()
    )
    spaces, users = status["NSpid"].split(), {int(one) for one in status["Uid"].split()}
    command = Path(f"/proc/{first}/cmdline").read_text().split("\0")
    python = Path(command[0]).name.startswith("python")
    _told(image, f"process {spaces[-1]} is {command[0]}", spaces[-1] == "1" and python)
    named = (root / "etc" / "passwd").read_text().splitlines()
    wanted = next(int(line.split(":")[2]) for line in named if line.startswith(f"{image.user}:"))
    _told(image, f"it runs as {image.user}", users == {wanted})


def _check_http(image: Image, root: Path, variables: Mapping[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    told = {**variables, "RUNPOD_ENDPOINT_ID": "loopback", "PORT": port, "PORT_HEALTH": port}
    with started(image, root, told) as running:
        healthy = _healthy(f"http://127.0.0.1:{port}/ping", running)
        _told(image, "an endpoint that balances load is served by HTTP", healthy)
        os.kill(first_process(running), signal.SIGTERM)
        _told(image, "and SIGTERM ends that as well", _ended(running) == 0)


def _ended(running: "subprocess.Popen[str]") -> int | None:
    """Its status; None if it does not end."""
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
    """All but the logs; the stores of buildah hold mounts until it is asked to let go."""
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
