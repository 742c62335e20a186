"""Imports follow the order of ARCHITECTURE.md, and types that stages exchange are frozen."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PACKAGE = "parakeet_worker"


def flow() -> tuple[str, ...]:
    """The modules in the order of ARCHITECTURE.md's table, upstream first.

    A folder's row precedes its files; its `__init__` comes after them, and `__main__` last.
    """
    rows = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    paths = [SOURCE / PACKAGE / row.removeprefix(f"src/{PACKAGE}/") for row in rows]
    files = [path for path in paths if path.is_file() and path.name != "__init__.py"]
    names = [_name(path) for path in files]
    folders = [_name(path) for path in paths if (path / "__init__.py").exists()]
    for folder in sorted(folders, key=len, reverse=True):
        places = [
            place
            for place, name in enumerate(names)
            if name.startswith(f"{folder}.") and not name.endswith(".__main__")
        ]
        names.insert(max(places, default=len(names)) + 1, folder)
    return (*names, "")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE / PACKAGE).with_suffix("").parts)


FLOW = flow()

# Modules that may import a third-party library; a name includes the modules below it.
OWNERS = {
    "aiohttp": (
        "remote.url_guard",
        "entrypoints.queue.delivery",
        "entrypoints.queue.loop",
        "outputs.s3",
        "outputs.url",
        "remote.http",
        "remote.objects",
        "sources.s3",
        "sources.url",
    ),
    "boto3": ("remote.s3", "client.store"),
    "botocore": ("checks.doctor", "client.store", "remote.s3"),
    "click": ("entrypoints.cli",),
    "cpuinfo": ("entrypoints.queue.sdk",),
    "httpx": ("client.http_client", "weights"),
    "huggingface_hub": ("weights",),
    "hydra": ("engine.nemo",),
    "imageio_ffmpeg": ("audio.decoding",),
    "mypy_boto3_s3": ("remote.s3",),
    "nemo": ("engine.nemo",),
    "numpy": (
        "audio.all_tracks",
        "audio.child_process",
        "audio.decoding",
        "audio.plain_samples",
        "audio.channels",
        "checks.verify",
        "engine.base",
        "engine.budget",
        "engine.native.rows",
        "engine.native.search",
        "engine.native.staging",
        "engine.tones",
        "ingest.link",
        "recognition.recognizer",
        "recognition.similarities",
        "recognition.speaker_labels",
        "model",
        "recognition.chunks",
        "sources.memory",
        "speakers.clustering",
        "speakers.diarization",
        "speakers.known",
        "speakers.merging",
        "speakers.networks",
        "speakers.recording",
        "speakers.references",
        "speakers.sequence",
        "speakers.windows",
        "vad.base",
        "vad.enhancement",
        "vad.gain",
        "vad.missed",
        "vad.level",
        "vad.periodicity",
        "vad.energy",
        "vad.backends",
        "vad.silero_detector",
        "audio.timeline",
    ),
    "omegaconf": ("engine.nemo",),
    "py3langid": ("language",),
    "pydantic": (
        "formats.reformat",
        "settings",
        "wire.addresses",
        "wire.documents",
        "wire.known_speakers",
        "wire.native",
        "wire.openai",
        "wire.subtitles",
        "wire.validation",
    ),
    "safetensors": ("engine.native.checkpoint", "engine.native.prepacked"),
    "prometheus_client": ("entrypoints.http.metrics",),
    "python_multipart": ("entrypoints.http.uploads",),
    "runpod": ("entrypoints.queue.local_api", "entrypoints.queue.sdk"),
    "stamina": (
        "client.clients",
        "client.http_client",
        "entrypoints.queue.delivery",
        "remote.retries",
        "weights",
    ),
    "scipy": ("speakers.known",),
    "starlette": (
        "entrypoints.http.access",
        "entrypoints.http.connections",
        "entrypoints.http.routes",
        "entrypoints.http.origins",
        "entrypoints.http.responses",
        "entrypoints.http.uploads",
    ),
    "torch": (
        "engine.budget",
        "engine.device",
        "engine.native",
        "engine.nemo",
        "speakers.embedding",
        "speakers.networks",
        "speakers.pitch",
        "speakers.segmentation",
        "speakers.weights",
        "vad.backends",
        "vad.silero",
    ),
    "triton": ("engine.native.kernels",),
    "tqdm": ("entrypoints.cli",),
    "uvicorn": ("entrypoints.http.connections",),
    "wyoming": ("entrypoints.wyoming",),
    "yaml": ("engine.native.checkpoint", "engine.nemo"),
    "yarl": ("remote.url_guard", "remote.objects", "sources.url"),
}

# What takes long to import is imported where it is used, in the middle of a function.
LAZY = (
    "boto3",
    "botocore",
    "huggingface_hub",
    "imageio_ffmpeg",
    "nemo",
    "py3langid",
    "runpod",
    "torch",
    "yaml",
)

# Stages that know neither the wire nor a foreign document, and so need no dict.
INNER = (
    "language",
    "engine.base",
    "audio.decoding",
    "vad.base",
    "vad.energy",
    "vad.silero",
    "vad.backends",
    "vad.silero_detector",
    "recognition.chunks",
    "batcher",
    "recognition.transcript",
    "formats.cues",
    "engine.tones",
)


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name in `FLOW`."""
    result = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        result[name] = ast.parse(path.read_text())
    return result


def imported(tree: ast.Module) -> Iterator[str]:
    """What a module imports anywhere in it, by its full dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if own(inner) in modules() else str(node.module)


def own(name: str) -> str | None:
    """The name in `FLOW` of one of our modules."""
    if name == PACKAGE:
        return ""
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else None


def mentions(tree: ast.Module, *names: str) -> bool:
    """Whether a name or an attribute of that name is in the code."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.alias) and node.name in names)
        for node in ast.walk(tree)
    )


