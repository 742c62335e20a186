"""What every route takes and answers, for `/openapi.json`, and as a page that needs no network."""

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, TypeAlias

from parakeet_worker.version import __version__
from parakeet_worker.wire import native, openai

Said: TypeAlias = dict[str, Any]
"""An operation, in OpenAPI's words."""

# Not asked of the installed package: on a volume the sources are run as they lie.

_JSON = "application/json"
_FORM = "multipart/form-data"

FIELDS = {
    "audio_base64": "The audio itself, as base64 or as a data URI.",
    "audio_url": "An http or https address, or s3://bucket/key.",
    "audio_s3": "An object in a bucket.",
    "audio_format": "What the file is: mp3 as a hint, s16le:16000 for samples without a header.",
    "clip": "The part that is wanted, in seconds.",
    "format": "How to write the answer.",
    "timestamp": "Word, segment and token times in the format json.",
    "debug": "How the words were come by, and the seconds of each stage.",
    "vad": "auto leaves silence out; off listens to everything.",
    "attention": "full hears up to 24 minutes in one piece.",
    "channels": "separate transcribes each channel by itself.",
    "track": "Which audio track, by number from 1 or by language; all transcribes each by itself.",
    "on_damage": "refuse makes an error of a part that is missing or damaged.",
    "language": "What is spoken, as a code or in English; a hint.",
    "stream": "Segments as server-sent events, the whole last.",
    "progress": "Events that say how far it is; in a stream.",
    "output_url": "Where an answer goes that is too large to be sent.",
    "output_s3": "The same, in a bucket.",
    "output_content_type": "The Content-Type that is sent there; empty sends none.",
}
_FILE = {"type": "string", "format": "binary", "description": "The audio file."}


def _own(*, form: bool) -> dict[str, Any]:
    """The schema of the worker's own request, as JSON or as a form."""
    found = native.schema()
    kinds = found.get("$defs", {})
    properties = {
        name: {**_plain(kind, kinds), "description": FIELDS[name]}
        for name, kind in found["properties"].items()
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
        "description": "Several recordings, each an object like this one.",
    }  # fmt: skip
    return {
        "type": "object",
        "properties": {**properties, "inputs": inputs},
        "additionalProperties": False,
    }


def _plain(kind: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A field's type without the null that stands for its absence, and without references."""
    options = [option for option in kind.get("anyOf", [kind]) if option.get("type") != "null"]
    option = options[0]
    if "$ref" in option:
        option = kinds[option["$ref"].rpartition("/")[2]]
        inner = {name: _plain(each, kinds) for name, each in option["properties"].items()}
        return {"type": "object", "properties": inner}
    kept = {name: option[name] for name in ("type", "enum", "pattern", "minimum") if name in option}
    return {**kept, **({"default": kind["default"]} if kind.get("default") is not None else {})}


def _openai(file: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "file": file,
            "model": {"type": "string", "description": "The served model, or one of "
                      f"{', '.join(openai.ALIASES)}, which mean the same."},
            "language": {"type": "string", "description": "A hint."},
            "track": {"type": "string", "description": FIELDS["track"]},
            "on_damage": {
                "type": "string", "enum": ["warn", "refuse"], "default": "warn",
                "description": FIELDS["on_damage"],
            },
            "response_format": {
                "type": "string", "enum": ["json", "text", "srt", "verbose_json", "vtt"],
                "default": "json",
            },
            "timestamp_granularities[]": {
                "type": "array", "items": {"type": "string", "enum": ["word", "segment"]},
                "description": "With verbose_json.",
            },
            "temperature": {"type": "number", "enum": [0], "default": 0},
            "chunking_strategy": {"type": "string", "enum": ["auto"]},
            "stream": {"type": "boolean", "default": False,
                       "description": "Events transcript.text.delta, the last one "
                       "transcript.text.done."},
        },
        "required": ["file"],
        "additionalProperties": False,
    }  # fmt: skip


