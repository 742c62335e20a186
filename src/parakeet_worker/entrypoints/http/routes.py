"""All routes of the server."""

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
    CLIENT_CLOSED_REQUEST,
    Event,
    EventStream,
    error_document,
    error_response,
    first_event,
    is_openai,
    json_response,
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
from parakeet_worker.request import JobInput
from parakeet_worker.request import Request as Transcription
from parakeet_worker.wire import openai
from parakeet_worker.wire.native import parse, parse_form

log = logging.getLogger(__name__)

PAGE = Path(__file__).resolve().parent / "page"
# The page declares in a meta element what it may load; frame-ancestors works only as a header.
# No cache: the page's modules must have the same version.
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PING = {"warming": 204, "ready": 200, "full": 503, "lost": 500}
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
_API_VERSION = "api-version"
"""Query parameter that clients for Azure send with every request to OpenAI's API."""
_MAX_HEADER_CHARACTERS = 1000
_READERS = 2
"""Concurrent parses of JSON bodies: each takes several times the size of its body in memory."""


def application(service: Service) -> Starlette:
    """The ASGI application of one service."""
    transcription, ops = TranscriptionRoutes(service), OpsRoutes(service)
    endpoints: dict[tuple[str, str], tuple[Endpoint, reference.Operation]] = {
        ("POST", "/transcribe"): (transcription.transcribe, reference.TRANSCRIBE),
        ("POST", openai.TRANSCRIPTIONS): (
            transcription.transcriptions,
            reference.TRANSCRIPTIONS,
        ),
        ("POST", openai.TRANSLATIONS): (transcription.translations, reference.TRANSLATIONS),
        ("POST", "/render"): (transcription.render, reference.RENDER),
        ("GET", openai.MODELS): (ops.models, reference.MODELS),
        ("GET", f"{openai.MODELS}/{{name:path}}"): (ops.model, reference.MODEL),
        ("GET", "/ping"): (ops.ping, reference.PING),
        ("GET", "/health"): (ops.health, reference.HEALTH),
        ("GET", "/ready"): (ops.ready, reference.READY),
        ("GET", "/metrics"): (ops.metrics, reference.METRICS),
    }
    described = {key: operation for key, (_, operation) in endpoints.items()}
    routes = [
        Route(path, endpoint, methods=[method])
        for (method, path), (endpoint, _) in endpoints.items()
    ]
    app = Starlette(
        routes=[*routes, *_pages(reference.document(described))],
        exception_handlers=_exception_handlers(service),
        middleware=[Middleware(access.AccessLog), Middleware(_UnexpectedErrors, service=service)],
    )
    app.router.redirect_slashes = False
    return app


def _pages(document: dict[str, Any]) -> list[BaseRoute]:
    """The web page, the API reference and the OpenAPI document."""

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


