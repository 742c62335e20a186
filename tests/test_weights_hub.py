"""A model from the hub: by revision, verified, by one of many, and never again asked for."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from hub import MODEL, Hub
from loopback import WebServer, stalls
from parakeet_worker import weights, worker
from parakeet_worker.errors import InvalidSetting

_FIND = """
import json, sys
import stamina
from parakeet_worker import weights
stamina.set_testing(True, attempts=weights._ATTEMPTS)  # as often, without the waits between
from parakeet_worker.errors import ParakeetError
model, revision = (*sys.argv[1:], None)[:2]
try:
    print(weights.find(model, revision=revision))
except ParakeetError as error:
    print(json.dumps(error.document()))
"""


# A volume without flock: the hub's library takes the file itself for the lock.
_NO_FLOCK = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = flock
"""
_IN_TIME = _FIND.replace("revision=revision", "timeout_seconds=2.0")


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    async with WebServer() as server:
        made = Hub(server)
        made.open()
        yield made


async def starting(
    cache: Path, hub: Hub | None, *arguments: str, program: str = _FIND, **variables: str
):
    """A fresh process: the hub's library reads its variables once."""
    address = hub.server.address if hub else "http://127.0.0.1:9"
    environment = {
        **os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **worker.VARIABLES, **variables,
    }  # fmt: skip
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def find(
    cache: Path, hub: Hub | None, *arguments: str, program: str = _FIND, **variables: str
) -> str:
    process = await starting(cache, hub, *(arguments or (MODEL,)), program=program, **variables)
    output, told = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, told.decode()
    return output.decode().strip()


def code(said: str) -> str:
    return str(json.loads(said)["code"])


def whole(found: str, hub: Hub) -> Path:
    """The snapshot of the hub's commit, every file as the hub has it and nothing half beside it."""
    snapshot = Path(found)
    assert snapshot.name == hub.commit
    for name in ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (snapshot / name).read_bytes() == hub.files[name]
    assert not list(snapshot.parent.parent.glob("blobs/*.incomplete"))
    return snapshot


async def test_what_is_fetched_is_the_checkpoint_alone_and_found_again_without_a_hub(hub, tmp_path):
    snapshot = whole(await find(tmp_path, hub), hub)
    assert not (snapshot / "README.md").exists()
    asked = len(hub.server.asked)
    assert await find(tmp_path, hub) == str(snapshot)
    assert len(hub.server.asked) == asked
    assert await find(tmp_path, None) == str(snapshot)


@pytest.mark.parametrize("arguments", [(f"{MODEL}@v2",), (MODEL, "v2"), (f"{MODEL}@v2", "v2")])
async def test_a_revision_is_fetched_and_kept_apart_from_main(hub, tmp_path, arguments):
    first = whole(await find(tmp_path, hub), hub)
    hub.commit, hub.files["config.json"] = "b" * 40, b'{"a": 2}'
    hub.open(("v2",))
    second = whole(await find(tmp_path, hub, *arguments), hub)
    assert second != first
    assert await find(tmp_path, None, *arguments) == str(second)
    assert await find(tmp_path, None, f"{MODEL}@{hub.commit}") == str(second)
    assert await find(tmp_path, None) == str(first)


def test_two_revisions_that_differ_are_refused():
    with pytest.raises(InvalidSetting, match="PARAKEET_MODEL_REVISION"):
        weights.find(f"{MODEL}@v2", revision="v3")


async def test_downloads_that_break_off_are_taken_up_where_they_ended(hub, tmp_path):
    hub.files["model.safetensors"] = os.urandom(48 << 20)  # the library takes 10 MiB at a time
    hub.cut, hub.failing = 2, 2
    whole(await find(tmp_path, hub), hub)
    starts = [int(each.removeprefix("bytes=").partition("-")[0]) for each in hub.ranges]
    assert 0 < starts[0] < starts[1]


