"""Calls of litellm.transcription and litellm.atranscription, as a provider with OpenAI's API."""

from pathlib import Path
from typing import Any

import litellm
from calls import parameters, serve

litellm.telemetry = False


async def call(url: str, path: str, *, style: str = "sync", **options: Any) -> Any:
    with Path(path).open("rb") as file:  # noqa: ASYNC230  # nothing else runs meanwhile
        arguments = {"model": "openai/whisper-1", "api_base": url, "api_key": "any", "file": file,
                 "max_retries": 0, **options}  # fmt: skip
        if style == "async":
            answer = await litellm.atranscription(**arguments)
            if options.get("stream"):
                return [event.model_dump(mode="json") async for event in answer]
        else:
            answer = litellm.transcription(**arguments)
            if options.get("stream"):
                return [event.model_dump(mode="json") for event in answer]
    return answer.model_dump(mode="json")


# Parameters of litellm's own machinery, which reach no server.
serve(
    "litellm",
    call,
    [
        *parameters(
            litellm.transcription.__wrapped__, "api_version", "custom_llm_provider", "base_url",
            "timeout", "user", "max_retries", "api_key", "api_base",
        ),
        "include",
    ],
)  # fmt: skip