class TranscriptionRoutes:
    """Routes that transcribe or render."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._parsing = asyncio.Semaphore(_READERS)
        self._rendering = asyncio.Semaphore(_READERS)

    async def transcribe(self, request: Request) -> Response:
        async with AsyncExitStack() as resources:
            pipeline, folder = await self._admit(resources, request, "transcribe")
            job = await self._job(request, folder)
            if job.stream:
                segments = self._segments(pipeline, job, self._observe(request))
                return await self._streamed(request, segments, resources)
            if job.progress:
                raise InvalidRequest("progress", "requires 'stream': true")
            work = answers.answer_job(pipeline, job, self._observe(request))
            answer = await while_connected(request.receive, work)
            self._service.metrics.observe_list(answer)
            return await json_response(answer)

    async def transcriptions(self, request: Request) -> Response:
        async with AsyncExitStack() as resources:
            pipeline, folder = await self._admit(resources, request, "openai")
            openai_request = await self._openai_request(request, folder)
            observe = self._observe(request)
            if openai_request.stream:
                events = _unnamed(openai.events(pipeline, openai_request, observe))
                return await self._streamed(request, events, resources, last=b"data: [DONE]\n\n")
            work = openai.answer(pipeline, openai_request, observe)
            answer = await while_connected(request.receive, work)
            if not isinstance(answer.body, str):
                return await json_response(answer.body)
            return PlainTextResponse(
                answer.body,
                headers=_fact_headers(openai_request.model, answer.warnings),
                media_type=openai.TEXT_TYPES[openai_request.response_format],
            )

    async def translations(self, request: Request) -> Response:
        raise UnknownRoute(request.url.path, openai.NO_TRANSLATION)

    async def render(self, request: Request) -> Response:
        admitted = self._service.admitted_without_engine(request.headers.get("authorization"))
        with admitted:
            if _is_form(request):
                raise InvalidRequest("content-type", "must be application/json")
            _reject_query(request)
            return PlainTextResponse(await self._rendered(request))

    async def _rendered(self, request: Request) -> str:
        async with self._service.scratch.made() as folder:
            path = await self._body(request, folder)
            async with self._rendering:
                payload = await asyncio.to_thread(uploads.parse_json, path)
                return await asyncio.to_thread(reformat.rewrite, payload)

    async def _admit(
        self, resources: AsyncExitStack, request: Request, route: str
    ) -> tuple[Pipeline, Path]:
        """Admit the request and create its scratch folder."""
        self._service.metrics.requested(route)
        admitted = self._service.admitted(request.headers.get("authorization"))
        pipeline = resources.enter_context(admitted)
        return pipeline, await resources.enter_async_context(self._service.scratch.made())

    async def _form(self, request: Request, folder: Path) -> uploads.Form:
        limit = self._settings.max_audio_bytes + self._settings.max_json_bytes
        async with self._service.scratch.reserved(uploads.max_bytes(request, limit)):
            return await uploads.receive_form(request, folder, self._settings)

    async def _body(self, request: Request, folder: Path) -> Path:
        async with self._service.scratch.reserved(
            uploads.max_bytes(request, self._settings.max_json_bytes)
        ):
            return await uploads.receive_body(request, folder, self._settings)

    async def _job(self, request: Request, folder: Path) -> JobInput:
        if _is_form(request):
            form = await self._form(request, folder)
            query = _query(request)
            async with self._parsing:
                return await asyncio.to_thread(self._parse_form, query, form)
        _reject_query(request)
        path = await self._body(request, folder)
        async with self._parsing:
            return await asyncio.to_thread(self._parse_job, path)

    def _parse_form(self, query: Sequence[tuple[str, str]], form: uploads.Form) -> JobInput:
        return self._spooled(parse_form([*query, *form.read()], form.file), form.file.parent)

    def _parse_job(self, path: Path) -> JobInput:
        return self._spooled(parse(uploads.parse_json(path)), path.parent)

    def _spooled(self, job: JobInput, folder: Path) -> JobInput:
        spool = uploads.Spool(folder, self._settings)

        def spooled(request: Transcription | RequestError) -> Transcription | RequestError:
            if isinstance(request, RequestError):
                return request
            try:
                return spool.spooled(request)
            except RequestError as error:
                return error

        return replace(job, requests=tuple(map(spooled, job.requests)))

    async def _openai_request(self, request: Request, folder: Path) -> openai.OpenAIRequest:
        parsed = await self._without_api_version(request, folder)
        if _API_VERSION in request.query_params:
            return openai.with_api_version(parsed, self._settings)
        return parsed

    async def _without_api_version(self, request: Request, folder: Path) -> openai.OpenAIRequest:
        if _is_form(request):
            form = await self._form(request, folder)
            query = _query(request, _API_VERSION)
            async with self._parsing:
                return await asyncio.to_thread(self._parse_openai_form, query, form)
        _reject_query(request, _API_VERSION)
        path = await self._body(request, folder)
        async with self._parsing:
            return await asyncio.to_thread(self._parse_openai, path)

    def _parse_openai_form(
        self, query: Sequence[tuple[str, str]], form: uploads.Form
    ) -> openai.OpenAIRequest:
        parsed = openai.parse_form([*query, *form.read()], form.file, self._settings)
        return self._spooled_openai(parsed, form.file.parent)

    def _parse_openai(self, path: Path) -> openai.OpenAIRequest:
        parsed = openai.parse_json(uploads.parse_json(path), self._settings)
        return self._spooled_openai(parsed, path.parent)

    def _spooled_openai(self, parsed: openai.OpenAIRequest, folder: Path) -> openai.OpenAIRequest:
        spooled = uploads.Spool(folder, self._settings).spooled(parsed.transcription)
        return replace(parsed, transcription=spooled)

    def _observe(self, request: Request) -> Observe:
        """Counts a recording in the metrics and the access log."""

        def observe(outcome: Outcome) -> None:
            self._service.metrics.observe(outcome)
            access.count(request.scope["state"], outcome)

        return observe

    async def _segments(
        self, pipeline: Pipeline, job: JobInput, observe: Observe
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
        resources: AsyncExitStack,
        last: bytes = b"",
    ) -> EventStream:
        path = request.url.path

        def failed(error: ParakeetError) -> Event:
            self._service.metrics.failed(error.code)
            return "error", error_document(error, path)

        first, rest = await first_event(request, events)
        return EventStream(first, rest, resources=resources.pop_all(), failed=failed, last=last)


async def _unnamed(
    events: AsyncGenerator[dict[str, object], None],
) -> AsyncGenerator[Event, None]:
    async with aclosing(events):
        async for document in events:
            yield None, document


def _fact_headers(model: str, warnings: Sequence[Notice]) -> dict[str, str]:
    """Fields of a JSON answer, as headers of a text answer."""
    return {"X-Model": _header(model), **_warning_headers(warnings)}


def _warning_headers(warnings: Sequence[Notice]) -> dict[str, str]:
    if not warnings:
        return {}
    return {"X-Warnings": _header("; ".join(f"{each.code}: {each}" for each in warnings))}


def _header(text: str) -> str:
    """One line of ASCII; other characters are escaped."""
    line = " ".join(text.split()).encode("ascii", errors="backslashreplace").decode()
    return line[:_MAX_HEADER_CHARACTERS]


def _query(request: Request, *hints: str) -> list[tuple[str, str]]:
    """The query parameters, without hints."""
    return [item for item in request.query_params.multi_items() if item[0] not in hints]


def _reject_query(request: Request, *hints: str) -> None:
    for name, _ in _query(request, *hints):
        where = "send it in the JSON body" if request.method == "POST" else "omit it"
        raise InvalidRequest(name, f"is a query parameter; {where}")


def _probe_headers(request: Request) -> dict[str, str]:
    """The warning of a probe's query parameters: rejecting them could stop a healthy worker."""
    names = dict.fromkeys(request.query_params)
    warnings = [Notice("hint_ignored", f"'{name}' has no effect") for name in names]
    return _warning_headers(warnings)