async def test_a_file_of_another_content_is_thrown_away_and_fetched_again(hub, tmp_path):
    hub.spoilt = 1
    whole(await find(tmp_path, hub), hub)
    assert hub.spoilt == 0


async def test_a_hub_that_keeps_handing_out_something_else_is_told(hub, tmp_path):
    hub.spoilt = 100
    said = await find(tmp_path, hub)
    assert code(said) == "weights_corrupt"
    assert not list(tmp_path.rglob("model.safetensors"))


async def test_a_hub_that_is_down_or_has_no_such_revision_is_told(hub, tmp_path):
    assert code(await find(tmp_path, None)) == "weights_missing"
    said = await find(tmp_path, hub, f"{MODEL}@nowhere")
    assert code(said) == "weights_missing"
    assert "nowhere" in said


async def test_a_cache_that_others_filled_is_taken_without_a_hub_but_not_if_corrupt(hub, tmp_path):
    snapshot = whole(await find(tmp_path, hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    assert await find(tmp_path, None) == str(snapshot)
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(b"!" + blob.read_bytes()[1:])
    assert code(await find(tmp_path, None)) == "weights_corrupt"


async def test_a_file_that_went_missing_or_was_cut_since_is_fetched_again(hub, tmp_path):
    snapshot = whole(await find(tmp_path, hub), hub)
    (snapshot / "tokenizer.json").unlink()
    whole(await find(tmp_path, hub), hub)
    os.truncate((snapshot / "model.safetensors").resolve(), 10)
    whole(await find(tmp_path, hub), hub)


async def test_of_many_at_once_one_fetches_and_who_is_killed_is_followed(hub, tmp_path):
    started = [await starting(tmp_path, hub, MODEL) for _ in range(4)]
    await asyncio.wait_for(hub.server.reached.wait(), 60)
    started[0].send_signal(signal.SIGKILL)
    ended = [(each, *(await each.communicate())) for each in started]
    found = {output.decode().strip() for each, output, _ in ended[1:]}
    assert len(found) == 1
    whole(found.pop(), hub)
    gets = [path for path in hub.server.asked if path.startswith("/api/models")]
    assert len(gets) <= 2


async def test_runpods_cache_comes_first_and_is_not_written_to(hub, tmp_path, monkeypatch):
    snapshot = whole(await find(tmp_path, hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(weights, "_RUNPOD_CACHE", tmp_path)
    assert weights.find(MODEL) == snapshot
    assert weights.find(f"{MODEL}@{hub.commit}") == snapshot
    assert sorted(tmp_path.rglob("*")) == before


# What the hub's libraries raise


async def test_where_xets_host_is_closed_plain_http_is_taken(hub, tmp_path):
    hub.cas = "http://127.0.0.1:9"
    whole(await find(tmp_path, hub, HF_HUB_DISABLE_XET="0"), hub)
    assert "/xet-token" in hub.server.asked or any("xet-read" in each for each in hub.server.asked)


async def test_another_servers_page_is_no_model_and_a_cache_is_taken_instead(hub, tmp_path):
    hub.gone = True
    said = await find(tmp_path / "empty", hub)
    assert code(said) == "weights_missing"
    assert "\\n" not in said
    hub.gone = False
    snapshot = whole(await find(tmp_path / "filled", hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    hub.gone = True
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
async def test_variables_of_the_network_end_in_one_line_with_a_code(hub, tmp_path, variables):
    said = await find(tmp_path, hub, **variables)
    if not said.startswith("{"):
        whole(said, hub)  # the variable does not matter to this library
        return
    assert code(said) == "weights_missing"
    assert "\\n" not in said


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_many_lines_is_told_in_one(hub, tmp_path, status):
    hub.failing, hub.failing_status = 1000, status
    hub.failing_headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask\tfor access"}
    said = await find(tmp_path, hub)
    assert code(said) == "weights_missing"
    assert "\\n" not in said


async def test_the_hub_is_asked_again_when_it_says(hub, tmp_path):
    hub.failing, hub.failing_status, hub.failing_headers = 1, 429, {"Retry-After": "1"}
    whole(await find(tmp_path, hub), hub)


# Caches that are not whole


async def test_a_link_whose_content_is_gone_is_no_checkpoint(hub, tmp_path, monkeypatch):
    folder = tmp_path / f"models--{MODEL.replace('/', '--')}"
    snapshot = folder / "snapshots" / hub.commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(hub.commit)
    (snapshot / "tiny.nemo").symlink_to(folder / "blobs" / "gone")
    assert code(await find(tmp_path, None)) == "weights_missing"
    monkeypatch.setattr(weights, "_RUNPOD_CACHE", tmp_path)
    assert not list(filter(None, (weights._checkpoint_in(one, ["nemo"]) for one in [snapshot])))


def made_whole(path: Path) -> bytes:
    """A safetensors file with one tensor."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(100)
    path.write_bytes(content)
    return content


def test_the_length_of_a_checkpoint_is_known_without_reading_it(tmp_path):
    path = tmp_path / "model.safetensors"
    content = made_whole(path)
    assert weights._is_whole(tmp_path)
    for cut in (0, 4, 20, len(content) - 1):
        path.write_bytes(content[:cut])
        assert not weights._is_whole(tmp_path)
    demo = weights.find("demo")
    assert weights._is_whole(demo)
    for share in (0.0, 0.3, 0.9):
        short = tmp_path / "short.nemo"
        short.write_bytes(demo.read_bytes()[: int(share * demo.stat().st_size)])
        assert not weights._is_whole(short)


async def test_a_blob_cut_short_in_runpods_cache_is_passed_over(hub, tmp_path):
    snapshot = tmp_path / "runpod" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / "b"
    snapshot.mkdir(parents=True)
    content = made_whole(snapshot / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    chosen = (
        f"from pathlib import Path\nweights._RUNPOD_CACHE = Path({str(tmp_path / 'runpod')!r})\n"
    )
    program = _FIND.replace("from parakeet_worker.errors", f"{chosen}from parakeet_worker.errors")
    assert await find(tmp_path / "cache", hub, program=program) == str(snapshot)
    (snapshot / "model.safetensors").write_bytes(content[:-1])
    whole(await find(tmp_path / "cache", hub, program=program), hub)


# A disk without room


async def test_a_full_disk_with_a_whole_model_is_used_and_waits_for_nobody(hub, small_disk):
    snapshot = whole(await find(small_disk, hub), hub)
    shutil.rmtree(snapshot.parent.parent / ".parakeet")
    fill(small_disk)
    started = time.monotonic()
    assert await find(small_disk, hub) == str(snapshot)
    assert await find(small_disk, None) == str(snapshot)
    assert time.monotonic() - started < 2 * weights._PATIENCE_SECONDS


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
        pytest.skip("this machine lets no test mount a file system")
    yield folder
    subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


async def test_a_lock_that_a_killed_process_left_on_a_volume_without_flock_is_cleared(
    hub, tmp_path
):
    locks = tmp_path / ".locks" / f"models--{MODEL.replace('/', '--')}"
    locks.mkdir(parents=True)
    for content in hub.files.values():
        for digest in (hashlib.sha256(content), git_digest(content)):
            (locks / f"{digest.hexdigest()}.lock").touch()
    whole(await find(tmp_path, hub, program=_NO_FLOCK + _FIND), hub)


def git_digest(content: bytes) -> "hashlib._Hash":
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False)


async def test_a_hub_that_does_not_get_on_is_given_up_in_time(hub, tmp_path):
    hub.server.at(f"/{MODEL}/resolve/main/model.safetensors", stalls(b""))
    told = json.loads(await find(tmp_path, hub, program=_IN_TIME))
    assert told["code"] == "weights_missing"
    assert "it took longer than 2 s" in told["error"]
