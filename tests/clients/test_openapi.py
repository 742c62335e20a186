"""TypeScript types generated from the OpenAPI document compile, with a use of them."""

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from cases import HERE

from http_server import Process

MODULES = HERE / "node_modules"


def node(tmp_path: Path, program: str, *arguments: str) -> str:
    command = ["node", str(MODULES / program), *arguments]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def types(tmp_path: Path, strict_server: Process, needs_node: None) -> Path:  # noqa: ARG001
    """A folder with the generated types, and a use of them."""
    document = httpx.get(f"{strict_server.url}/openapi.json", timeout=60).text
    (tmp_path / "openapi.json").write_text(document)
    # Fields with a default may be absent from a request.
    node(tmp_path, "openapi-typescript/bin/cli.js", "openapi.json", "--output", "api.ts",
         "--default-non-nullable=false")  # fmt: skip
    for name in ("use_types.ts", "tsconfig.json", "package.json"):
        shutil.copy(HERE / name, tmp_path)
    return tmp_path


def test_generated_types_compile_with_a_use_of_them(types: Path) -> None:
    node(types, "typescript/bin/tsc", "--project", ".")


def test_the_compiler_finds_a_wrong_use(types: Path) -> None:
    used = types / "use_types.ts"
    used.write_text(used.read_text().replace("// @ts-expect-error: no such format\n", ""))
    with pytest.raises(AssertionError, match='"mp3"'):
        node(types, "typescript/bin/tsc", "--project", ".")
