"""Every route of the server: what is asked of the one pipeline, and in whose words."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from parakeet_worker import answers
from parakeet_worker.entrypoints.http import access, reference, uploads
from parakeet_worker.entrypoints.http.responses import (
    GONE,
    Event,
    EventStream,
    answered,
    begun,
    error_document,
    is_openai,
    refusal,
    while_connected,
)
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.errors import (
    EngineLost,
    InvalidRequest,
    MethodNotAllowed,
    ParakeetError,
    RequestError,
    UnknownRoute,
    Warming,
    echo,
)
from parakeet_worker.formats import reformat
from parakeet_worker.notices import Notice
from parakeet_worker.outcome import Observe, Outcome
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import Job
from parakeet_worker.request import Request as Transcription
from parakeet_worker.wire import openai
from parakeet_worker.wire.native import parse, parse_form

log = logging.getLogger(__name__)

PAGE = Path(__file__).resolve().parent / "page"
# What the page may load, it says itself; what may hold the page, only a header can. It is asked for
# again each time: its modules belong together.
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PING = {"warming": 204, "ready": 200, "full": 503, "lost": 500}
Door: TypeAlias = Callable[[Request], Awaitable[Response]]
_MAX_HEADER_CHARACTERS = 1000
_READERS = 2
"""Bodies of JSON that are read at a time: each is in memory several times over while it is."""


def application(service: Service) -> Starlette:
    """All doors of one service."""
    transcripts, figures = _Transcripts(service), _Figures(service)
    doors: dict[tuple[str, str], tuple[Door, reference.Said]] = {
        ("POST", "/transcribe"): (transcripts.transcribe, reference.TRANSCRIBE),
        ("POST", openai.TRANSCRIPTIONS): (
            transcripts.transcriptions,
            reference.TRANSCRIPTIONS,
        ),
        ("POST", openai.TRANSLATIONS): (transcripts.translations, reference.TRANSLATIONS),
        ("POST", "/render"): (transcripts.render, reference.RENDER),
        ("GET", openai.MODELS): (figures.models, reference.MODELS),
        ("GET", f"{openai.MODELS}/{{name:path}}"): (figures.model, reference.MODEL),
        ("GET", "/ping"): (figures.ping, reference.PING),
        ("GET", "/health"): (figures.health, reference.HEALTH),
        ("GET", "/ready"): (figures.ready, reference.READY),
        ("GET", "/metrics"): (figures.metrics, reference.METRICS),
    }
    described = {key: said for key, (_, said) in doors.items()}
    routes = [Route(path, door, methods=[method]) for (method, path), (door, _) in doors.items()]
    app = Starlette(
        routes=[*routes, *_pages(reference.document(described))],
        exception_handlers=_refusals(service),
        middleware=[Middleware(access.AccessLog), Middleware(_Bugs, service=service)],
    )
    app.router.redirect_slashes = False
    return app


def _pages(document: dict[str, Any]) -> list[BaseRoute]:
    """What a person looks at."""

    async def index(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    async def docs(_: Request) -> Response:
        return HTMLResponse(reference.page(document))

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    return [
        Route("/", index),
        Route("/docs", docs),
        Route("/openapi.json", openapi),
        Mount("/page", _PageFiles(directory=PAGE)),
    ]


class _PageFiles(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(_PAGE_HEADERS)
        return response


class _Transcripts:
    """The doors behind which something is heard, or read."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._reading = asyncio.Semaphore(_READERS)
        self._rewriting = asyncio.Semaphore(_READERS)

    async def transcribe(self, request: Request) -> Response:
        async with AsyncExitStack() as inside:
            pipeline, folder = await self._enter(inside, request, "transcribe")
            job = await self._job(request, folder)
            if job.stream:
                segments = self._segments(pipeline, job, self._observe(request))
                return await self._streamed(request, segments, inside)
            if job.progress:
                raise InvalidRequest("progress", "is told in a stream; send 'stream' as well")
            work = answers.answer_job(pipeline, job, self._observe(request))
            answer = await while_connected(request.receive, work)
            self._service.metrics.listed(answer)
            return await answered(answer)

    async def transcriptions(self, request: Request) -> Response:
        async with AsyncExitStack() as inside:
            pipeline, folder = await self._enter(inside, request, "openai")
            asked = await self._asked(request, folder)
            observe = self._observe(request)
            if asked.stream:
                events = _unnamed(openai.events(pipeline, asked, observe))
                return await self._streamed(request, events, inside, last=b"data: [DONE]\n\n")
            work = openai.answer(pipeline, asked, observe)
            answer = await while_connected(request.receive, work)
            if not isinstance(answer.body, str):
                return await answered(answer.body)
            kind = {"vtt": "text/vtt", "srt": "application/x-subrip"}
            return PlainTextResponse(
                answer.body,
                headers=_facts_as_headers(asked.model, answer.warnings),
                media_type=kind.get(asked.response_format, "text/plain"),
            )

    async def translations(self, request: Request) -> Response:
        raise UnknownRoute(request.url.path, openai.NO_TRANSLATION)

    async def render(self, request: Request) -> Response:
        admitted = self._service.admitted_without_engine(request.headers.get("authorization"))
        with admitted:
            if _is_form(request):
                raise InvalidRequest("content-type", "must be application/json")
            _refuse_query(request)
            return PlainTextResponse(await self._rewritten(request))

    async def _rewritten(self, request: Request) -> str:
        async with self._service.scratch.made() as folder:
            path = await self._body(request, folder)
            async with self._rewriting:
                payload = await asyncio.to_thread(uploads.read, path)
                return await asyncio.to_thread(reformat.rewrite, payload)

    async def _enter(
        self, inside: AsyncExitStack, request: Request, door: str
    ) -> tuple[Pipeline, Path]:
        """A place, and a folder for what is uploaded."""
        self._service.metrics.asked(door)
        admitted = self._service.admitted(request.headers.get("authorization"))
        pipeline = inside.enter_context(admitted)
        return pipeline, await inside.enter_async_context(self._service.scratch.made())

    async def _form(self, request: Request, folder: Path) -> uploads.Form:
        async with self._service.scratch.reserved(
            uploads.most_bytes(request, self._settings.max_audio_bytes)
        ):
            return await uploads.form(request, folder, self._settings)

    async def _body(self, request: Request, folder: Path) -> Path:
        async with self._service.scratch.reserved(
            uploads.most_bytes(request, self._settings.max_json_bytes)
        ):
            return await uploads.body(request, folder, self._settings)

    async def _job(self, request: Request, folder: Path) -> Job:
        if _is_form(request):
            form = await self._form(request, folder)
            return parse_form([*_query(request), *form.fields], form.file)
        _refuse_query(request)
        path = await self._body(request, folder)
        async with self._reading:
            return await asyncio.to_thread(self._read_job, path)

    def _read_job(self, path: Path) -> Job:
        job = parse(uploads.read(path))
        kept = tuple(
            self._kept(request, path.with_name(f"audio{number}"))
            for number, request in enumerate(job.requests)
        )
        return replace(job, requests=kept)

    def _kept(
        self, request: Transcription | RequestError, target: Path
    ) -> Transcription | RequestError:
        if isinstance(request, RequestError):
            return request
        try:
            return uploads.kept(request, target, self._settings)
        except RequestError as error:
            return error

    async def _asked(self, request: Request, folder: Path) -> openai.Asked:
        if _is_form(request):
            form = await self._form(request, folder)
            fields = [*_query(request), *form.fields]
            return openai.from_form(fields, form.file, self._settings)
        _refuse_query(request)
        path = await self._body(request, folder)
        async with self._reading:
            return await asyncio.to_thread(self._read_asked, path)

    def _read_asked(self, path: Path) -> openai.Asked:
        asked = openai.from_json(uploads.read(path), self._settings)
        kept = uploads.kept(asked.request, path.with_name("audio"), self._settings)
        return replace(asked, request=kept)

    def _observe(self, request: Request) -> Observe:
        """Counts a recording for the figures and for the request's line in the log."""

        def observe(outcome: Outcome) -> None:
            self._service.metrics.observe(outcome)
            access.count(request.scope["state"], outcome)

        return observe

    async def _segments(
        self, pipeline: Pipeline, job: Job, observe: Observe
    ) -> AsyncGenerator[Event, None]:
        parts = answers.stream_job(pipeline, job, observe)
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, answers.SegmentPart):
                    yield "segment", part.document
                    if job.progress:
                        yield "progress", {"audio_seconds": part.sentence.end_seconds}
                else:
                    assert isinstance(part.document, dict)
                    yield "result", part.document

    async def _streamed(
        self,
        request: Request,
        events: AsyncGenerator[Event, None],
        inside: AsyncExitStack,
        last: bytes = b"",
    ) -> EventStream:
        path = request.url.path

        def failed(error: ParakeetError) -> Event:
            self._service.metrics.failed(error.code)
            return "error", error_document(error, path)

        first, rest = await begun(request, events)
        return EventStream(first, rest, inside=inside.pop_all(), failed=failed, last=last)


