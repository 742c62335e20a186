"""Properties of the Dockerfile that hold without building it."""

import asyncio
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import recordings
from hub import MODEL, Hub
from loopback import WebServer
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding, find_ffmpeg
from parakeet_worker.client.clients import AsyncClient
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.entrypoints.wyoming.main import Address
from parakeet_worker.request import Clip
from parakeet_worker.settings import Settings, variable
from parakeet_worker.weights.checkpoints import EXTRACTOR, SAFETENSORS

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("volume", "baked")
BASE = "nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the Dockerfile, with continued lines joined."""

    stage: str
    """Empty before the first `FROM`."""
    name: str
    text: str


def instructions() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stage, result = "", []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, text = line.partition(" ")
        if name == "FROM":
            stage = text.rpartition(" AS ")[2]
        result.append(Instruction(stage, name, text))
    return result


def parents() -> dict[str, str]:
    """Map each stage to its base."""
    return {each.stage: each.text.split()[0] for each in instructions() if each.name == "FROM"}


def of(target: str, *names: str) -> list[Instruction]:
    """Instructions of `target` and of its bases, first base first."""
    line = [target]
    while line[-1] in parents():
        line.append(parents()[line[-1]])
    every = instructions()
    return [
        each for stage in reversed(line) for each in every
        if each.stage == stage and (not names or each.name in names)
    ]  # fmt: skip


def build_arguments() -> dict[str, str]:
    """Build arguments with their defaults."""
    pairs = [each.text.partition("=") for each in instructions() if each.name == "ARG"]
    return {name: default for name, _, default in pairs}


def runs() -> list[str]:
    return [each.text for each in instructions() if each.name == "RUN"]


def test_base_and_python_are_build_arguments() -> None:
    assert build_arguments()["BASE"] == BASE
    assert parents()["system"] == "${BASE}"
    assert build_arguments()["PYTHON"] == "3.12"
    assert list(parents())[-1] == "baked", "a build without a target gives the one for any endpoint"
    assert set(TARGETS) <= set(parents())


@pytest.mark.parametrize("target", TARGETS)
def test_python_is_process_1_without_a_shell(target: str) -> None:
    *_, command = of(target, "CMD")
    assert json.loads(command.text) == ["python", "handler.py"]
    assert of(target, "ENTRYPOINT", "SHELL") == []


def test_every_package_is_pinned_or_comes_from_the_base() -> None:
    installs = [run for run in runs() if "pip install" in run or "pip sync" in run]
    assert len(installs) == 3
    for run in installs:
        assert "pip sync" not in run or "--no-build" in run, "sources need build requirements"
        built = "--no-deps --build-constraints requirements/build.txt --editable ."
        assert "--require-hashes" in run or built in run, run
    assert re.search(r"https?://", "\n".join(runs())) is None
    assert re.search(r"(^|&&\s*)(curl|wget|git)\s", "\n".join(runs())) is None
    assert ":latest" not in (ROOT / "Dockerfile").read_text()
    assert re.fullmatch(r"[0-9a-f]{40}", build_arguments()["REVISION"])


COMPILER = ["gcc", "libc6-dev", "python${PYTHON}-dev"]


def installed(target: str) -> list[str]:
    """System packages in order of installation."""
    packages = []
    for run in (each.text for each in of(target, "RUN") if "apt-get" in each.text):
        packages += run.partition("--no-install-recommends")[2].partition("&&")[0].split()
        assert run.index("rm -rf /var/lib/apt/lists/*") > run.index("install")
    return packages


def test_the_ffmpeg_of_the_image_has_every_part_that_decoding_names(tmp_path: Path) -> None:
    log, recorded = tmp_path / "log", tmp_path / "ffmpeg"
    recorded.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec {find_ffmpeg()} "$@"\n')
    recorded.chmod(0o755)
    samples = recordings.tone(440, 700)
    for name, clip in (("a.wav", Clip(0, 1)), ("b.mkv", Clip(650, 660)), ("c.mp3", Clip(650, 660))):
        path = recordings.encode(tmp_path / name, samples=samples)
        decoding = Decoding(path, ffmpeg=recorded, max_seconds=1000, timeout_seconds=60, clip=clip)
        assert sum(map(len, decoding.blocks())) == SAMPLE_RATE * (
            clip.end_seconds - clip.start_seconds
        )
    commands = log.read_text()
    script = (ROOT / "scripts" / "build-ffmpeg").read_text()
    enabled = {
        part: set(re.search(rf"--enable-{part}=([\w,]+)", script)[1].split(","))
        for part in ("filter", "muxer", "encoder", "protocol")
    }
    filters = {
        one.partition("=")[0]
        for chain in re.findall(r"-af (\S+)", re.sub("'[^']*'", "", commands))
        for one in chain.split(",")
    }
    assert filters > {"asetpts", "asetnsamples"}
    assert filters | {"aresample"} == enabled["filter"]
    assert set(re.findall(r"-f (f\w+) ", commands)) == {"f32le"}
    assert enabled["muxer"] == enabled["encoder"] == {"pcm_f32le"}
    assert enabled["protocol"] == {"file", "pipe"}


