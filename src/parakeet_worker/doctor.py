"""Is everything in place? The operator's checklist, each point with what to do about it."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parakeet_worker.audio import find_ffmpeg
from parakeet_worker.bootstrap.choices import Choices
from parakeet_worker.bootstrap.environment import candidates
from parakeet_worker.bootstrap.installer import check_reachable
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.volume import Volume, read_json
from parakeet_worker.errors import FfmpegMissing, SetupError
from parakeet_worker.settings import Settings

_LEAST_GPU_MIB = 6_000
_ANSWER_SECONDS = 30.0


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
    yield _model(settings, Volume(choices.home))
    yield _ffmpeg(settings)
    yield _gpu(settings)
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
    if not requirements.is_dir():
        return
    anew = "start handler.py: it installs anew"
    try:
        profile = Profile.named(choices.profile, requirements)
    except SetupError as error:
        yield Check("environment", "failed", str(error), "correct what is named")
        return
    faults = {each.folder.name: each.fault(profile) for each in candidates(volume, profile)}
    whole = [name for name, fault in faults.items() if fault is None]
    for name, fault in faults.items():
        verdict: Literal["ok", "warning"] = "warning" if fault else "ok"
        yield Check("environment", verdict, f"{name}: {fault or 'whole'}", anew if fault else "")
    if not whole:
        yield Check("environment", "warning", "none for this lock, profile and Python", anew)
    marked = (read_json(volume.marker) or {}).get("environment")
    if marked in whole and (volume.venv.resolve().name == marked):
        yield Check("marker", "ok", f"venv and {volume.marker.name} name {marked}")
    else:
        yield Check("marker", "warning", f"names {marked}", "start handler.py: it mends the marker")


def _network(choices: Choices) -> Check:
    try:
        check_reachable(choices)
    except SetupError as error:
        return Check("index", "warning", str(error), "needed only to install")
    named = choices.index_url or choices.find_links
    return Check("index", "ok", "answers" if named else "none is named; not asked")


def _engine(settings: Settings) -> Check:
    wanted = {"native": "torch", "nemo": "nemo", "scripted": "numpy"}[settings.engine]
    if importlib.util.find_spec(wanted) is None:
        remedy = (
            "set PARAKEET_PROFILE=nemo and start handler.py" if wanted == "nemo" else "reinstall"
        )
        return Check("engine", "failed", f"{settings.engine} needs {wanted}", remedy)
    return Check("engine", "ok", f"{settings.engine}, with {wanted}")


def _model(settings: Settings, volume: Volume) -> Check:
    named = Path(settings.model).expanduser()
    if settings.model == "demo" or named.exists() or settings.engine == "scripted":
        return Check("model", "ok", settings.model)
    if settings.model in volume.model_revisions():
        revision = volume.model_revisions()[settings.model]
        return Check("model", "ok", f"{settings.model} at {revision} on the volume")
    if named.suffix == ".nemo" or named.is_absolute():
        return Check("model", "failed", f"{named} is not there", "correct PARAKEET_MODEL")
    remedy = (
        "it is looked for elsewhere and fetched at the first start; `parakeet verify` does that"
    )
    return Check("model", "warning", f"{settings.model} is not on the volume", remedy)


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


def _s3(settings: Settings) -> Check:
    keys = (settings.s3_access_key, settings.s3_secret_key)
    if any(keys) and not all(keys):
        return Check(
            "s3", "failed", "one of two keys is set", "set S3_ACCESS_KEY and S3_SECRET_KEY"
        )
    return Check("s3", "ok", "keys are set" if all(keys) else "not configured")


def _answer(command: list[str]) -> str | None:
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
