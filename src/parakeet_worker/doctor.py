"""Is everything in place? The operator's checklist, each point with what to do about it."""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parakeet_worker import weights
from parakeet_worker.audio.decoding import find_ffmpeg
from parakeet_worker.bootstrap.choices import Choices
from parakeet_worker.bootstrap.environment import candidates
from parakeet_worker.bootstrap.installer import ask, check_reachable, without_secrets
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.volume import Volume, read_json
from parakeet_worker.container import Container, fitted
from parakeet_worker.errors import FfmpegMissing, SetupError, one_line
from parakeet_worker.remote import s3
from parakeet_worker.settings import Settings

_LEAST_GPU_MIB = 6_000
_KERNELS_FROM = 8  # compute capability, before its dot
_ANSWER_SECONDS = 30.0
_REACH_SECONDS = 10.0
_HUB = "https://huggingface.co"
_TOLD = ("torch", "nemo_toolkit", "runpod")
_ANEW = "start handler.py: it installs anew"


@dataclass(frozen=True, slots=True)
class Check:
    """One point of the list."""

    name: str
    verdict: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def examine(variables: Mapping[str, str], root: Path) -> Iterator[Check]:
    """Every point in turn; changes nothing. `root` is the folder with `requirements`."""
    try:
        settings, choices = (
            Settings.from_environment(variables),
            Choices.from_environment(variables),
        )
    except SetupError as error:
        yield Check("settings", "failed", str(error), "correct or remove that variable")
        return
    yield Check("settings", "ok", "every PARAKEET_ variable is known and has a possible value")
    yield from _volume(choices, root / "requirements")
    yield _network(choices)
    yield _engine(settings)
    yield from _model(settings, Volume(choices.home), variables)
    yield _container(settings)
    yield _scratch(settings)
    yield _ffmpeg(settings)
    yield _gpu(settings)
    yield from _kernels(settings, variables)
    yield _s3(settings)


def _volume(choices: Choices, requirements: Path) -> Iterator[Check]:
    volume = Volume(choices.home)
    if not volume.home.is_dir():
        found = f"{volume.home} is not there"
        remedy = "mount a volume or set PARAKEET_HOME; not needed where the worker is in the image"
        yield Check("volume", "warning", found, remedy)
        return
    free_gib = shutil.disk_usage(volume.home).free / 2**30
    yield Check("volume", "ok", f"{volume.home}, {free_gib:.1f} GiB free")
    if not os.access(volume.home, os.W_OK):
        remedy = "mount it writable and see whose it is; enough as it is for a whole environment"
        yield Check("volume", "warning", f"{volume.home} may not be written to", remedy)
    if not requirements.is_dir():
        return
    try:
        profile = Profile.named(choices.profile, requirements)
    except SetupError as error:
        yield Check("environment", "failed", str(error), "correct what is named")
        return
    yield from _environments(volume, profile)


def _environments(volume: Volume, profile: Profile) -> Iterator[Check]:
    found = list(candidates(volume, profile))
    faults = {each.folder.name: each.fault(profile) for each in found}
    whole = [name for name, fault in faults.items() if fault is None]
    for each in found:
        name, fault = each.folder.name, faults[each.folder.name]
        if fault:
            yield Check("environment", "warning", f"{name}: {fault}", _ANEW)
        else:
            yield Check("environment", "ok", f"{name}: whole{_versions(each.record)}")
    if not whole:
        yield Check("environment", "warning", "none for this lock, profile and Python", _ANEW)
    marked = (read_json(volume.marker) or {}).get("environment")
    mends = "start handler.py: it mends the marker and the link"
    if marked in whole and volume.venv.resolve().name == marked:
        yield Check("marker", "ok", f"venv and {volume.marker.name} name {marked}")
    elif not volume.marker.exists():
        yield Check("marker", "warning", f"there is no {volume.marker.name}", mends)
    else:
        yield Check("marker", "warning", f"{volume.marker.name} names {marked}", mends)


def _versions(record: Mapping[str, object]) -> str:
    packages = record.get("packages")
    held = packages if isinstance(packages, dict) else {}
    return "".join(f", {name} {held[name]}" for name in _TOLD if name in held)


def _network(choices: Choices) -> Check:
    try:
        check_reachable(choices)
    except SetupError as error:
        return Check("index", "warning", str(error), "needed only to install")
    named = choices.index_url or choices.find_links
    return Check("index", "ok", "answers" if named else "none is named; not asked")