def _body(**kinds: Any) -> dict[str, Any]:
    content = {
        {"form": _FORM, "document": _JSON}[kind]: {"schema": schema}
        for kind, schema in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def _answers(**said: str) -> Said:
    return {code[1:]: {"description": meaning} for code, meaning in said.items()}


_FAILURES = {
    "_400": "The request must be changed: `field` says where.",
    "_401": "A key is wanted.",
    "_408": "The upload stood still, or took too long.",
    "_413": "Too large, or too long.",
    "_415": "It is no audio.",
    "_500": "The worker is at fault.",
    "_503": "Busy or warming: try again after `Retry-After`.",
}

TRANSCRIBE: Said = {
    "summary": "Transcribe, in the worker's own words",
    "description": "As the input of a queue job, or as a form with the audio as its file.",
    **_body(form=_own(form=True), document=_own(form=False)),
    "responses": _answers(_200="The transcript, or events.", **_FAILURES),
}
TRANSCRIPTIONS: Said = {
    "summary": "Transcribe, in OpenAI's words",
    "description": "As OpenAI's clients send it. Other parameters of theirs are refused by name.",
    **_body(
        form=_openai(_FILE),
        document=_openai({"type": "string", "description": "Base64, a data URI, or an address."}),
    ),
    "responses": _answers(_200="The transcript, or events.", **_FAILURES),
}
TRANSLATIONS: Said = {
    "summary": "Refused: the model does not translate",
    "responses": _answers(_404="The model transcribes and does not translate."),
}
RENDER: Said = {
    "summary": "Words of an earlier answer as text, srt, vtt or tsv",
    "description": "`words` as they stand in verbose_json, and the `format`.",
    **_body(document={
        "type": "object",
        "properties": {
            "format": {"type": "string", "enum": ["text", "srt", "vtt", "tsv"]},
            "words": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["format", "words"],
    }),
    "responses": _answers(_200="The content of the file.", _400="The request must be changed."),
}  # fmt: skip
MODELS: Said = {"summary": "The model, as OpenAI lists them", "responses": _answers(_200="A list.")}
MODEL: Said = {
    "summary": "One model",
    "responses": _answers(_200="It is served.", _404="It is not served here."),
}
PING: Said = {
    "summary": "For RunPod's load balancer",
    "responses": _answers(_200="Ready.", _204="Warming.", _500="The engine is lost."),
}
HEALTH: Said = {
    "summary": "Whether the process is alive, and what it is doing",
    "responses": _answers(
        _200="Warming or ready; under `kernels`, on a GPU, how many were compared with plain "
        "PyTorch, and which were replaced by it.",
        _500="The engine is lost.",
    ),
}
READY: Said = {
    "summary": "Whether requests are answered",
    "responses": _answers(_200="They are.", _500="The engine is lost.", _503="Warming."),
}
METRICS: Said = {
    "summary": "Figures for Prometheus",
    "responses": _answers(_200="Its text format."),
}

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:.95em}table{border-collapse:collapse}"
    "td{padding:.15rem .8rem .15rem 0;vertical-align:top}h2{margin-top:2.5rem}"
)


def document(doors: Mapping[tuple[str, str], Said]) -> dict[str, Any]:
    """The OpenAPI document of doors by method and path."""
    paths: dict[str, dict[str, Said]] = {}
    for (method, path), said in doors.items():
        names = re.findall(r"\{(\w+):path\}", path)
        given = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
        operation = {**said, **({"parameters": given} if given else {})}
        paths.setdefault(path.replace(":path", ""), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Parakeet", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document to read: plain HTML, without scripts or anything from elsewhere."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<link rel="icon" href="page/icon.svg">'
        '<meta name="viewport" content="width=device-width"><title>Parakeet: API</title>'
        f"<style>{_STYLE}</style><h1>Parakeet: API</h1>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>. '
        "Where the operator has set keys, send one as "
        "<code>Authorization: Bearer KEY</code>.</p>" + "".join(_routes(document)) + "</html>"
    )


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            said = f"{route.get('summary', '')}. {route.get('description', '')}"
            yield f"<p>{escape(said)}</p>"
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                yield f"<h3><code>{kind}</code></h3>"
                yield _table(_field(*each) for each in content["schema"]["properties"].items())
            responses = route.get("responses", {}).items()
            yield "<h3>Answers</h3>"
            yield _table((code, escape(each.get("description", ""))) for code, each in responses)


def _field(name: str, kind: Mapping[str, Any]) -> tuple[str, str]:
    choices = kind.get("enum") or kind.get("items", {}).get("enum")
    said = " or ".join(f"<code>{escape(str(choice))}</code>" for choice in choices or ())
    return name, f"{said or kind.get('type', '')}. {escape(kind.get('description', ''))}"


def _table(rows: Iterator[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{said}" for name, said in rows)
    return f"<table>{cells}</table>"
