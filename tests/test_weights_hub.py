"""Models from the hub: by revision, verified, downloaded once, and paths again offline."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from confined import without_flock
from hub import MODEL, Hub
from loopback import WebServer, stalls
from parakeet_worker import weights, worker
from parakeet_worker.errors import InvalidSetting
from parakeet_worker.weights.checkpoints import checkpoint_in, is_complete
from parakeet_worker.weights.hub import LEASE_SECONDS

_FIND = """
import json, sys
from pathlib import Path
import stamina
from parakeet_worker import weights
from parakeet_worker.weights.hub import ATTEMPTS
stamina.set_testing(True, attempts=ATTEMPTS)  # without delays
from parakeet_worker.errors import ParakeetError
model, revision = (*sys.argv[1:], None)[:2]
try:
    print(weights.find(model, revision=revision))
except ParakeetError as error:
    print(json.dumps(error.document()))
"""
_WITH_TIMEOUT = _FIND.replace("revision=revision", "timeout_seconds=2.0")


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    async with WebServer() as server:
        made = Hub(server)
        made.open()
        yield made


async def starting(
    cache: Path,
    hub: Hub | None,
    *arguments: str,
    program: str = _FIND,
    prefix: Sequence[str] = (),
    **variables: str,
):
    """Start a new process, since the hub's library reads its variables at import."""
    address = hub.server.address if hub else "http://127.0.0.1:9"
    environment = {
        **os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **worker.VARIABLES, **variables,
    }  # fmt: skip
    return await asyncio.create_subprocess_exec(
        *prefix, sys.executable, "-c", program, *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def find(
    cache: Path,
    hub: Hub | None,
    *arguments: str,
    program: str = _FIND,
    prefix: Sequence[str] = (),
    **variables: str,
) -> str:
    process = await starting(
        cache, hub, *(arguments or (MODEL,)), program=program, prefix=prefix, **variables
    )
    output, log = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, log.decode()
    return output.decode().strip()


def code(output: str) -> str:
    return str(json.loads(output)["code"])


def complete(output: str, hub: Hub) -> Path:
    """The snapshot of the hub's commit, with all files identical and no partial ones."""
    snapshot = Path(output)
    assert snapshot.name == hub.commit
    for name in ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (snapshot / name).read_bytes() == hub.files[name]
    assert not list(snapshot.parent.parent.glob("blobs/*.incomplete"))
    return snapshot


async def test_only_checkpoint_files_are_downloaded_and_found_again_offline(hub, tmp_path):
    snapshot = complete(await find(tmp_path, hub), hub)
    assert not (snapshot / "README.md").exists()
    requests = len(hub.server.received)
    assert await find(tmp_path, hub) == str(snapshot)
    assert len(hub.server.received) == requests
    assert await find(tmp_path, None) == str(snapshot)


@pytest.mark.parametrize("arguments", [(f"{MODEL}@v2",), (MODEL, "v2"), (f"{MODEL}@v2", "v2")])
async def test_a_revision_is_downloaded_next_to_main(hub, tmp_path, arguments):
    first = complete(await find(tmp_path, hub), hub)
    hub.commit, hub.files["config.json"] = "b" * 40, b'{"a": 2}'
    hub.open(("v2",))
    second = complete(await find(tmp_path, hub, *arguments), hub)
    assert second != first
    assert await find(tmp_path, None, *arguments) == str(second)
    assert await find(tmp_path, None, f"{MODEL}@{hub.commit}") == str(second)
    assert await find(tmp_path, None) == str(first)


def test_contradicting_revisions_are_rejected():
    with pytest.raises(InvalidSetting, match="PARAKEET_MODEL_REVISION"):
        weights.find(f"{MODEL}@v2", revision="v3")


async def test_interrupted_downloads_are_resumed(hub, tmp_path):
    hub.files["model.safetensors"] = os.urandom(48 << 20)  # the library reads chunks of 10 MiB
    hub.cut, hub.failing = 2, 2
    complete(await find(tmp_path, hub), hub)
    starts = [int(each.removeprefix("bytes=").partition("-")[0]) for each in hub.ranges]
    assert 0 < starts[0] < starts[1]


async def test_a_file_with_another_digest_is_downloaded_again(hub, tmp_path):
    hub.corrupted = 1
    complete(await find(tmp_path, hub), hub)
    assert hub.corrupted == 0


async def test_a_hub_that_always_sends_other_content_is_an_error(hub, tmp_path):
    hub.corrupted = 100
    output = await find(tmp_path, hub)
    assert code(output) == "weights_corrupt"
    assert not list(tmp_path.rglob("model.safetensors"))


async def test_an_unreachable_hub_or_unknown_revision_is_an_error(hub, tmp_path):
    assert code(await find(tmp_path, None)) == "weights_missing"
    output = await find(tmp_path, hub, f"{MODEL}@unknown")
    assert code(output) == "weights_missing"
    assert "unknown" in output


async def test_a_cache_of_another_program_is_used_offline_unless_corrupt(hub, tmp_path):
    snapshot = complete(await find(tmp_path, hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    assert await find(tmp_path, None) == str(snapshot)
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(b"!" + blob.read_bytes()[1:])
    assert code(await find(tmp_path, None)) == "weights_corrupt"


async def test_a_missing_or_truncated_file_is_downloaded_again(hub, tmp_path):
    snapshot = complete(await find(tmp_path, hub), hub)
    (snapshot / "tokenizer.json").unlink()
    complete(await find(tmp_path, hub), hub)
    os.truncate((snapshot / "model.safetensors").resolve(), 10)
    complete(await find(tmp_path, hub), hub)


async def test_of_several_processes_one_downloads_and_a_killed_one_is_replaced(hub, tmp_path):
    started = [await starting(tmp_path, hub, MODEL) for _ in range(4)]
    await asyncio.wait_for(hub.server.reached.wait(), 60)
    started[0].send_signal(signal.SIGKILL)
    ended = [(each, *(await each.communicate())) for each in started]
    result = {output.decode().strip() for each, output, _ in ended[1:]}
    assert len(result) == 1
    complete(result.pop(), hub)
    gets = [path for path in hub.server.received if path.startswith("/api/models")]
    assert len(gets) <= 2


async def test_runpods_cache_is_searched_first_and_not_written_to(hub, tmp_path):
    snapshot = complete(await find(tmp_path, hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    before = sorted(tmp_path.rglob("*"))
    assert weights.find(MODEL, platform_cache=tmp_path) == snapshot
    assert weights.find(f"{MODEL}@{hub.commit}", platform_cache=tmp_path) == snapshot
    assert sorted(tmp_path.rglob("*")) == before


# Errors of the hub's libraries


async def test_plain_http_is_the_fallback_if_the_xet_host_is_unreachable(hub, tmp_path):
    hub.cas = "http://127.0.0.1:9"
    complete(await find(tmp_path, hub, HF_HUB_DISABLE_XET="0"), hub)
    assert "/xet-token" in hub.server.received or any(
        "xet-read" in each for each in hub.server.received
    )


async def test_a_captive_portal_is_an_error_unless_the_model_is_cached(hub, tmp_path):
    hub.captive_portal = True
    output = await find(tmp_path / "empty", hub)
    assert code(output) == "weights_missing"
    assert "\\n" not in output
    hub.captive_portal = False
    snapshot = complete(await find(tmp_path / "filled", hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    hub.captive_portal = True
    assert await find(tmp_path / "filled", hub) == str(snapshot)


@pytest.mark.parametrize(
    "variables",
    [
        {"SSL_CERT_FILE": "/missing/ca.pem"},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        {"ALL_PROXY": "socks://127.0.0.1:9"},
        {"NO_PROXY": "::1,fd00::/8"},
    ],
    ids=["certificates", "socks5", "socks", "no proxy"],
)
async def test_unusable_network_variables_give_one_line_with_a_code(hub, tmp_path, variables):
    output = await find(tmp_path, hub, **variables)
    if not output.startswith("{"):
        complete(output, hub)  # this library ignores the variable
        return
    assert code(output) == "weights_missing"
    assert "\\n" not in output


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejection_with_several_lines_is_reported_on_one(hub, tmp_path, status):
    hub.failing, hub.failing_status = 1000, status
    hub.failing_headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "request\taccess"}
    output = await find(tmp_path, hub)
    assert code(output) == "weights_missing"
    assert "\\n" not in output


async def test_retry_after_of_the_hub_is_honoured(hub, tmp_path):
    hub.failing, hub.failing_status, hub.failing_headers = 1, 429, {"Retry-After": "1"}
    complete(await find(tmp_path, hub), hub)


# Incomplete caches


async def test_a_dangling_link_is_not_a_checkpoint(hub, tmp_path):
    folder = tmp_path / f"models--{MODEL.replace('/', '--')}"
    snapshot = folder / "snapshots" / hub.commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(hub.commit)
    (snapshot / "tiny.nemo").symlink_to(folder / "blobs" / "missing")
    assert code(await find(tmp_path, None)) == "weights_missing"
    assert not list(filter(None, (checkpoint_in(one, ["nemo"]) for one in [snapshot])))


def written(path: Path) -> bytes:
    """A safetensors file with one tensor."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(100)
    path.write_bytes(content)
    return content


def test_a_truncated_checkpoint_is_detected_from_its_header(tmp_path):
    path = tmp_path / "model.safetensors"
    content = written(path)
    assert is_complete(tmp_path)
    for cut in (0, 4, 20, len(content) - 1):
        path.write_bytes(content[:cut])
        assert not is_complete(tmp_path)
    demo = weights.find("demo")
    assert is_complete(demo)
    for share in (0.0, 0.3, 0.9):
        short = tmp_path / "short.nemo"
        short.write_bytes(demo.read_bytes()[: int(share * demo.stat().st_size)])
        assert not is_complete(short)


async def test_a_truncated_blob_in_runpods_cache_is_skipped(hub, tmp_path):
    snapshot = tmp_path / "runpod" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / "b"
    snapshot.mkdir(parents=True)
    content = written(snapshot / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    cache = f"platform_cache=Path({str(tmp_path / 'runpod')!r})"
    program = _FIND.replace("revision=revision", cache)
    assert await find(tmp_path / "cache", hub, program=program) == str(snapshot)
    (snapshot / "model.safetensors").write_bytes(content[:-1])
    complete(await find(tmp_path / "cache", hub, program=program), hub)


# A full disk


async def test_a_complete_model_on_a_full_disk_is_used_without_waiting(hub, small_disk):
    snapshot = complete(await find(small_disk, hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    fill(small_disk)
    started = time.monotonic()
    assert await find(small_disk, hub) == str(snapshot)
    assert await find(small_disk, None) == str(snapshot)
    assert time.monotonic() - started < 2 * LEASE_SECONDS


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip("this machine forbids mounts")
    yield folder
    subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


async def test_a_stale_lock_on_a_volume_without_flock_is_removed(hub, tmp_path):
    locks = tmp_path / ".locks" / f"models--{MODEL.replace('/', '--')}"
    locks.mkdir(parents=True)
    for content in hub.files.values():
        for digest in (hashlib.sha256(content), git_digest(content)):
            (locks / f"{digest.hexdigest()}.lock").touch()
    # The hub's library falls back to lock files, which its processes leave behind when killed.
    complete(await find(tmp_path, hub, prefix=without_flock()), hub)


def git_digest(content: bytes) -> "hashlib._Hash":
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False)


async def test_a_stalled_download_ends_at_the_timeout(hub, tmp_path):
    hub.server.at(f"/{MODEL}/resolve/main/model.safetensors", stalls(b""))
    error = json.loads(await find(tmp_path, hub, program=_WITH_TIMEOUT))
    assert error["code"] == "weights_missing"
    assert "no complete download within 2 s" in error["error"]
