"""A model from the hub: by revision, verified, by one of many, and never again asked for."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hub import MODEL, Hub
from loopback import WebServer
from parakeet_worker import weights
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


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    async with WebServer() as server:
        made = Hub(server)
        made.open()
        yield made


async def starting(cache: Path, hub: Hub | None, *arguments: str, **variables: str):
    """A fresh process: the hub's library reads its variables once."""
    address = hub.server.address if hub else "http://127.0.0.1:9"
    environment = {
        **os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables,
    }  # fmt: skip
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FIND, *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def find(cache: Path, hub: Hub | None, *arguments: str, **variables: str) -> str:
    process = await starting(cache, hub, *(arguments or (MODEL,)), **variables)
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
