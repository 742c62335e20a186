"""The server's routes over real connections, with the tones engine."""

import asyncio
import json
import re
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

import recordings
from faulty_worker import TOO_HIGH, FaultyEngine, HeldEngine, faulty_pipeline
from http_server import Serving, serving, serving_pipeline, until
from loopback import WebServer, sends, stalls
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.entrypoints.http import access, routes
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.settings import Settings
from test_load import melody
from test_scratch import full_disk

TONE = melody([440, 500])
TEXT = "440. 500."


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running
        assert list(tmp_path.iterdir()) == []


def encoded(content: bytes) -> str:
    return b64encode(content).decode()


async def upload(server: Serving, content: bytes = TONE, **fields: str) -> httpx.Response:
    return await server.client.post("/transcribe", files={"file": content}, data=fields)


def events(text: str) -> list[tuple[str, Any]]:
    """Name and document of every server-sent event."""
    results = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if lines:
            results.append((lines.get("event", ""), json.loads(lines["data"])))
    return results


async def test_a_form_is_answered_as_the_same_job_in_json_is(server: Serving) -> None:
    payload = {"audio_base64": encoded(TONE), "format": "verbose_json", "clip": {"start": 0.5}}
    by_json = await server.client.post("/transcribe", json=payload)
    by_form = await upload(server, format="verbose_json", clip='{"start": 0.5}')
    assert by_json.status_code == by_form.status_code == 200
    assert by_form.json() == by_json.json()
    assert by_form.json()["text"] == "500."


async def test_every_field_of_a_form_reaches_the_request(server: Serving) -> None:
    plain = (await upload(server)).json()
    assert plain == {"text": TEXT}
    timed = (await upload(server, timestamp="true", debug="true")).json()
    assert set(timed) == {"text", "timestamps", "debug"}
    assert set((await upload(server, timestamp="false")).json()) == {"text"}
    tsv = (await upload(server, format="tsv", vad="off", channels="mix", attention="full")).json()
    assert tsv["tsv"].startswith("start\tend\ttext")
    assert (await upload(server, language="")).json() == plain


async def test_a_list_is_answered_in_order_each_with_its_own_error(server: Serving) -> None:
    inputs = [{"audio_base64": encoded(melody([300]))}, {"audio_base64": "?"}, {"format": "text"}]
    answer = await server.client.post("/transcribe", json={"inputs": inputs})
    assert answer.status_code == 200
    assert [one.get("code", one.get("text")) for one in answer.json()] == [
        "300.", "invalid_request", "invalid_request",
    ]  # fmt: skip
    assert await server.metric('parakeet_errors_total{code="invalid_request"}') == 2


