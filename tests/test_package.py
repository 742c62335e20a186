"""The package: base without extras, types for a consumer, one version."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import parakeet_worker
from parakeet_worker.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent

# A finder that refuses all optional modules: the environment of `pip install parakeet-worker`.
BASE_ONLY = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run_base_only(code: str) -> subprocess.CompletedProcess[str]:
    source = BASE_ONLY.format(extras=tuple(EXTRAS)) + code
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )


def test_the_base_has_the_client_and_the_command_line():
    ran = run_base_only(
        "from parakeet_worker import AsyncClient, Client, ParakeetError, Settings\n"
        "from parakeet_worker.entrypoints.cli import main\n"
        "Client('abc123', 'key').close()\n"
        "main(['transcribe', '--help'])\n"
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert "--endpoint" in ran.stdout


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from parakeet_worker import open_model", "engine"),
        ("from parakeet_worker.entrypoints.cli import main; main(['serve'])", "server"),
        ("from parakeet_worker.entrypoints.cli import main; main(['wyoming'])", "wyoming"),
        ("from parakeet_worker.entrypoints.cli import main; main(['doctor'])", "engine"),
        (
            "from parakeet_worker.entrypoints.cli import main\n"
            "main(['transcribe', '--model', 'demo', {sample!r}])",
            "engine",
        ),
        (
            "from parakeet_worker import Client, Settings\n"
            "Client('abc123', 'key', settings=Settings(s3_bucket='b', s3_access_key='a', "
            "s3_secret_key='s'))",
            "s3",
        ),
    ],
)
def test_what_is_missing_names_the_extra(code, extra):
    ran = run_base_only(code.format(sample=str(ROOT / "samples" / "en.ogg")))
    assert ran.returncode != 0
    assert f"pip install 'parakeet-worker[{extra}]'" in ran.stderr
    assert ran.stderr.count("extra_missing") == 1


def test_a_module_that_no_extra_has_stays_an_import_error():
    ran = run_base_only(
        "from parakeet_worker.extras import required\nwith required(): import nonesuch\n"
    )
    assert "ModuleNotFoundError: No module named 'nonesuch'" in ran.stderr


def test_every_optional_module_belongs_to_the_extra_that_installs_it():
    distributions = importlib.metadata.packages_distributions()
    extras = project()["optional-dependencies"]
    names = {
        extra: {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}
        for extra, lines in extras.items()
    }
    aliases = {"botocore": "boto3", "nemo": "nemo-toolkit"}  # comes with boto3; not installed here
    for module, extra in EXTRAS.items():
        distribution = aliases.get(module) or distributions[module][0].lower().replace("_", "-")
        assert distribution in names[extra], module


def test_the_base_needs_nothing_that_an_extra_has():
    base = {re.split(r"[^\w.-]", line)[0] for line in project()["dependencies"]}
    assert base == {"click", "httpx", "pydantic", "stamina", "tqdm"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_one_version_its_licence_and_its_types(wheel):
    assert wheel.name.split("-")[1] == parakeet_worker.__version__
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert "parakeet_worker/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0 AND CC-BY-SA-4.0" in metadata
    for extra in ("audio", "engine", "server", "runpod", "s3", "nemo", "all"):
        assert f"Provides-Extra: {extra}" in metadata


CONSUMER = """
import asyncio
from pathlib import Path
from parakeet_worker import (
    Answer, AsyncClient, Client, Model, ParakeetError, Sentence, Settings, TimedToken, Transcript,
    Word, open_model,
)


def from_endpoint(path: Path) -> str:
    with Client("abc123", "key", settings=Settings()) as client:
        answer: Answer = client.transcribe(path, format="srt", channels="separate")
    seconds: float | None = answer.usage.audio_seconds
    return answer.content if seconds else answer.text


async def many(paths: list[Path]) -> list[Answer]:
    async with AsyncClient("http://localhost:8000") as client:
        return await asyncio.gather(*(client.transcribe(path) for path in paths))


def local(path: Path) -> list[tuple[str, float]]:
    with open_model("demo") as model:
        loaded: Model = model
        try:
            transcript: Transcript = loaded.transcribe(path)
        except ParakeetError as error:
            return [(error.code, 0.0)]
    words: tuple[Word, ...] = transcript.words
    tokens: list[TimedToken] = [token for word in words for token in word.tokens]
    sentences: list[Sentence] = list(transcript.sentences)
    print(transcript.to("srt"), len(tokens), len(sentences))
    return [(word.text, word.start_seconds) for word in words]
"""


# The libraries of the extras are absent from a base installation, and take long to check.
MYPY_CONFIGURATION = """
[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,scipy.*,aiohttp.*,boto3.*,botocore.*,mypy_boto3_s3.*]
follow_imports = skip
follow_imports_for_stubs = True
"""


def test_a_consumer_of_the_wheel_type_checks_strictly(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    (tmp_path / "mypy.ini").write_text(MYPY_CONFIGURATION)
    # The wheel's copy in place of the sources: what has no py.typed has no types here.
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--config-file", "mypy.ini",
         "consumer.py"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout == "Success: no issues found in 1 source file\n"