def test_the_image_has_its_own_ffmpeg_and_no_other() -> None:
    assert ("COPY", "--from=ffmpeg /ffmpeg /usr/local/bin/ffmpeg") in [
        (each.name, each.text) for each in of("system", "COPY")
    ]
    for target in TARGETS:
        assert "ffmpeg" not in installed(target)


def test_the_image_resamples_in_single_precision_as_its_ffmpeg_has_no_denormal_numbers() -> None:
    assert "--extra-ldexeflags=-ffast-math" in (ROOT / "scripts" / "build-ffmpeg").read_text()
    for target in TARGETS:
        set_ = " ".join(each.text for each in of(target, "ENV"))
        assert "PARAKEET_RESAMPLING_PRECISION=single" in set_


def test_only_stages_that_compile_kernels_have_a_compiler() -> None:
    """`baked` has compiled kernels; `volume` compiles them at the first start on a card."""
    base = ["ca-certificates", "python${PYTHON}", "python${PYTHON}-venv"]
    assert installed("baked") == base
    assert installed("volume") == [*base, *COMPILER]
    assert installed("compiled") == [*base, *COMPILER]


def test_kernels_are_compiled_for_the_baked_model_into_the_configured_folder() -> None:
    (command,) = [each.text for each in of("compiled", "RUN") if "compile-kernels" in each.text]
    assert command.endswith("--model /model /opt/kernels")
    model = "--from=weights /model"
    assert [each.text for each in of("compiled", "COPY") if model in each.text] == [
        f"{model} /model"
    ]
    assert ("COPY", "--from=compiled /opt/kernels /opt/kernels") in [
        (each.name, each.text) for each in of("baked", "COPY")
    ]
    (set_,) = [each.text for each in of("baked", "ENV") if "PARAKEET_MODEL" in each.text]
    assert "PARAKEET_KERNEL_CACHE=/opt/kernels" in set_
    assert [each.text for each in of("volume", "ENV") if "KERNEL_CACHE" in each.text] == []


def test_there_are_no_secrets() -> None:
    named = [*build_arguments(), *(each.text for each in instructions() if each.name == "ENV")]
    assert len(named) > 5
    for name in named:
        assert not re.search(
            r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY|PROXY|INDEX", name, re.IGNORECASE
        )
    assert "--mount" not in "\n".join(runs())
    assert "USER" not in build_arguments()


def test_no_layer_contains_a_cache() -> None:
    for stage in parents():
        each = [one for one in instructions() if one.stage == stage]
        disabled = any(one.name == "ARG" and one.text == "UV_NO_CACHE=1" for one in each)
        for run in (one.text for one in each if one.name == "RUN"):
            uses = len(re.findall(r"\buv (?:venv|pip)\b", run))
            assert disabled or run.count("--no-cache ") == uses, run
            assert "-m pip" not in run or "--no-cache-dir" in run


def test_weights_are_a_layer_below_the_code_in_the_configured_folder() -> None:
    order = [(each.name, each.text) for each in of("baked", "COPY", "RUN")]
    weights_at = order.index(("COPY", "--from=weights /model /opt/model"))
    code_at = order.index(("COPY", "src src"))
    environment_at = next(n for n, (_, text) in enumerate(order) if "uv pip sync" in text)
    assert environment_at < weights_at < code_at
    (set_,) = [each.text for each in of("baked", "ENV") if "PARAKEET_MODEL" in each.text]
    assert "PARAKEET_MODEL=/opt/model" in set_


def test_the_baked_model_is_the_default_one_with_every_file() -> None:
    assert build_arguments()["MODEL"] == Settings().model
    (download,) = [run for run in runs() if "hf download" in run]
    included = re.findall(r"--include (\S+)", download)
    assert sorted(included) == sorted([*SAFETENSORS, *EXTRACTOR])
    source = (ROOT / "src" / "parakeet_worker" / "weights" / "digests.py").read_text()
    assert f"at revision {build_arguments()['REVISION']}" in source


def test_baked_does_not_run_as_root_and_volume_does() -> None:
    assert [each.text for each in of("baked", "USER")] == ["worker"]
    assert of("volume", "USER") == []