async def _unnamed(
    events: AsyncGenerator[dict[str, object], None],
) -> AsyncGenerator[Event, None]:
    async with aclosing(events):
        async for document in events:
            yield None, document


def _facts_as_headers(model: str, warnings: Sequence[Notice]) -> dict[str, str]:
    """What an answer in JSON has beside its words, for an answer that is text."""
    headers = {"X-Model": _header(model)}
    if warnings:
        headers["X-Warnings"] = _header("; ".join(f"{each.code}: {each}" for each in warnings))
    return headers


def _header(text: str) -> str:
    """ASCII on one line; other characters as escapes."""
    line = " ".join(text.split()).encode("ascii", errors="backslashreplace").decode()
    return line[:_MAX_HEADER_CHARACTERS]


def _query(request: Request) -> list[tuple[str, str]]:
    """Fields of a form that stand in the address; a version of the API is accepted as it is."""
    return [item for item in request.query_params.multi_items() if item[0] != "api-version"]


def _refuse_query(request: Request) -> None:
    for name, _ in _query(request):
        raise InvalidRequest(name, "is in the address; send it in the JSON body")


def _is_form(request: Request) -> bool:
    """Whether the body is a form; what is neither that nor JSON is refused."""
    # A body without a type is not taken for JSON: any web page may send one to any server.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        reason = f"must be multipart/form-data or application/json, got '{echo(kind)}'"
        raise InvalidRequest("content-type", reason)
    return kind == "multipart/form-data"


