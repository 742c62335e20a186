"""The checklist finds what is wrong, says what to do, and changes nothing."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from parakeet_worker.doctor import Check, examine
from parakeet_worker.entrypoints import cli
from wheelhouse import Site

QUIET = {"PARAKEET_ENGINE": "scripted", "PARAKEET_INDEX_URL": "none", "PATH": os.environ["PATH"]}


def found(variables: dict[str, str], root: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(variables, root)}


def test_a_worker_in_its_image_has_nothing_that_failed(tmp_path):
    checks = found({**QUIET, "PARAKEET_HOME": str(tmp_path / "none")}, tmp_path)
    assert [check.name for check in checks.values() if check.verdict == "failed"] == []
    assert checks["volume"].verdict == "warning"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("settings", {"PARAKEET_MODELL": "demo"}),
        ("settings", {"PARAKEET_LEASE_SECONDS": "soon"}),
        ("model", {"PARAKEET_MODEL": "/nowhere/model.nemo", "PARAKEET_ENGINE": "native"}),
        ("ffmpeg", {"PARAKEET_FFMPEG": "/nowhere/ffmpeg"}),
        ("s3", {"S3_ACCESS_KEY": "AKIA"}),
        ("environment", {"PARAKEET_PROFILE": "nativ"}),
    ],
)
def test_what_is_wrong_is_found_with_a_remedy(tmp_path, name, variables):
    site = Site.at(tmp_path)
    site.volume.mkdir()
    home = {"PARAKEET_HOME": str(site.volume)}
    check = found({**QUIET, **home, **variables}, site.root)[name]
    assert check.verdict == "failed"
    assert check.remedy


def test_a_dead_index_is_a_warning(tmp_path):
    check = found({**QUIET, "PARAKEET_INDEX_URL": "http://127.0.0.1:9/simple"}, tmp_path)["index"]
    assert check.verdict == "warning"
    assert "index_unreachable" in check.found


def test_the_commands_install_on_a_volume_and_find_it_whole(tmp_path, monkeypatch):
    site = Site.at(tmp_path)
    monkeypatch.setattr(cli, "_ROOT", site.root)
    for name, said in {**QUIET, **site.environment}.items():
        if name.startswith("PARAKEET_"):
            monkeypatch.setenv(name, said)
    before = CliRunner().invoke(cli.main, ["doctor"])
    assert before.exit_code == 0
    assert not site.volume.exists()
    installed = CliRunner().invoke(cli.main, ["bootstrap"])
    assert installed.exit_code == 0, installed.output
    (environment,) = site.environments()
    assert installed.stdout.splitlines()[-1] == str(environment / "bin" / "python")
    after = CliRunner().invoke(cli.main, ["doctor"])
    assert after.exit_code == 0, after.output
    assert f"{environment.name}: whole" in after.output
    assert f"name {environment.name}" in after.output
    monkeypatch.setenv("PARAKEET_FFMPEG", "/nowhere/ffmpeg")
    assert CliRunner().invoke(cli.main, ["doctor"]).exit_code == 1
