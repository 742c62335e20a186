"""Calls of pipecat's OpenAISTTService: one utterance."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from calls import serve
from pipecat.frames.frames import ErrorFrame
from pipecat.services.openai.stt import OpenAISTTService

_OWN = ("extra",)


async def call(url: str, path: str, *, include_prob_metrics: bool = False, **settings: Any) -> Any:
    service = OpenAISTTService(
        base_url=url,
        api_key="any",
        include_prob_metrics=include_prob_metrics,
        settings=OpenAISTTService.Settings(**settings),
    )
    frames = [frame async for frame in service.run_stt(Path(path).read_bytes())]
    for frame in frames:
        if isinstance(frame, ErrorFrame):
            raise RuntimeError(frame.error)  # noqa: TRY004  # what the client reports
    await service._client.close()
    return [
        {"text": frame.text, "result": frame.result.model_dump(mode="json")} for frame in frames
    ]


serve(
    "pipecat-ai",
    call,
    [
        "include_prob_metrics",
        *(each.name for each in fields(OpenAISTTService.Settings) if each.name not in _OWN),
    ],
)