def _is_form(request: Request) -> bool:
    """Whether the body is a form; raises `InvalidRequest` if it is neither that nor JSON."""
    # A body without a type does not count as JSON: web pages may send one cross-site.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        reason = f"must be multipart/form-data or application/json, got '{echo(kind)}'"
        raise InvalidRequest("content-type", reason)
    return kind == "multipart/form-data"


class OpsRoutes:
    """Routes for operators."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ping(self, request: Request) -> Response:
        return Response(status_code=_PING[self._service.state], headers=_probe_headers(request))

    async def health(self, request: Request) -> Response:
        state = self._service.state
        document: dict[str, Any] = {
            "status": state,
            "model": openai.model_name(self._service.settings),
        }
        if reports := self._service.kernels:
            replaced = [report.document() for report in reports if report.replaced]
            document["kernels"] = {"compared": len(reports), "replaced": replaced}
        status = {"lost": 500, "full": 503}.get(state, 200)
        return JSONResponse(document, status, _probe_headers(request))

    async def ready(self, request: Request) -> Response:
        state = self._service.state
        if state == "warming":
            raise Warming
        if state == "lost":
            raise EngineLost("the worker is being replaced")
        if (shortage := self._service.scratch.shortage()) is not None:
            raise shortage
        return JSONResponse({"status": state}, headers=_probe_headers(request))

    async def models(self, request: Request) -> Response:
        self._service.api_keys.check(request.headers.get("authorization"))
        _reject_query(request, _API_VERSION)
        return JSONResponse(openai.models(self._service.settings))

    async def model(self, request: Request) -> Response:
        self._service.api_keys.check(request.headers.get("authorization"))
        _reject_query(request, _API_VERSION)
        return JSONResponse(openai.model(self._service.settings, request.path_params["name"]))

    async def metrics(self, request: Request) -> Response:
        self._service.api_keys.check(request.headers.get("authorization"))
        _reject_query(request)
        return Response(self._service.metrics.exposition(), media_type="text/plain; version=0.0.4")


def _exception_handlers(service: Service) -> dict[Any, ExceptionHandler]:
    """Errors in the format of their route."""

    async def parakeet_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ParakeetError)
        service.metrics.failed(error.code)
        return error_response(error, request.url.path)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 405:
            response = error_response(MethodNotAllowed(request.method, path), path)
        else:
            response = error_response(UnknownRoute(path), path)
        response.headers.update(error.headers or {})
        return response

    async def disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    return {
        ParakeetError: parakeet_error,
        HTTPException: routing,
        ClientDisconnect: disconnected,
    }


class _UnexpectedErrors:
    """Answers 500 to an unexpected exception and keeps the connection usable.

    The exception is logged; the answer contains no detail. uvicorn would close the connection
    without `Connection: close`, and the client's next request on it would be lost.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_observed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            if started:
                raise  # a partial response must not look complete
            log.exception("unexpected exception at %s", scope["path"])
            self._service.metrics.failed("internal_error")
            await _internal_error(scope["path"])(scope, receive, send)


def _internal_error(path: str) -> Response:
    sentence = "unexpected server error; the server's log has the details"
    document: dict[str, Any] = {"error": f"internal_error: {sentence}", "code": "internal_error"}
    if is_openai(path):
        document = {"error": {"message": sentence, "type": "server_error", "param": None,
                              "code": "internal_error"}}  # fmt: skip
    return JSONResponse(document, 500)
