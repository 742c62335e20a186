"""The OpenAPI document of all routes, and an HTML page that needs no network."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, TypeAlias

from parakeet_worker import errors
from parakeet_worker.formats.reformat import Rewriting
from parakeet_worker.version import __version__
from parakeet_worker.wire import documents, native, openai

Operation: TypeAlias = dict[str, Any]
"""An OpenAPI operation object."""

_JSON, _FORM = "application/json", "multipart/form-data"
_TEXT, _EVENTS = "text/plain", "text/event-stream"
# Types that validate requests have other names than their schemas.
_WIRE_NAME = re.compile(r"\b(?:_|(?=[A-Z]))(\w*)Wire\b")
_PUBLIC_NAMES = {"_Wire": "OpenAIInput", "_RequestWire": "Input"}
_STRING = {"type": "string"}
_SOURCES = ("audio_base64", "audio_url", "audio_s3")

_TYPES, _SCHEMAS = documents.schemas(
    job=native.REQUEST, openai_job=openai.REQUEST, words=Rewriting,
    answer=documents.Native, openai_answer=documents.OpenAI,
    failure=documents.Failure, openai_failure=documents.OpenAIFailure,
    models=documents.ModelList, model=documents.Model,
    health=documents.Health, ready=documents.Ready,
)  # fmt: skip


def _form(schema: Mapping[str, Any], *, lists: str = "") -> dict[str, Any]:
    """The form of a JSON request: the audio as a file; names of lists end in `lists`."""
    fields = {
        name + lists * (field.get("type") == "array"): field
        for name, field in schema["properties"].items()
        if name not in _SOURCES
    }
    file = {**_STRING, "format": "binary", "description": "The audio file."}
    return {**schema, "properties": {**fields, "file": file}, "required": ["file"]}


def _add_derived_schemas() -> None:
    """The schemas that are not those of a type."""
    job, openai_job = _SCHEMAS["_RequestWire"], _SCHEMAS["_Wire"]
    _SCHEMAS["Form"] = _form(job)
    openai_job["properties"]["model"]["description"] = (
        f"The served model, or {', '.join(openai.ALIASES)}."
    )
    _SCHEMAS["OpenAIForm"] = _form(openai_job, lists="[]")
    openai_job["required"] = ["file"]
    job["properties"]["inputs"] = {
        "type": "array", "items": _TYPES["job"],
        "description": "Several recordings, one object each; other fields are their defaults.",
    }  # fmt: skip


_add_derived_schemas()


def _leaves(family: type[errors.ParakeetError]) -> Iterator[type[errors.ParakeetError]]:
    for kind in family.__subclasses__():
        yield kind
        yield from _leaves(kind)


def _failures(type_: str) -> dict[int, tuple[str, ...]]:
    """The error responses of a route that transcribes, with their codes."""
    codes: dict[int, list[str]] = {}
    for family in (errors.RequestError, errors.TransientError, errors.EngineError):
        for kind in _leaves(family):
            codes.setdefault(kind.http_status, []).append(kind.code)
    return {status: (", ".join(codes[status]), type_) for status in sorted(codes)}


def _content(kinds: Iterable[str]) -> dict[str, Any]:
    """Bodies: types of JSON by name, or media types of text."""
    return {
        kind if "/" in kind else _JSON: {"schema": _STRING if "/" in kind else _TYPES[kind]}
        for kind in kinds
    }


def _operation(
    name: str,
    summary: str,
    responses: Mapping[int, tuple[str, ...]],
    body: str | None = None,
    form: str | None = None,
) -> Operation:
    """`responses` has the meaning and the kinds of content by status."""
    operation: Operation = {"operationId": name, "summary": summary}
    if body is not None:
        content = _content([body])
        if form is not None:
            reference = {"$ref": documents.REFERENCE.format(model=form)}
            content = {_FORM: {"schema": reference}, **content}
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = {
        str(status): {"description": meaning, **({"content": _content(kinds)} if kinds else {})}
        for status, (meaning, *kinds) in responses.items()
    }
    return operation


_INVALID = {400: ("invalid_request", "failure")}
_OPENAI_INVALID = {400: ("invalid_request", "openai_failure")}

TRANSCRIBE = _operation(
    "transcribe",
    "Transcribe (native API): the input of a queue job as JSON, or a form",
    {200: ("The result, or events.", "answer", _EVENTS), **_failures("failure")},
    body="job",
    form="Form",
)
TRANSCRIPTIONS = _operation(
    "createTranscription",
    "Transcribe (OpenAI-compatible)",
    {
        200: ("The transcript, or events.", "openai_answer", _EVENTS, *openai.TEXT_TYPES.values()),
        **_failures("openai_failure"),
    },
    body="openai_job",
    form="OpenAIForm",
)
TRANSLATIONS = _operation(
    "createTranslation",
    "Not supported: the model does not translate",
    {404: ("unknown_route", "openai_failure")},
)
RENDER = _operation(
    "render",
    "Convert the words of an earlier answer to text, srt, vtt or tsv",
    {200: ("The file's content.", _TEXT), **_INVALID},
    body="words",
)
MODELS = _operation(
    "listModels",
    "List models (OpenAI-compatible)",
    {200: ("The served model.", "models"), **_OPENAI_INVALID},
)
MODEL = _operation(
    "retrieveModel",
    "Get a model (OpenAI-compatible)",
    {200: ("The served model.", "model"), **_OPENAI_INVALID,
     404: ("model_not_found", "openai_failure")},
)  # fmt: skip
PING = _operation(
    "ping",
    "Health check of RunPod's load balancer",
    {200: ("Ready.",), 204: ("Warming.",), 500: ("The engine is lost.",), 503: ("Full.",)},
)
HEALTH = _operation(
    "health",
    "Liveness and state",
    {200: ("Warming or ready.", "health"), 500: ("The engine is lost.", "health"),
     503: ("Full.", "health")},
)  # fmt: skip
READY = _operation(
    "ready",
    "Readiness",
    {200: ("Ready.", "ready"), 500: ("engine_lost", "failure"), 503: ("warming", "failure")},
)
METRICS = _operation(
    "metrics", "Prometheus metrics", {200: ("Prometheus text format.", _TEXT), **_INVALID}
)

_STYLE = (
    ":root{color-scheme:light dark}html{background:Canvas;color:CanvasText}"
    "body{overflow-wrap:anywhere}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:.95em}table{border-collapse:collapse}"
    "td{padding:.15rem .8rem .15rem 0;vertical-align:top}h2{margin-top:2.5rem}"
)


def document(operations: Mapping[tuple[str, str], Operation]) -> dict[str, Any]:
    """The OpenAPI document of operations by method and path."""
    paths: dict[str, dict[str, Operation]] = {}
    for (method, path), described in operations.items():
        names = re.findall(r"\{(\w+):path\}", path)
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
        operation = {**described, **({"parameters": parameters} if parameters else {})}
        paths.setdefault(path.replace(":path", ""), {})[method.lower()] = operation
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "Parakeet", "version": __version__},
        "servers": [{"url": ".", "description": "The server of this document."}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
    renamed: dict[str, Any] = json.loads(_WIRE_NAME.sub(_public_name, json.dumps(whole)))
    return renamed


def _public_name(match: re.Match[str]) -> str:
    return _PUBLIC_NAMES.get(match[0], f"{match[1]}Input")


def page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document as plain HTML without scripts or external resources."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<link rel="icon" href="page/icon.svg">'
        '<meta name="viewport" content="width=device-width"><title>Parakeet: API</title>'
        f"<style>{_STYLE}</style><main><h1>Parakeet: API</h1>"
        '<p>Machine-readable: <a href="openapi.json">openapi.json</a>. '
        "If the operator has set API keys, send one as "
        "<code>Authorization: Bearer KEY</code>.</p>"
        + "".join(_routes(document))
        + "</main></html>"
    )


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(route['summary'])}.</p>"
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                yield f"<h3><code>{kind}</code></h3>"
                schema = document["components"]["schemas"][content["schema"]["$ref"].split("/")[-1]]
                yield _table(_field(*each) for each in schema["properties"].items())
            yield "<h3>Responses</h3>"
            responses = route["responses"].items()
            yield _table((code, escape(each["description"])) for code, each in responses)


def _field(name: str, kind: Mapping[str, Any]) -> tuple[str, str]:
    choices = kind.get("enum") or kind.get("items", {}).get("enum")
    values = " or ".join(f"<code>{escape(str(choice))}</code>" for choice in choices or ())
    types = [each.get("type", "object") for each in kind.get("anyOf") or kind.get("oneOf", [kind])]
    return name, f"{values or ' or '.join(types)}. {_inline(kind.get('description', ''))}"


def _inline(markdown: str) -> str:
    """Markdown of one line as HTML; of links to the documentation only the text."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", escape(markdown))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _table(rows: Iterator[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{text}" for name, text in rows)
    return f"<table>{cells}</table>"
