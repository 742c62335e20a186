"""The OpenAPI document of all routes, and an HTML page that needs no network."""

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, TypeAlias

from parakeet_worker.formats.reformat import Rewriting
from parakeet_worker.version import __version__
from parakeet_worker.wire import documents, native, openai

Operation: TypeAlias = dict[str, Any]
"""An OpenAPI operation object."""

_JSON = "application/json"
_FORM = "multipart/form-data"

_FILE = {"type": "string", "format": "binary", "description": "The audio file."}


def _own(*, form: bool) -> dict[str, Any]:
    """The schema of a native request, as JSON or as a form."""
    schema = native.schema()
    kinds = schema.get("$defs", {})
    properties = {
        name: _plain(kind, kinds)
        for name, kind in schema["properties"].items()
        if not (form and name in ("audio_base64", "audio_url", "audio_s3"))
    }
    if form:
        return {
            "type": "object",
            "properties": {"file": _FILE, **properties},
            "required": ["file"],
            "additionalProperties": False,
        }
    inputs = {
        "type": "array", "items": {"type": "object"},
        "description": "Several recordings, one object each.",
    }  # fmt: skip
    return {
        "type": "object",
        "properties": {**properties, "inputs": inputs},
        "additionalProperties": False,
    }


_KEYWORDS = (
    "type", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "maxLength", "additionalProperties",
)  # fmt: skip


def _plain(kind: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A field without null, which means its absence, and without references."""
    options = [option for option in kind.get("anyOf", [kind]) if option.get("type") != "null"]
    plain = [_plain_option(option, kinds) for option in options]
    described = {name: kind[name] for name in ("description", "default")
                 if kind.get(name) is not None}  # fmt: skip
    return {**(plain[0] if len(plain) == 1 else {"anyOf": plain}), **described}


def _plain_option(option: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    if "oneOf" in option:
        return {"oneOf": [_plain_option(each, kinds) for each in option["oneOf"]]}
    if "$ref" in option:
        option = kinds[option["$ref"].rpartition("/")[2]]
        inner = {name: _plain(each, kinds) for name, each in option["properties"].items()}
        return {"type": "object", "properties": inner}
    keywords = {name: option[name] for name in _KEYWORDS if name in option}
    if "items" in option:
        keywords["items"] = _plain_option(option["items"], kinds)
    return keywords


def _openai(*, form: bool) -> dict[str, Any]:
    """The schema of an OpenAI request; lists of a form end in `[]`."""
    schema = openai.schema()
    plain = {
        name: _plain(kind, schema.get("$defs", {})) for name, kind in schema["properties"].items()
    }
    if form:
        plain = {
            f"{name}[]" if kind.get("type") == "array" else name: kind
            for name, kind in plain.items()
        } | {"file": _FILE}
    plain["model"]["description"] = f"The served model, or {', '.join(openai.ALIASES)}."
    return {
        "type": "object",
        "properties": plain,
        "required": ["file"],
        "additionalProperties": False,
    }


def _body(**kinds: Any) -> dict[str, Any]:
    content = {
        {"form": _FORM, "document": _JSON}[kind]: {"schema": schema}
        for kind, schema in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def _responses(**meanings: str) -> Operation:
    return {code[1:]: {"description": meaning} for code, meaning in meanings.items()}


_FAILURES = {
    "_400": "Invalid request; `field` names the field.",
    "_401": "API key missing or wrong.",
    "_408": "The upload was idle or too slow.",
    "_413": "Too large, or too long.",
    "_415": "Not decodable as audio.",
    "_500": "Worker error.",
    "_503": "Busy or warming; retry after `Retry-After`.",
}

_NATIVE_ANSWER, _OPENAI_ANSWER, _SCHEMAS = documents.schemas()
_TEXT = {"schema": {"type": "string"}}


def _transcripts(schema: Mapping[str, Any], texts: Iterable[str] = ()) -> Operation:
    """The responses of a transcription: JSON, events, or text."""
    content = {
        _JSON: {"schema": schema},
        **dict.fromkeys(("text/event-stream", *texts), _TEXT),
    }
    success = {"description": "The transcript, or events.", "content": content}
    return {"200": success, **_responses(**_FAILURES)}


TRANSCRIBE: Operation = {
    "summary": "Transcribe (native API)",
    "description": "The input of a queue job as JSON, or a form with the audio as `file`.",
    **_body(form=_own(form=True), document=_own(form=False)),
    "responses": _transcripts(_NATIVE_ANSWER),
}
TRANSCRIPTIONS: Operation = {
    "summary": "Transcribe (OpenAI-compatible)",
    "description": "Accepts OpenAI clients' requests; other parameters are rejected by name.",
    **_body(form=_openai(form=True), document=_openai(form=False)),
    "responses": _transcripts(_OPENAI_ANSWER, openai.TEXT_TYPES.values()),
}
TRANSLATIONS: Operation = {
    "summary": "Not supported: the model does not translate",
    "responses": _responses(_404="The model does not translate."),
}


def _rewriting() -> dict[str, Any]:
    schema = Rewriting.model_json_schema()
    kinds = schema.pop("$defs")
    properties = {name: _plain(kind, kinds) for name, kind in schema["properties"].items()}
    return {**schema, "properties": properties}


RENDER: Operation = {
    "summary": "Convert the words of an earlier answer to text, srt, vtt or tsv",
    "description": "`words` as in verbose_json, and the `format`.",
    **_body(document=_rewriting()),
    "responses": _responses(_200="The file's content.", _400="Invalid request."),
}  # fmt: skip
MODELS: Operation = {
    "summary": "List models (OpenAI-compatible)",
    "responses": _responses(_200="List of models."),
}
MODEL: Operation = {
    "summary": "Get a model (OpenAI-compatible)",
    "responses": _responses(_200="The model.", _404="Unknown model."),
}
PING: Operation = {
    "summary": "Health check of RunPod's load balancer",
    "responses": _responses(_200="Ready.", _204="Warming.", _500="The engine is lost."),
}
HEALTH: Operation = {
    "summary": "Liveness and state",
    "responses": _responses(
        _200="Warming or ready; on a GPU, `kernels` has the number of kernels compared with plain "
        "PyTorch and those replaced by it.",
        _500="The engine is lost.",
    ),
}
READY: Operation = {
    "summary": "Readiness",
    "responses": _responses(_200="Ready.", _500="The engine is lost.", _503="Warming."),
}
METRICS: Operation = {
    "summary": "Prometheus metrics",
    "responses": _responses(_200="Prometheus text format."),
}

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
    return {
        "openapi": "3.1.0",
        "info": {"title": "Parakeet", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


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
            text = f"{route.get('summary', '')}. {route.get('description', '')}"
            yield f"<p>{escape(text)}</p>"
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                yield f"<h3><code>{kind}</code></h3>"
                yield _table(_field(*each) for each in content["schema"]["properties"].items())
            responses = route.get("responses", {}).items()
            yield "<h3>Responses</h3>"
            yield _table((code, escape(each.get("description", ""))) for code, each in responses)


def _field(name: str, kind: Mapping[str, Any]) -> tuple[str, str]:
    choices = kind.get("enum") or kind.get("items", {}).get("enum")
    values = " or ".join(f"<code>{escape(str(choice))}</code>" for choice in choices or ())
    types = [each.get("type", "") for each in kind.get("anyOf", [kind])]
    return name, f"{values or ' or '.join(types)}. {escape(kind.get('description', ''))}"


def _table(rows: Iterator[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{text}" for name, text in rows)
    return f"<table>{cells}</table>"
