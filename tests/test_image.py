"""The Dockerfile read as text: what can be known of the image without building it."""

import asyncio
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from hub import MODEL, Hub
from loopback import WebServer
from parakeet_worker import weights
from parakeet_worker.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("volume", "baked")
PLANNED_BASE = "nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the Dockerfile, its continued lines joined."""

    stage: str
    """Empty before the first `FROM`."""
    name: str
    said: str


def instructions() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stage, found = "", []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, said = line.partition(" ")
        if name == "FROM":
            stage = said.rpartition(" AS ")[2]
        found.append(Instruction(stage, name, said))
    return found


def parents() -> dict[str, str]:
    """Stage to the stage or image that it stands on."""
    return {each.stage: each.said.split()[0] for each in instructions() if each.name == "FROM"}


def of(target: str, *names: str) -> list[Instruction]:
    """What builds `target`, from its base up."""
    line = [target]
    while line[-1] in parents():
        line.append(parents()[line[-1]])
    every = instructions()
    return [
        each for stage in reversed(line) for each in every
        if each.stage == stage and (not names or each.name in names)
    ]  # fmt: skip


def arguments() -> dict[str, str]:
    """Build arguments with their defaults."""
    pairs = [each.said.partition("=") for each in instructions() if each.name == "ARG"]
    return {name: default for name, _, default in pairs}


def runs() -> list[str]:
    return [each.said for each in instructions() if each.name == "RUN"]


def test_the_base_is_the_plans_and_it_and_python_can_be_chosen() -> None:
    assert arguments()["BASE"] == PLANNED_BASE
    assert parents()["system"] == "${BASE}"
    assert arguments()["PYTHON"] == "3.12"
    assert list(parents())[-1] == "baked", "a build without a target gives the one for any endpoint"
    assert set(TARGETS) <= set(parents())


@pytest.mark.parametrize("target", TARGETS)
def test_python_is_the_first_process_and_no_shell_stands_before_it(target: str) -> None:
    *_, command = of(target, "CMD")
    assert json.loads(command.said) == ["python", "handler.py"]
    assert of(target, "ENTRYPOINT", "SHELL") == []


def test_every_package_is_pinned_or_comes_from_the_base() -> None:
    installs = [run for run in runs() if "pip install" in run or "pip sync" in run]
    assert len(installs) == 3
    for run in installs:
        built = "--no-deps --build-constraints requirements/build.txt --editable ."
        assert "--require-hashes" in run or built in run, run
    assert re.search(r"https?://", "\n".join(runs())) is None
    assert re.search(r"(^|&&\s*)(curl|wget|git)\s", "\n".join(runs())) is None
    assert ":latest" not in (ROOT / "Dockerfile").read_text()
    assert re.fullmatch(r"[0-9a-f]{40}", arguments()["REVISION"])


COMPILER = ["gcc", "libc6-dev", "python${PYTHON}-dev"]


def installed(target: str) -> list[str]:
    """Packages of the system, in the order in which they come."""
    packages = []
    for run in (each.said for each in of(target, "RUN") if "apt-get" in each.said):
        packages += run.partition("--no-install-recommends")[2].partition("&&")[0].split()
        assert run.index("rm -rf /var/lib/apt/lists/*") > run.index("install")
    return packages


def test_a_compiler_is_only_where_kernels_are_compiled() -> None:
    """`baked` has them, for every card; `volume` compiles its own at the first start on one."""
    base = ["ca-certificates", "ffmpeg", "python${PYTHON}", "python${PYTHON}-venv"]
    assert installed("baked") == base
    assert installed("volume") == [*base, *COMPILER]
    assert installed("compiled") == [*base, *COMPILER]


def test_kernels_are_compiled_for_the_model_that_is_baked_and_lie_where_the_settings_look() -> None:
    (command,) = [each.said for each in of("compiled", "RUN") if "compile-kernels" in each.said]
    assert command.endswith("--model /model /opt/kernels")
    model = "--from=weights /model"
    assert [each.said for each in of("compiled", "COPY") if model in each.said] == [
        f"{model} /model"
    ]
    assert ("COPY", "--from=compiled /opt/kernels /opt/kernels") in [
        (each.name, each.said) for each in of("baked", "COPY")
    ]
    (set_,) = [each.said for each in of("baked", "ENV") if "PARAKEET_MODEL" in each.said]
    assert "PARAKEET_KERNEL_CACHE=/opt/kernels" in set_
    assert [each.said for each in of("volume", "ENV") if "KERNEL_CACHE" in each.said] == []