class _Figures:
    """Routes for operators."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ping(self, _: Request) -> Response:
        return Response(status_code=_PING[self._service.state])

    async def health(self, _: Request) -> Response:
        state = self._service.state
        document: dict[str, Any] = {
            "status": state,
            "model": openai.model_name(self._service.settings),
        }
        if reports := self._service.kernels:
            replaced = [report.document() for report in reports if report.replaced]
            document["kernels"] = {"compared": len(reports), "replaced": replaced}
        return JSONResponse(document, {"lost": 500, "full": 503}.get(state, 200))

    async def ready(self, _: Request) -> Response:
        state = self._service.state
        if state == "warming":
            raise Warming
        if state == "lost":
            raise EngineLost("this worker is being replaced")
        if (shortage := self._service.scratch.shortage()) is not None:
            raise shortage
        return JSONResponse({"status": state})

    async def models(self, request: Request) -> Response:
        self._service.keys.check(request.headers.get("authorization"))
        return JSONResponse(openai.models(self._service.settings))

    async def model(self, request: Request) -> Response:
        self._service.keys.check(request.headers.get("authorization"))
        return JSONResponse(openai.model(self._service.settings, request.path_params["name"]))

    async def metrics(self, request: Request) -> Response:
        self._service.keys.check(request.headers.get("authorization"))
        return Response(self._service.metrics.written(), media_type="text/plain; version=0.0.4")


def _refusals(service: Service) -> dict[Any, ExceptionHandler]:
    """Whatever fails is answered in the shape of its door."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ParakeetError)
        service.metrics.failed(error.code)
        return refusal(error, request.url.path)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            response = refusal(MethodNotAllowed(request.method, path), path)
        else:
            response = refusal(UnknownRoute(path), path)
        response.headers.update(error.headers or {})
        return response

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=GONE)

    return {ParakeetError: ours, HTTPException: routing, ClientDisconnect: gone}


class _Bugs:
    """Answers 500 to an unexpected exception and keeps the connection usable.

    The exception is logged; the answer says only that the server is at fault. Left to
    uvicorn, the connection would be closed without a word of it in the answer, and the caller's
    next request on it be lost.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            if begun:
                raise  # half an answer must not look like a whole one
            log.exception("a bug at %s", scope["path"])
            self._service.metrics.failed("internal_error")
            await _bug(scope["path"])(scope, receive, send)


def _bug(path: str) -> Response:
    sentence = "the server made a mistake, which its log describes"
    document: dict[str, Any] = {"error": f"internal_error: {sentence}", "code": "internal_error"}
    if is_openai(path):
        document = {"error": {"message": sentence, "type": "server_error", "param": None,
                              "code": "internal_error"}}  # fmt: skip
    return JSONResponse(document, 500)