def is_in_context(path: str) -> bool:
    """Whether .dockerignore keeps a file in the build context; the last matching rule counts."""
    inside = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!")
        if rule and not rule.startswith("#") and any(matches(pattern, path)):
            inside = rule.startswith("!")
    return inside


def matches(pattern: str, path: str) -> Iterator[bool]:
    """Yield for a path and each parent folder whether the pattern matches it."""
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        parent = parts[:length]
        if pattern.startswith("**/"):
            yield fnmatchcase(parent[-1], pattern.removeprefix("**/"))
        else:
            yield len(parent) == pattern.count("/") + 1 and fnmatchcase("/".join(parent), pattern)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", ".cache/uv/bin/uv", "samples/en.ogg", "tests/speech.py",
        "Dockerfile", ".runpod/hub.json", "src/parakeet_worker/__pycache__/audio.cpython-312.pyc",
        "src/parakeet_worker/audio.pyc", ".env", "test_input.json",
    ],
)  # fmt: skip
def test_unused_files_are_not_in_the_build_context(path: str) -> None:
    assert not is_in_context(path)


def test_copied_files_are_in_the_build_context() -> None:
    copies = [
        each for target in (*TARGETS, "demo") for each in of(target, "COPY")
        if not each.text.startswith("--from")
    ]  # fmt: skip
    sources = {source for each in copies for source in each.text.split()[:-1]}
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_in_context(source), source
    assert is_in_context("src/parakeet_worker/checkpoints/demo.nemo")
    assert is_in_context("requirements/profiles.toml")


def test_no_code_needs_metadata_of_the_package_which_a_volume_lacks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert len(sources) > 50
    named = re.compile(rf"""(version|distribution|requires|files)\(["']{project["name"]}["']""")
    assert [path.name for path in sources if named.search(path.read_text())] == []


async def test_the_build_downloads_exactly_the_files_of_the_model(
    tmp_path: Path, web: WebServer
) -> None:
    hub = Hub(web)
    hub.open()
    (command,) = [run for run in runs() if "hf download" in run]
    script = command.replace(" /download", f" {tmp_path}/model").replace(".venv/bin/hf", "hf")
    scripts = Path(sys.executable).parent
    building = await asyncio.create_subprocess_exec(
        "sh", "-ec", script, cwd=tmp_path,
        env={
            "PATH": f"{scripts}:{os.environ['PATH']}", "HOME": str(tmp_path),
            "HF_ENDPOINT": web.address, "HF_HUB_DISABLE_TELEMETRY": "1",
            "MODEL": MODEL, "REVISION": hub.commit,
        },
    )  # fmt: skip
    assert await asyncio.wait_for(building.wait(), 120) == 0
    downloaded = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert downloaded == {
        name: content for name, content in hub.files.items() if name != "README.md"
    }


def compose(service: str) -> dict[str, Any]:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return cast("dict[str, Any]", services[service])


def test_compose_starts_the_http_server_on_one_gpu():
    service = compose("parakeet")
    assert service["build"]["target"] in TARGETS
    known = {variable(name) for name in Settings.model_fields}
    assert set(service["environment"]) <= known | {"PORT"}
    port = service["environment"]["PORT"]
    assert service["ports"] == [f"{port}:{port}"]
    assert f"http://127.0.0.1:{port}/ready" in service["healthcheck"]["test"][-1]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    grace_minutes = int(service["stop_grace_period"].removesuffix("m"))
    assert 60 * grace_minutes > Settings().stop_timeout_seconds


def test_the_wyoming_profile_of_compose_serves_the_http_server_of_the_same_image():
    server, service = compose("parakeet"), compose("wyoming")
    assert service["profiles"] == ["wyoming"]
    assert "profiles" not in server
    assert service["build"] == server["build"]
    assert service["depends_on"] == {"parakeet": {"condition": "service_healthy"}}
    assert service["stop_grace_period"] == server["stop_grace_period"]
    program, name, *arguments = shlex.split(service["command"])
    assert program == "parakeet"
    chosen = main.commands[name].make_context(name, arguments).params
    assert chosen["endpoint"] == f"http://parakeet:{server['environment']['PORT']}"
    assert service["ports"] == [":".join([str(Address.read(chosen["uri"]).port)] * 2)]
    # The image has the package, and the client accepts the key and the address.
    assert re.search(r"^wyoming==", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    image = {"PARAKEET_MODEL": "/opt/model", "PARAKEET_MODEL_NAME": "any"}
    settings = Settings.from_environment({**image, **service["environment"]})
    assert settings.api_key
    AsyncClient(chosen["endpoint"], settings.api_key, settings=settings)