async def test_segments_are_streamed_before_the_whole(server: Serving) -> None:
    whole = (await upload(server, format="verbose_json")).json()
    answer = await upload(server, format="verbose_json", stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *segments, (last, document) = events(answer.text)
    assert [name for name, _ in segments] == ["segment", "segment"]
    assert " ".join(segment["text"] for _, segment in segments) == TEXT
    assert [word for _, segment in segments for word in segment["words"]] == whole["words"]
    assert (last, document) == ("result", whole)


async def test_progress_requires_a_stream(server: Serving) -> None:
    reported = events((await upload(server, stream="true", progress="true")).text)
    assert [name for name, _ in reported] == ["segment", "progress"] * 2 + ["result"]
    assert reported[1][1]["audio_seconds"] == reported[0][1]["end"]
    refused = await upload(server, progress="true")
    assert refused.status_code == 400
    assert refused.json()["field"] == "progress"


async def test_an_immediate_stream_failure_is_an_http_error(server: Serving) -> None:
    answer = await upload(server, b"no sound at all", stream="true")
    assert answer.status_code == 415
    assert answer.json()["code"] == "audio_undecodable"


async def test_a_stream_that_fails_later_ends_with_an_error(tmp_path: Path) -> None:
    # No more than 16 segments are at the engine at a time, and no more than 15 in a batch: by the
    # 21st of at least 27 batches the first segment was sent.
    engine = FaultyEngine(0, batches=20)
    async with serving(tmp_path, engine, segment_seconds=2) as server:
        reported = events((await upload(server, melody([440] * 400), stream="true")).text)
        assert reported[0][0] == "segment"
        assert reported[-1][0] == "error"
        assert reported[-1][1]["code"] == "engine_lost"
        assert await server.metric('parakeet_errors_total{code="engine_lost"}') == 1
    assert list(tmp_path.iterdir()) == []


async def test_an_address_is_fetched(tmp_path: Path, web: WebServer) -> None:
    async with serving(tmp_path, allow_private_addresses=True) as server:
        url = web.at("/a.wav", sends(TONE))
        answer = await server.client.post("/transcribe", json={"audio_url": url})
    assert answer.json() == {"text": TEXT}


BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"json": {"audio_base64": "?"}}, 400, "invalid_request", "audio_base64"),
    ({"json": {"audio_base64": encoded(TONE), "formt": "srt"}}, 400, "invalid_request", "formt"),
    ({"json": []}, 400, "invalid_request", "input"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_request",
     "body"),
    ({"content": b"", "headers": {"content-type": "application/json"}}, 400, "invalid_request",
     "body"),
    ({"content": b"{}"}, 400, "invalid_request", "content-type"),
    ({"content": TONE, "headers": {"content-type": "audio/wav"}}, 400, "invalid_request",
     "content-type"),
    ({"data": {"file": "x"}}, 400, "invalid_request", "content-type"),
    ({"files": {"audio": TONE}}, 400, "invalid_request", "audio"),
    ({"files": {"file": TONE}, "data": {"formt": "srt"}}, 400, "invalid_request", "formt"),
    ({"files": {"file": TONE}, "data": {"timestamp": "yes"}}, 400, "invalid_request", "timestamp"),
    ({"files": {"file": TONE}, "data": {"clip": "{"}}, 400, "invalid_request", "clip"),
    ({"files": {"file": TONE}, "data": {"audio_url": "http://a.example/"}}, 400, "invalid_request",
     "audio_url"),
    ({"files": [("file", TONE), ("file", TONE)]}, 400, "invalid_request", "file"),
    ({"files": {"file": TONE}, "data": {"format": ["srt", "vtt"]}}, 400, "invalid_request",
     "format"),
    ({"files": {"file": b""}}, 400, "audio_empty", None),
    ({"files": {"file": b"no sound"}}, 415, "audio_undecodable", None),
    ({"files": {"file": TONE[: len(TONE) // 2]}, "data": {"on_damage": "refuse"}}, 400,
     "audio_truncated", None),
    ({"files": {"file": melody([TOO_HIGH])}}, 500, "out_of_memory", None),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "code", "field"), BAD)
async def test_bad_input_is_refused_by_name(
    server: Serving, sent: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    answer = await server.client.post("/transcribe", **sent)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["error"].startswith(f"{code}: ")
    assert answer.json().get("field") == field
    assert (await upload(server)).json() == {"text": TEXT}


async def test_unknown_routes_and_methods_use_the_error_format_of_their_api(
    server: Serving,
) -> None:
    unknown = await server.client.get("/transcripts")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_route")
    openai = await server.client.post("/v1/chat/completions", json={})
    assert openai.status_code == 404
    assert openai.json()["error"]["code"] == "unknown_route"
    method = await server.client.get("/transcribe")
    assert (method.status_code, method.json()["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"
    assert (await server.client.get("/page/nothing.js")).status_code == 404
    assert (await server.client.get("/page/..%2f..%2ferrors.py")).status_code == 404


async def test_requests_during_loading_get_warming(tmp_path: Path) -> None:
    async with serving(tmp_path, warm=False) as server:
        get = server.client.get
        assert (await get("/ping")).status_code == 204
        assert (await get("/health")).json() == {"status": "warming", "model": "tones"}
        ready = await get("/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "warming")
        refused = await upload(server)
        assert (refused.status_code, refused.json()["code"]) == (503, "warming")
        assert int(refused.headers["retry-after"]) > 0
        assert (await get("/docs")).status_code == 200
        server.service.open(server.pipeline)
        assert (await get("/ping")).status_code == 200
        assert (await server.client.head("/ping")).status_code == 200
        assert (await get("/ready")).json() == {"status": "ready"}
        assert (await upload(server)).json() == {"text": TEXT}


async def test_a_lost_engine_shows_on_every_route(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[bool] = []
    engine = FaultyEngine(0, batches=0)
    async with serving(tmp_path, engine, on_lost=lambda: lost.append(True)) as server:
        first = await upload(server)
        assert (first.status_code, first.json()["code"]) == (500, "engine_lost")
        assert "illegal memory access" not in first.text
        assert "illegal memory access" in caplog.text
        assert lost == [True]
        for path in ("/ping", "/health", "/ready"):
            assert (await server.client.get(path)).status_code == 500, path
        assert (await upload(server)).json()["code"] == "engine_lost"
        assert await server.metric("parakeet_engine_lost") == 1
    assert list(tmp_path.iterdir()) == []


async def test_kernels_that_were_replaced_are_named_in_health_and_figures(tmp_path: Path) -> None:
    engine = FaultyEngine(0)
    engine.reports = (
        KernelReport("glu", 0.001, 0.02),
        KernelReport("attention", 0.4, 0.02),
        KernelReport("lstm", inf, 0.0, "it crashed"),
    )
    async with serving(tmp_path, engine) as server:
        health = (await server.client.get("/health")).json()
        assert health["status"] == "ready", "it serves all the same"
        assert health["kernels"] == {
            "compared": 3,
            "replaced": [
                {
                    "name": "attention", "error": 0.4, "tolerance": 0.02, "reason": None,
                    "replaced": True,
                },
                {
                    "name": "lstm", "error": None, "tolerance": 0.0, "reason": "it crashed",
                    "replaced": True,
                },
            ],
        }  # fmt: skip
        for kernel, fallback in (("glu", 0), ("attention", 1), ("lstm", 1)):
            assert (
                await server.metric(f'parakeet_kernel_fallbacks{{kernel="{kernel}"}}') == fallback
            )


async def test_thirty_two_callers_share_batches_and_get_their_own_words(tmp_path: Path) -> None:
    pitches = list(range(300, 940, 20))
    assert len(pitches) == 32
    # The first batch ends after two chunks share one, so the machine's speed has no influence.
    engine = HeldEngine()

    def shared() -> bool:
        waiting_seconds = pipeline.batcher.load.waiting_seconds
        return engine.held.is_set() and (len(engine.batches[0]) > 1 or waiting_seconds > 1)

    settings = Settings.of({"engine": "tones", "scratch": tmp_path})
    with faulty_pipeline(settings, engine) as pipeline:
        async with serving_pipeline(pipeline, settings) as server:
            calls = [asyncio.create_task(upload(server, melody([hertz]))) for hertz in pitches]
            await until(shared)
            engine.released.set()
            answers = await asyncio.gather(*calls)
            assert [answer.json()["text"] for answer in answers] == [f"{one}." for one in pitches]
            assert await server.metric("parakeet_batch_chunks_total") >= 32
            assert await server.metric("parakeet_batches_total") < 32


async def test_more_requests_than_the_limit_are_shed_and_the_others_answered(
    tmp_path: Path, web: WebServer
) -> None:
    async with serving(tmp_path, allow_private_addresses=True, max_requests=2) as server:
        stalling = web.at("/stalling.wav", stalls(b"RIFF"))
        slow = [
            asyncio.create_task(server.client.post("/transcribe", json={"audio_url": stalling}))
            for _ in range(2)
        ]
        await until(lambda: server.inside == 2)
        shed = await upload(server)
        assert (shed.status_code, shed.json()["code"]) == (503, "busy")
        assert shed.headers["retry-after"] == "5"
        assert (await server.client.get("/ping")).status_code == 200
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await until(lambda: server.inside == 0)
        assert await server.metric('parakeet_recordings_total{outcome="cancelled"}') == 2
        assert (await upload(server)).json() == {"text": TEXT}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_disconnected_client_cancels_its_work(
    tmp_path: Path, children: Any, stream: str
) -> None:
    # So long that ffmpeg and the queue are still busy with it.
    long = recordings.wav(recordings.tone(440, 1200))
    async with serving(tmp_path, segment_seconds=2) as server:
        call = asyncio.create_task(upload(server, long, stream=stream))
        await until(lambda: server.pipeline.batcher.load.batches > 0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: server.inside == 0)
        assert await server.metric('parakeet_recordings_total{outcome="cancelled"}') == 1
        assert server.pipeline.batcher.load.waiting_seconds == 0
        assert children() == []
        assert list(tmp_path.iterdir()) == []


async def test_words_are_rewritten_as_subtitles(server: Serving) -> None:
    words = (await upload(server, format="verbose_json")).json()["words"]
    written = await server.client.post("/render", json={"format": "srt", "words": words})
    assert written.text == (await upload(server, format="srt")).json()["srt"]
    refused = await server.client.post("/render", json={"format": "docx", "words": words})
    assert (refused.status_code, refused.json()["field"]) == (400, "format")


async def test_rewriting_counts_among_the_requests_and_has_readers_of_its_own(
    tmp_path: Path,
) -> None:
    words = {"format": "srt", "words": []}
    head = (
        b"POST /render HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n"
    )
    async with serving(tmp_path, max_requests=2) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for _, writer in held:
            writer.write(head)
        await until(lambda: server.inside == 2)
        for path, document in (("/render", words), ("/transcribe", {})):
            shed = await server.client.post(path, json=document)
            assert (shed.status_code, shed.json()["code"]) == (503, "busy")
        for _, writer in held:
            writer.close()
        await until(lambda: server.inside == 0)
        # Before the model is there too, since none is needed.
        assert (await server.client.post("/render", json=words)).status_code == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/render", "/transcribe"])
async def test_rendering_and_transcription_do_not_wait_for_each_others_readers(
    tmp_path: Path, path: str
) -> None:
    settings = Settings.of({"engine": "tones", "scratch": tmp_path})
    with faulty_pipeline(settings, FaultyEngine(0)) as pipeline:
        service = Service(settings)
        service.open(pipeline)
        handlers = routes.TranscriptionRoutes(service)
        app = Starlette(
            routes=[
                Route("/render", handlers.render, methods=["POST"]),
                Route("/transcribe", handlers.transcribe, methods=["POST"]),
            ],
            middleware=[Middleware(access.AccessLog)],
        )
        others = handlers._parsing if path == "/render" else handlers._rendering
        documents = {
            "/render": {"format": "srt", "words": []},
            "/transcribe": {"audio_base64": encoded(TONE)},
        }
        transport = httpx.ASGITransport(app)
        async with (
            AsyncExitStack() as occupied,
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
            asyncio.timeout(30),
        ):
            for _ in range(routes._READERS):
                await occupied.enter_async_context(others)
            assert (await client.post(path, json=documents[path])).status_code == 200


async def test_the_page_and_the_reference_come_with_the_server(server: Serving) -> None:
    index = await server.client.get("/")
    assert index.headers["content-type"].startswith("text/html")
    assert (await server.client.get("/page/page.js")).status_code == 200
    document = (await server.client.get("/openapi.json")).json()
    page = (await server.client.get("/docs")).text
    assert len(document["paths"]) == 10
    for path in document["paths"]:
        assert path in page
    # It needs no network: nothing in it is fetched from anywhere.
    assert "<script" not in page
    assert "url(" not in page
    links = re.findall(r'\b(?:href|src)="([^"]*)"', page)
    assert links
    assert not [link for link in links if link.startswith("/") or ":" in link]
    # Descriptions are Markdown: code is code, and of links to the documentation the text remains.
    assert "<code>diarized_json</code>" in page
    assert not re.search(r"`|\]\(", page)


async def test_metrics_count_requests(server: Serving) -> None:
    await upload(server)
    await upload(server, b"nothing")
    assert await server.metric('parakeet_jobs_total{route="transcribe"}') == 2
    assert await server.metric('parakeet_recordings_total{outcome="ok"}') == 1
    assert await server.metric('parakeet_recordings_total{outcome="audio_undecodable"}') == 1
    assert await server.metric('parakeet_errors_total{code="audio_undecodable"}') == 1
    assert await server.metric("parakeet_audio_seconds_total") == pytest.approx(1.6)
    assert await server.metric('parakeet_stage_seconds_count{stage="decode"}') == 1
    assert await server.metric("parakeet_rtfx_count") == 1
    assert await server.metric("parakeet_queue_seconds") == 0
    assert await server.metric("parakeet_batch_budget_seconds") == 30
    padded = await server.metric("parakeet_batch_padded_seconds_total")
    assert padded >= 1
    assert await server.metric("parakeet_engine_busy_seconds_total") > 0


async def test_an_unexpected_exception_is_logged_and_answered_without_details(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    del server.service.metrics._jobs  # any use of it is a bug
    answer = await upload(server)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "_jobs" not in answer.text
    assert "AttributeError" in caplog.text
    assert "_jobs" in caplog.text
    openai = await server.client.post("/v1/audio/transcriptions", files={"file": TONE})
    assert openai.json()["error"]["type"] == "server_error"


async def test_after_a_bug_the_connection_is_used_again(server: Serving) -> None:
    del server.service.metrics._jobs  # any use of it is a bug
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    request = (
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    statuses = []
    for _ in range(3):
        writer.write(request)
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"connection: close" not in head.lower()
            await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
        statuses.append(head.split()[1])
    writer.close()
    assert statuses == [b"500"] * 3


async def test_curl_is_answered(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> None:
    recording = tmp_path_factory.mktemp("curl") / "tone.wav"
    recording.write_bytes(TONE)
    curl = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--fail", "--form", f"file=@{recording}", "--form", "format=srt",
        f"{server.url}/transcribe", stdout=subprocess.PIPE,
    )  # fmt: skip
    message, _ = await curl.communicate()
    assert curl.returncode == 0
    assert json.loads(message)["srt"].startswith("1\n00:00:00,000 --> ")


async def test_a_full_disk_takes_the_server_out_of_service(tmp_path: Path) -> None:
    async with serving(tmp_path, scratch_least_bytes=1 << 60) as server:
        assert (await server.client.get("/ping")).status_code == 503
        for path in ("/ready", "/health"):
            assert (await server.client.get(path)).status_code == 503
        answer = await server.client.post("/transcribe", files={"file": TONE})
        assert (answer.status_code, answer.json()["code"]) == (503, "scratch_full")
        assert "retry-after" in answer.headers


async def test_a_disk_that_fills_up_refuses_the_upload_as_the_servers_own_state(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        with full_disk():
            answer = await server.client.post("/transcribe", files={"file": TONE})
        assert (answer.status_code, answer.json()["code"]) == (503, "scratch_full")
        assert list(tmp_path.iterdir()) == []
