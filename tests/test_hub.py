"""The Hub's two files, compared with its publishing guide and with the worker."""

import json
import re
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from parakeet_worker.options import Format
from parakeet_worker.settings import Settings, variable
from parakeet_worker.wire import native
from speech import named

ROOT = Path(__file__).resolve().parent.parent
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
FIELDS = {variable(field): field for field in Settings.model_fields}
CUDA = re.compile(r"^(\d+)\.(\d+)$")

Text = Annotated[str, Field(min_length=1)]
Version = Annotated[str, Field(pattern=CUDA.pattern)]


class Documented(BaseModel):
    """A table of the guide; other fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Option(Documented):
    label: Text
    value: str


class Input(Documented):
    name: Text
    type: Literal["string", "number", "boolean", "huggingface"]
    description: Annotated[str, Field(min_length=1, max_length=60)]
    default: str | int | float | bool | None = None
    required: bool = False
    advanced: bool = False
    options: list[Option] | None = None
    min: int | float | None = None
    max: int | float | None = None
    trueValue: str | None = None  # noqa: N815  # the guide's spelling
    falseValue: str | None = None  # noqa: N815


class Fixed(Documented):
    key: Text
    value: str


class UserInput(Documented):
    key: Text
    input: Input


class Preset(Documented):
    name: Text
    defaults: dict[str, str | int | float | bool]


class HubConfig(Documented):
    runsOn: Literal["GPU"]  # noqa: N815
    endpointType: Literal["LB"] | None = None  # noqa: N815
    containerDiskInGb: Annotated[int, Field(gt=0)]  # noqa: N815
    gpuCount: Literal[1]  # noqa: N815
    gpuIds: Text  # noqa: N815
    allowedCudaVersions: list[Version]  # noqa: N815
    presets: list[Preset]
    env: list[Fixed | UserInput]


class Hub(Documented):
    title: Text
    description: Annotated[str, Field(min_length=1, max_length=120)]
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    iconUrl: str | None = None  # noqa: N815
    config: HubConfig


class HubTest(Documented):
    name: Text
    input: dict[str, Any]
    timeout: Annotated[int, Field(gt=0)]


class HubTestConfig(Documented):
    gpuTypeId: Text  # noqa: N815
    gpuCount: Literal[1]  # noqa: N815
    env: list[Fixed]
    allowedCudaVersions: list[Version]  # noqa: N815


class HubTests(Documented):
    tests: Annotated[list[HubTest], Field(min_length=1)]
    config: HubTestConfig


def test_both_files_have_the_documented_fields_and_no_others() -> None:
    Hub.model_validate(HUB)
    HubTests.model_validate(TESTS)


def test_files_required_by_the_hub_exist() -> None:
    for name in ("handler.py", "Dockerfile", "README.md", ".runpod/README.md"):
        assert (ROOT / name).is_file()


def test_the_page_of_the_hub_names_fields_of_a_request_and_all_formats() -> None:
    page = (ROOT / ".runpod" / "README.md").read_text()
    rows = dict(re.findall(r"^\| (`.+?`) \| (.+) \|$", page, re.MULTILINE))
    named_ = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named_
    assert named_ <= {"inputs", *native._RequestWire.model_fields}
    assert re.findall(r"`(\w+)`", rows["`format`"]) == list(get_args(Format))


def test_cuda_versions_are_contiguous_from_that_of_the_image() -> None:
    base = re.search(r"nvidia/cuda:(\d+\.\d+)", (ROOT / "Dockerfile").read_text())
    assert base is not None
    versions = HUB["config"]["allowedCudaVersions"]
    assert versions[0] == base[1]
    assert TESTS["config"]["allowedCudaVersions"] == versions
    pairs = [tuple(map(int, version.split("."))) for version in versions]
    for (major, minor), after in pairwise(pairs):
        assert after in ((major, minor + 1), (major + 1, 0))


def test_gpus_are_known_pools() -> None:
    pools = {
        "AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO",
        "HOPPER_141",
    }  # fmt: skip
    named_ = HUB["config"]["gpuIds"].split(",")
    assert set(named_) <= pools
    assert len(named_) > 1, "one pool alone may have no machine free"


@pytest.mark.parametrize("entry", HUB["config"]["env"], ids=lambda entry: entry["key"])
def test_each_input_is_a_setting_with_its_default(entry: dict[str, Any]) -> None:
    field, options = FIELDS[entry["key"]], entry["input"]
    default = Settings.model_fields[field].default
    assert options["default"] == ("" if default is None else default)
    for bound in ("min", "max", "default"):
        if options.get(bound, "") != "":
            Settings.from_environment({entry["key"]: str(options[bound])})
    if "options" in options:
        choices = get_args(Settings.model_fields[field].annotation)
        assert {option["value"] for option in options["options"]} <= set(choices)


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda preset: preset["name"])
def test_presets_set_inputs_to_valid_values(preset: dict[str, Any]) -> None:
    assert set(preset["defaults"]) <= {entry["key"] for entry in HUB["config"]["env"]}
    values = {key: str(value) for key, value in preset["defaults"].items()}
    settings = Settings.from_environment(values)
    assert settings.model_dump(include={FIELDS[key] for key in values}) == {
        FIELDS[key]: TypeAdapter(Settings.model_fields[FIELDS[key]].annotation).validate_python(
            value
        )
        for key, value in preset["defaults"].items()
    }


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_each_hub_test_is_a_valid_request_with_a_sample(test: dict[str, Any]) -> None:
    native.parse(test["input"])
    assert b64decode(test["input"]["audio_base64"]) == named("da").path.read_bytes()