def _engine(settings: Settings) -> Check:
    wanted = {"native": "torch", "nemo": "nemo", "tones": "numpy"}[settings.engine]
    if importlib.util.find_spec(wanted) is None:
        remedy = (
            "set PARAKEET_PROFILE=nemo and start handler.py" if wanted == "nemo" else "reinstall"
        )
        return Check("engine", "failed", f"{settings.engine} needs {wanted}", remedy)
    return Check("engine", "ok", f"{settings.engine}, with {wanted}")


def _model(settings: Settings, volume: Volume, variables: Mapping[str, str]) -> Iterator[Check]:
    named = Path(settings.model).expanduser()
    if settings.model == "demo" or named.exists() or settings.engine == "tones":
        yield Check("model", "ok", settings.model)
    elif named.suffix == ".nemo" or named.is_absolute():
        yield Check("model", "failed", f"{named} is not there", "correct PARAKEET_MODEL")
    elif settings.model in volume.model_revisions():
        yield _model_on_volume(settings.model, volume)
    else:
        remedy = (
            "it is looked for elsewhere and fetched at the first start; `parakeet verify` does that"
        )
        yield Check("model", "warning", f"{settings.model} is not on the volume", remedy)
        yield _hub(variables)


def _model_on_volume(model: str, volume: Volume) -> Check:
    revision = volume.model_revisions()[model]
    folder = volume.hf_hub_cache / f"models--{model.replace('/', '--')}"
    files = sorted((folder / "snapshots" / revision).glob("*"))
    lost = [path.name for path in files if not path.exists()]
    if not files or lost:
        found = f"{model} at {revision} lacks {', '.join(lost) or 'its files'}"
        return Check("model", "failed", found, f"remove {folder}: it is fetched anew")
    size_gib = sum(path.stat().st_size for path in files) / 2**30
    return Check("model", "ok", f"{model} at {revision} on the volume, {size_gib:.2f} GiB")


def _hub(variables: Mapping[str, str]) -> Check:
    """Can it be fetched? Any answer counts."""
    url = variables.get("HF_ENDPOINT") or _HUB
    if variables.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        remedy = "remove HF_HUB_OFFLINE, or name a model that is on disk in PARAKEET_MODEL"
        return Check("hub", "failed", "HF_HUB_OFFLINE forbids to fetch it", remedy)
    fault = weights.network_fault()
    if fault is not None:
        remedy = "correct SSL_CERT_FILE, SSL_CERT_DIR, the variables of proxies, or NO_PROXY"
        return Check("hub", "failed", fault, remedy)
    try:
        ask(url, _REACH_SECONDS)
    except OSError as failure:
        remedy = (
            "mend the network or HF_ENDPOINT, or take the image with the model inside; "
            "a model that is not public needs HF_TOKEN"
        )
        return Check("hub", "warning", f"{without_secrets(url)}: {failure}", remedy)
    return Check("hub", "ok", f"{without_secrets(url)} answers")


def _container(settings: Settings) -> Check:
    granted = Container.read()
    used = fitted(settings, granted)
    found = (
        f"{granted}: {used.threads or granted.threads} threads, {used.decoders} decoders, "
        f"{used.audio_memory_bytes >> 20} MiB of audio, {used.max_connections} connections"
    )
    if used.max_connections < settings.max_connections:
        remedy = "raise the container's limit on open files (ulimit -n) for more connections"
        return Check("container", "warning", found, remedy)
    return Check("container", "ok", found)


def _scratch(settings: Settings) -> Check:
    folder = settings.scratch
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = f"{folder} is no folder that can be written to"
        return Check(
            "scratch", "failed", found, "correct PARAKEET_SCRATCH, or give the user access"
        )
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < settings.scratch_least_bytes:
        remedy = "make room, give the container a larger disk, or name another PARAKEET_SCRATCH"
        return Check("scratch", "failed", f"{found}: no job is taken", remedy)
    if free < settings.max_audio_bytes:
        remedy = "give the container a larger disk, or lower PARAKEET_MAX_AUDIO_BYTES"
        return Check("scratch", "warning", f"{found}: less than one recording may have", remedy)
    return Check("scratch", "ok", found)


def _ffmpeg(settings: Settings) -> Check:
    remedy = "install ffmpeg in the image, or correct PARAKEET_FFMPEG"
    try:
        found = find_ffmpeg(settings.ffmpeg)
    except FfmpegMissing as error:
        return Check("ffmpeg", "failed", str(error), remedy)
    said = _answer([str(found), "-version"])
    if said is None:
        return Check("ffmpeg", "failed", f"{found} does not run", remedy)
    return Check("ffmpeg", "ok", f"{found}: {' '.join(said.split()[:3])}")