def test_every_module_has_its_place_in_the_map():
    assert len(set(FLOW)) == len(FLOW)
    assert sorted(FLOW) == sorted(modules())


def test_imports_point_upstream():
    place = {name: number for number, name in enumerate(FLOW)}
    downstream = [
        f"{name} imports {used}"
        for name, tree in modules().items()
        for used in map(own, imported(tree))
        if used is not None and place[used] >= place[name]
    ]
    assert downstream == []


def test_the_graph_has_edges():
    edges = [own(module) for tree in modules().values() for module in imported(tree)]
    assert len([edge for edge in edges if edge]) > 100
    assert {"sources", "batcher", "recognition.recognizer"} <= {
        own(name) for name in imported(modules()["pipeline"])
    }


def test_foreign_libraries_are_imported_by_their_owners_only():
    others = [
        f"{name} imports {library}"
        for name, tree in modules().items()
        for library in sorted({module.partition(".")[0] for module in imported(tree)})
        if library not in (PACKAGE, *sys.stdlib_module_names)
        and not any(f"{name}.".startswith(f"{owner}.") for owner in OWNERS[library])
    ]
    assert others == []


def test_every_owner_imports_what_it_owns():
    for library, owners in OWNERS.items():
        for owner in owners:
            below = [name for name in modules() if name == owner or name.startswith(f"{owner}.")]
            libraries = {
                module.partition(".")[0] for name in below for module in imported(modules()[name])
            }
            assert library in libraries, f"{owner} does not import {library}"


def loaded_after(*names: str) -> set[str]:
    """The top-level modules that a fresh Python has after these imports."""
    program = f"import json, sys\nimport {', '.join(names)}\nprint(json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return {name.partition(".")[0] for name in json.loads(ran.stdout)}


def test_importing_the_package_loads_no_library():
    loaded = loaded_after(PACKAGE)
    assert PACKAGE in loaded
    assert not loaded & set(OWNERS)


def test_importing_an_entry_point_loads_no_heavy_library():
    entry_points = ("model", "client.clients", "entrypoints.cli", "entrypoints.queue.main")
    loaded = loaded_after(*(f"{PACKAGE}.{name}" for name in entry_points))
    assert {"aiohttp", "click", "numpy", "pydantic"} <= loaded
    assert not loaded & set(LAZY)


def test_the_environment_is_read_by_entry_points_only():
    readers = [
        name
        for name, tree in modules().items()
        if mentions(tree, "environ", "environb", "getenv", "getenvb", "os.environ", "load_dotenv")
    ]
    assert readers
    # `children` passes it to ffmpeg; `model` sets a missing HOME, which libraries need.
    others = [name for name in readers if not name.startswith("entrypoints.")]
    assert sorted(others) == ["audio.child_process", "model"]


def test_logging_is_configured_by_entry_points_only():
    configuring = [name for name, tree in modules().items() if mentions(tree, "basicConfig")]
    assert configuring
    assert [name for name in configuring if not name.startswith("entrypoints.")] == []


def test_handler_bootstrap_and_volume_import_the_standard_library_only():
    handler = ast.parse((ROOT / "handler.py").read_text())
    seen = [
        handler,
        *(tree for name, tree in modules().items() if name.startswith(("bootstrap", "volume"))),
    ]
    assert len(seen) > 5
    used = {module for tree in seen for module in imported(tree)}
    assert {name.partition(".")[0] for name in used} <= {*sys.stdlib_module_names, PACKAGE}
    below = {own(name) for name in used} - {None}
    assert {name.partition(".")[0] for name in below} <= {"bootstrap", "errors", "volume"}


def dataclasses_of(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Every dataclass with its decorator."""
    for node in ast.walk(tree):
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else []:
            named = decorator.func if isinstance(decorator, ast.Call) else decorator
            if "dataclass" in ast.unparse(named):
                yield node.name, decorator


def test_every_dataclass_is_frozen_and_has_slots():
    result = [(name, each) for name, tree in modules().items() for each in dataclasses_of(tree)]
    assert len(result) > 15
    for module, (name, decorator) in result:
        options = (
            {option.arg: ast.unparse(option.value) for option in decorator.keywords}
            if isinstance(decorator, ast.Call)
            else {}
        )
        assert options.get("frozen") == options.get("slots") == "True", f"{module}.{name}"


def test_every_wire_and_settings_model_forbids_unknown_fields():
    configured = [
        ast.unparse(node.value)
        for name in ("settings", "wire.validation", "wire.openai")
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "model_config"
    ]
    assert len(configured) == 3
    assert all("extra='forbid'" in options for options in configured)
    bases = {
        (name, node.name)
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "BaseModel" in map(ast.unparse, node.bases)
    }
    assert bases == {
        ("settings", "Settings"), ("wire.validation", "WireModel"), ("wire.openai", "_Wire"),
    }  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_no_dict_crosses_between_the_inner_stages(name):
    functions = [node for node in ast.walk(modules()[name]) if isinstance(node, ast.FunctionDef)]
    assert functions or name == "audio.decoding"
    for function in functions:
        arguments = function.args
        annotations = [
            argument.annotation
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        ]
        for annotation in filter(None, [*annotations, function.returns]):
            assert not {"dict", "Mapping", "Any"} & {
                node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)
            }, function.name


def test_no_module_has_a_name_without_a_subject():
    vague = {"utils", "util", "common", "helpers", "misc", "config", "constants", "core"}
    assert not vague & {part for name in modules() for part in name.split(".")}