def test_no_secret_is_asked_for_and_none_is_kept() -> None:
    named = [*arguments(), *(each.said for each in instructions() if each.name == "ENV")]
    assert len(named) > 5
    for name in named:
        assert not re.search(
            r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY|PROXY|INDEX", name, re.IGNORECASE
        )
    assert "--mount" not in "\n".join(runs())
    assert "USER" not in arguments()


def test_a_layer_of_caches_is_never_kept() -> None:
    for stage in parents():
        each = [one for one in instructions() if one.stage == stage]
        off = any(one.name == "ARG" and one.said == "UV_NO_CACHE=1" for one in each)
        for run in (one.said for one in each if one.name == "RUN"):
            uses = len(re.findall(r"\buv (?:venv|pip)\b", run))
            assert off or run.count("--no-cache ") == uses, run
            assert "-m pip" not in run or "--no-cache-dir" in run


def test_weights_are_a_layer_below_the_code_and_lie_where_the_settings_look() -> None:
    order = [(each.name, each.said) for each in of("baked", "COPY", "RUN")]
    weights_at = order.index(("COPY", "--from=weights /model /opt/model"))
    code_at = order.index(("COPY", "src src"))
    environment_at = next(n for n, (_, said) in enumerate(order) if "uv pip sync" in said)
    assert environment_at < weights_at < code_at
    (set_,) = [each.said for each in of("baked", "ENV") if "PARAKEET_MODEL" in each.said]
    assert "PARAKEET_MODEL=/opt/model" in set_


def test_the_model_that_is_baked_is_the_default_one_with_every_file_that_is_read() -> None:
    assert arguments()["MODEL"] == Settings().model
    (download,) = [run for run in runs() if "hf download" in run]
    included = re.findall(r"--include (\S+)", download)
    assert sorted(included) == sorted([*weights._SAFETENSORS, *weights._EXTRACTOR])
    source = (ROOT / "src" / "parakeet_worker" / "weights.py").read_text()
    assert f"at revision {arguments()['REVISION']}" in source


def test_what_is_baked_does_not_run_as_root_and_what_writes_to_a_volume_does() -> None:
    assert [each.said for each in of("baked", "USER")] == ["worker"]
    assert of("volume", "USER") == []


def let_in(path: str) -> bool:
    """Whether .dockerignore leaves a file to the build; the last rule that fits counts."""
    inside = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!")
        if rule and not rule.startswith("#") and any(fits(pattern, path)):
            inside = rule.startswith("!")
    return inside


def fits(pattern: str, path: str) -> Iterator[bool]:
    """For a path and each folder above it, whether the pattern names it."""
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        above = parts[:length]
        if pattern.startswith("**/"):
            yield fnmatchcase(above[-1], pattern.removeprefix("**/"))
        else:
            yield len(above) == pattern.count("/") + 1 and fnmatchcase("/".join(above), pattern)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", ".cache/uv/bin/uv", "samples/en.ogg", "tests/speech.py",
        "Dockerfile", ".runpod/hub.json", "src/parakeet_worker/__pycache__/audio.cpython-312.pyc",
        "src/parakeet_worker/audio.pyc", ".env", "test_input.json",
    ],
)  # fmt: skip
def test_the_build_is_not_given_what_it_has_no_use_for(path: str) -> None:
    assert not let_in(path)


def test_the_build_is_given_all_that_it_copies() -> None:
    copies = [
        each for target in (*TARGETS, "demo") for each in of(target, "COPY")
        if not each.said.startswith("--from")
    ]  # fmt: skip
    sources = {source for each in copies for source in each.said.split()[:-1]}
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert let_in(source), source
    assert let_in("src/parakeet_worker/checkpoints/demo.nemo")
    assert let_in("requirements/profiles.toml")


def test_nothing_asks_for_the_installed_package_which_a_volume_does_not_have() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert len(sources) > 50
    named = re.compile(rf"""(version|distribution|requires|files)\(["']{project["name"]}["']""")
    assert [path.name for path in sources if named.search(path.read_text())] == []


async def test_the_build_fetches_the_model_whole_from_a_hub_and_nothing_beside_it(
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
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert fetched == {name: said for name, said in hub.files.items() if name != "README.md"}