def _gpu(settings: Settings) -> Check:
    query = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    said = _answer(query)
    if not said:
        missing = settings.device == "cuda"
        found = "no GPU answers; the engine runs on the processor"
        remedy = "choose a GPU for the endpoint, or PARAKEET_DEVICE=cpu"
        return Check("gpu", "failed" if missing else "warning", found, remedy)
    mebibytes, _, name = said.splitlines()[0].partition(", ")
    if int(mebibytes) < _LEAST_GPU_MIB:
        remedy = "choose a GPU with more memory, or a smaller PARAKEET_BATCH_SECONDS"
        return Check("gpu", "warning", f"{name} with {mebibytes} MiB", remedy)
    return Check("gpu", "ok", f"{name} with {mebibytes} MiB")


def _kernels(settings: Settings, variables: Mapping[str, str]) -> Iterator[Check]:
    """What the next start on this GPU has to expect; nothing where none will be used."""
    said = _answer(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    if settings.engine != "native" or settings.device == "cpu" or not said:
        return
    capability = said.split()[0]
    slower = "plain PyTorch serves, several times slower"
    if settings.kernels == "off":
        yield Check("kernels", "warning", f"switched off: {slower}", "remove PARAKEET_KERNELS")
    elif int(capability.partition(".")[0]) < _KERNELS_FROM:
        found = f"compute capability {capability} is below {_KERNELS_FROM}.0: {slower}"
        yield Check(
            "kernels", "warning", found, "choose a newer GPU: A40, L4, A100, H100 and later"
        )
    else:
        card = "sm_" + capability.replace(".", "")
        replaced = _replaced(settings.kernel_folders[-1] / f"compared-{card}.json")
        for found in replaced:
            yield Check("kernels", "warning", found, "report it, with what `parakeet verify` says")
        if not replaced:
            yield _compiled(card, settings.kernel_folders, variables)


def _replaced(remembered: Path) -> list[str]:
    """What the last start on this kind of card wrote down, of kernels that were not used."""
    found = []
    for one in json.loads(remembered.read_text()) if remembered.exists() else []:
        if one["replaced"]:
            error = "" if one["error"] is None else f"relative error {one['error']:.2g}"
            found.append(f"{one['name']} was replaced by plain PyTorch: {one['reason'] or error}")
    return found


def _compiled(card: str, folders: Sequence[Path], variables: Mapping[str, str]) -> Check:
    for folder in folders:
        if any(folder.glob(f"{card}-*.json")):
            return Check("kernels", "ok", f"compiled for {card} in {folder}")
    if variables.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        remedy = "the next start compiles them, beside reading the weights, and keeps them"
        return Check("kernels", "warning", f"none are compiled for {card} yet", remedy)
    remedy = (
        "name a folder that `parakeet compile-kernels` made in PARAKEET_KERNEL_CACHE, or install "
        "gcc and Python's headers; without, plain PyTorch serves, several times slower"
    )
    return Check("kernels", "warning", f"none for {card}, and there is no C compiler", remedy)


def _s3(settings: Settings) -> Check:
    keys = (settings.s3_access_key, settings.s3_secret_key)
    if not all(keys):
        both = "set both S3_ACCESS_KEY and S3_SECRET_KEY"
        if any(keys):
            return Check("s3", "failed", "one of two keys is set", both)
        return Check("s3", "ok", "not configured")
    if settings.s3_bucket is None:
        return Check("s3", "ok", "keys are set; no S3_BUCKET to look at")
    return _bucket(settings, settings.s3_bucket)


def _bucket(settings: Settings, bucket: str) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    patient = settings.model_copy(update={"stall_timeout_seconds": _REACH_SECONDS})
    try:
        s3.client(patient).head_bucket(Bucket=bucket)
    except ClientError as failure:
        code, status = s3.error_code(failure)
        if status == 404:
            return Check("s3", "failed", f"there is no bucket {bucket}", "correct S3_BUCKET")
        remedy = (
            "correct the keys, or let them list the bucket; reading files may work all the same"
        )
        return Check("s3", "warning", f"{bucket}: {code or status}", remedy)
    except SetupError as failure:
        return Check("s3", "failed", str(failure), "correct what is named")
    except (BotoCoreError, ValueError) as failure:
        remedy = "mend the network, S3_ENDPOINT or S3_REGION"
        return Check("s3", "failed", one_line(str(failure), 200), remedy)
    return Check("s3", "ok", f"{bucket} answers")


def _answer(command: list[str]) -> str | None:
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
