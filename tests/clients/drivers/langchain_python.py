"""Calls of langchain's OpenAIWhisperParser."""

import time
from typing import Any

from calls import parameters, serve
from langchain_community.document_loaders.parsers.audio import OpenAIWhisperParser
from langchain_core.documents.base import Blob

time.sleep = lambda _: None  # it waits for 5 s after each failed attempt


def call(url: str, path: str, **options: Any) -> Any:
    parser = OpenAIWhisperParser(base_url=url, api_key="any", **options)
    documents = parser.parse(Blob.from_path(path))
    if not documents:
        raise RuntimeError("no document")
    return [document.page_content for document in documents]


serve(
    "langchain-community",
    call,
    parameters(OpenAIWhisperParser.__init__, "api_key", "base_url", "chunk_duration_threshold"),
)
