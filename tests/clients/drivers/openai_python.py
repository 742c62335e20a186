"""Calls of the package openai: each transcription in one of its styles."""

import io
from pathlib import Path
from typing import Any

import openai
from calls import parameters, serve


def _file(path: str, kind: str) -> Any:
    content = Path(path).read_bytes()
    if kind == "buffer":
        buffer = io.BytesIO(content)
        buffer.name = Path(path).name
        return buffer
    return {
        "path": Path(path),
        "opened": Path(path).open("rb"),
        "bytes": content,
        "pair": (Path(path).name, content),
        "typed": (Path(path).name, content, "audio/ogg"),
    }[kind]


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


async def call(  # noqa: PLR0911  # one return per style
    url: str, path: str, *, style: str = "sync", kind: str = "opened", **options: Any
) -> Any:
    common: dict[str, Any] = {"base_url": url, "api_key": "any", "max_retries": 0}
    options = {"model": "whisper-1", **options}
    if style == "async":
        async with openai.AsyncOpenAI(**common) as asynchronous:
            answer = await asynchronous.audio.transcriptions.create(
                file=_file(path, kind), **options
            )
            if options.get("stream"):
                return [_plain(event) async for event in answer]
            return _plain(answer)
    if style == "azure":
        common["api_version"] = "2025-04-01-preview"
    made = openai.AzureOpenAI if style == "azure" else openai.OpenAI
    with made(**common) as client:
        if style == "translation":
            return _plain(client.audio.translations.create(file=_file(path, kind), **options))
        if style == "models":
            listed = client.models.list().data
            return [_plain(client.models.retrieve(each.id)) for each in listed]
        if style == "raw":
            raw = client.audio.transcriptions.with_raw_response.create(
                file=_file(path, kind), **options
            )
            return {"status": raw.status_code, "id": raw.request_id, **_plain(raw.parse())}
        if style == "streaming response":
            with client.audio.transcriptions.with_streaming_response.create(
                file=_file(path, kind), **options
            ) as response:
                return "".join(response.iter_text())
        answer = client.audio.transcriptions.create(file=_file(path, kind), **options)
        return [_plain(each) for each in answer] if options.get("stream") else _plain(answer)


serve("openai", call, parameters(openai.resources.audio.Transcriptions.create))
