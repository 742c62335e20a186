"""The clients, and the calls that the tests make with each of them."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import pytest
from relay import Exchange, Relay

from speech import SAMPLES, all_samples, sample

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
RECORDING = "en.ogg"
WAV = "bg.wav"
TEXTS = {entry.file: entry.text for entry in all_samples()}

Check: TypeAlias = Callable[[Any, str], object]
"""Whether a client's result is right, given the transcript of the recording."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a client."""

    option: str
    """What the call sets, as the page names it; a name in it is that of a parameter."""
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Check | None = None
    """None: the call fails."""
    effect: str = ""
    """What the check proves, where the option is honoured."""
    recording: str = RECORDING


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """A client and its calls."""

    name: str
    package: str
    command: tuple[str, ...]
    cases: tuple[Case, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    """Parameters without a case, and why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a client did in all of its calls."""

    client: Client
    version: str
    parameters: Sequence[str]
    outcomes: Sequence[Mapping[str, Any]]
    exchanges: Sequence[Sequence[Exchange]]


def available(*, present: bool) -> None:
    """Without a client's packages its tests are skipped, or fail if `CI` is set."""
    if not present and "CI" not in os.environ:
        pytest.skip("run scripts/setup clients")
    assert present, "run scripts/setup clients"


def run(client: Client, relay: Relay) -> Run:
    """Make all calls of a client, in one process."""
    calls = [
        {
            "url": f"{relay.url}/{quote(client.name, safe='')}-{number}/v1",
            "path": str(SAMPLES / case.recording),
            **case.options,
        }
        for number, case in enumerate(client.cases)
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it downloads a list of prices otherwise
    }
    ran = subprocess.run(
        client.command, input=json.dumps(calls), capture_output=True, text=True, check=False,
        cwd=HERE, env=environment, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    exchanges = [relay.exchanges.get(unquote(call["url"].split("/")[3]), []) for call in calls]
    return Run(client, answer["version"], answer["parameters"], answer["outcomes"], exchanges)


def text_is(result: Any, text: str) -> bool:
    """The text itself, or a document with it."""
    return bool((result["text"] if isinstance(result, dict) else result).strip() == text)


def streamed(result: Any, text: str) -> bool:
    """Deltas that concatenate to the text, and the last event with all of it."""
    deltas = "".join(event["delta"] for event in result[:-1])
    return deltas == text == result[-1]["text"]


def streamed_logprobs(result: Any, text: str) -> bool:
    tokens = [token["token"] for event in result[:-1] for token in event["logprobs"]]
    return streamed(result, text) and "".join(tokens) == text


def timed(result: Any, text: str, *, words: bool = True, segments: bool = False) -> bool:
    """Lists of words and of segments only where they were requested."""
    given_words, given_segments = result.get("words") or [], result.get("segments") or []
    joined = " ".join(word["word"] for word in given_words)
    sentences = " ".join(segment["text"].strip() for segment in given_segments)
    return bool(
        result["language"]
        and (joined if words else sentences) == text
        and bool(given_words) == words
        and bool(given_segments) == segments
    )


def with_logprobs(result: Any, text: str) -> bool:
    return "".join(token["token"] for token in result["logprobs"]) == text == result["text"]


def subtitles(result: Any, text: str, *, start: str) -> bool:
    content = result["text"] if isinstance(result, dict) else result
    return content.startswith(start) and text.split()[-1] in content


def speakers(result: Any, text: str) -> bool:
    joined = " ".join(segment["text"].strip() for segment in result["segments"])
    return joined == text and all(segment["speaker"] for segment in result["segments"])


def known(result: Any, text: str) -> bool:
    return speakers(result, text) and result["segments"][0]["speaker"] == "Ada"


def listed(result: Any, _: str) -> bool:
    return [each["id"] for each in result] == ["demo"]


words_only = timed
segments_only = partial(timed, words=False, segments=True)
both = partial(timed, segments=True)
srt = partial(subtitles, start="1\n00:00:0")
vtt = partial(subtitles, start="WEBVTT")

WORDS = "words with times"
SEGMENTS = "segments with times"
EVENTS = "`transcript.text.delta` events, then `transcript.text.done`"
LOGPROBS = "each token with its log-probability"
SAME = "the transcript"

ALIASES = (
    "whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15", "demo",
)  # fmt: skip
SERVER_VAD = {
    "type": "server_vad", "prefix_padding_ms": 300, "silence_duration_ms": 200, "threshold": 0.5,
}  # fmt: skip
VERBOSE: dict[str, Any] = {"response_format": "verbose_json"}
SPEAKERS: dict[str, Any] = {
    "model": "gpt-4o-transcribe-diarize",
    "response_format": "diarized_json",
}


def _openai(*, gpt_transcribe: bool) -> tuple[Case, ...]:
    """Every parameter of OpenAI's reference."""
    hints = (
        Case("keywords", {"keywords": ["Ada"]}, text_is),
        Case("languages (one)", {"languages": ["en"]}, text_is, "the same as `language`"),
        Case("languages (several)", {"languages": ["en", "de"]}, text_is),
    )
    return (
        *(Case(f'model="{name}"', {"model": name}, text_is, SAME) for name in ALIASES),
        Case('model="gpt-4o"', {"model": "gpt-4o"}),
        Case('language="en"', {"language": "en"}, text_is, SAME),
        Case('language="tlh"', {"language": "tlh"}),
        Case("prompt", {"prompt": "Names: Ada."}, text_is),
        Case("temperature=0", {"temperature": 0}, text_is, SAME),
        Case("temperature=0.5", {"temperature": 0.5}, text_is),
        Case('response_format="json"', {"response_format": "json"}, text_is, SAME),
        Case('response_format="text"', {"response_format": "text"}, text_is, "plain text"),
        Case('response_format="srt"', {"response_format": "srt"}, srt, "SubRip"),
        Case('response_format="vtt"', {"response_format": "vtt"}, vtt, "WebVTT"),
        Case('response_format="verbose_json"', VERBOSE, segments_only, SEGMENTS),
        Case('response_format="diarized_json"', SPEAKERS, speakers, "segments with speakers"),
        Case('timestamp_granularities=["word"] with verbose_json',
             {**VERBOSE, "timestamp_granularities": ["word"]}, words_only, WORDS),
        Case('timestamp_granularities=["segment"] with verbose_json',
             {**VERBOSE, "timestamp_granularities": ["segment"]}, segments_only, SEGMENTS),
        Case('timestamp_granularities=["word", "segment"] with verbose_json',
             {**VERBOSE, "timestamp_granularities": ["word", "segment"]}, both,
             "both"),
        Case('timestamp_granularities=["word"] with json',
             {"timestamp_granularities": ["word"]}, text_is),
        Case('include=["logprobs"]', {"include": ["logprobs"]}, with_logprobs, LOGPROBS),
        Case('include=["logprobs"] with verbose_json', {**VERBOSE, "include": ["logprobs"]},
             segments_only),
        Case('chunking_strategy="auto"', {"chunking_strategy": "auto"}, text_is, SAME),
        Case("chunking_strategy with server_vad", {"chunking_strategy": SERVER_VAD}, text_is),
        Case("stream=True", {"stream": True}, streamed, EVENTS),
        Case('stream=True with include=["logprobs"]', {"stream": True, "include": ["logprobs"]},
             streamed_logprobs, LOGPROBS),
        Case('stream=True with response_format="text"',
             {"stream": True, "response_format": "text"}, streamed, EVENTS),
        Case('stream=True with response_format="srt"', {"stream": True, "response_format": "srt"}),
        Case("known_speaker_names and known_speaker_references",
             {**SPEAKERS, "known_speaker_names": ["Ada"],
              "known_speaker_references": [f"data:audio/ogg;base64,{sample('en').base64}"]},
             known, "segments with names"),
        *(hints if gpt_transcribe else ()),
    )  # fmt: skip


OPENAI_PYTHON = Client(
    "openai (Python)",
    "openai",
    (str(PYTHON), "drivers/openai_python.py"),
    (
        Case("file as an open file", {"kind": "opened"}, text_is, SAME),
        Case("file as a path", {"kind": "path"}, text_is, SAME),
        Case("file as bytes", {"kind": "bytes"}, text_is, SAME),
        Case("file as io.BytesIO", {"kind": "buffer"}, text_is, SAME),
        Case("file as (name, bytes)", {"kind": "pair"}, text_is, SAME),
        Case("file as (name, bytes, type)", {"kind": "typed"}, text_is, SAME),
        *_openai(gpt_transcribe=True),
        Case("AsyncOpenAI", {"style": "async"}, text_is, SAME),
        Case("AsyncOpenAI with stream=True", {"style": "async", "stream": True}, streamed, EVENTS),
        Case("AsyncOpenAI with verbose_json", {"style": "async", **VERBOSE}, segments_only,
             SEGMENTS),
        Case("with_raw_response", {"style": "raw"},
             lambda result, text: text_is(result, text) and result["status"] == 200
             and result["id"], "status, and `request_id` of `X-Request-ID`"),
        Case("with_streaming_response", {"style": "streaming response", "response_format": "text"},
             text_is, "the body"),
        Case("extra_body with a field of this server", {"extra_body": {"on_damage": "refuse"}},
             text_is, "the field of the form"),
        Case("extra_body with another field", {"extra_body": {"temprature": 0}}),
        Case("extra_query with a field", {"extra_query": {"language": "en"}}, text_is,
             "the same as in the form"),
        Case("extra_query with another parameter", {"extra_query": {"verbosity": "1"}}),
        Case("extra_headers", {"extra_headers": {"X-Request-ID": "mine"}, "style": "raw"},
             lambda result, text: text_is(result, text) and result["id"] == "mine",
             "`X-Request-ID` is kept"),
        Case("timeout", {"timeout": 30}, text_is, "the client's own"),
        Case("extra_query with api-version", {"extra_query": {"api-version": "preview"}}, text_is),
        Case("AzureOpenAI", {"style": "azure"}),
        Case("models.list and models.retrieve", {"style": "models"}, listed, "the served model"),
        Case("translations.create", {"style": "translation"}),
    ),
)  # fmt: skip

OPENAI_NODE = Client(
    "openai (Node)",
    "openai",
    ("node", "drivers/openai_node.mjs"),
    (
        Case("file as a read stream", {"kind": "stream"}, text_is, SAME),
        Case("file by toFile", {"kind": "content"}, text_is, SAME),
        *_openai(gpt_transcribe=False),
        Case("withResponse", {"style": "response"},
             lambda result, text: text_is(result, text) and result["status"] == 200
             and result["id"], "status and headers"),
        Case("models.list and models.retrieve", {"style": "models"}, listed, "the served model"),
        Case("translations.create", {"style": "translation"}),
    ),
)  # fmt: skip


def ai_text(result: Any, text: str) -> bool:
    return bool(result["text"] == text and result["durationInSeconds"] > 0)


def ai_segments(result: Any, text: str) -> bool:
    parts = [segment["text"].strip() for segment in result["segments"]]
    return ai_text(result, text) and " ".join(parts) == text and result["language"] == "en"


def ai_words(result: Any, text: str) -> bool:
    return ai_segments(result, text) and len(result["segments"]) == len(text.split())


AI_NODE = Client(
    "AI SDK (Node)",
    "@ai-sdk/openai",
    ("node", "drivers/ai_node.mjs"),
    (
        Case("no options", {}, ai_text, SAME),
        Case('model="gpt-4o-transcribe"', {"model": "gpt-4o-transcribe"}, ai_text, SAME),
        Case('model="gpt-transcribe"', {"model": "gpt-transcribe"}, ai_text, SAME),
        Case('language="en"', {"language": "en"}, ai_segments, SEGMENTS),
        Case("languages (one)", {"languages": ["en"]}, ai_segments, "the same as `language`"),
        Case("languages (several)", {"languages": ["en", "de"]}, ai_segments),
        Case("keywords", {"keywords": ["Ada"]}, ai_segments),
        Case("prompt", {"prompt": "Names: Ada."}, ai_segments),
        Case("temperature=0", {"temperature": 0}, ai_segments, SEGMENTS),
        Case("temperature=0.5", {"temperature": 0.5}, ai_segments),
        Case('timestampGranularities=["segment"]', {"timestampGranularities": ["segment"]},
             ai_segments, SEGMENTS),
        Case('timestampGranularities=["word"]', {"timestampGranularities": ["word"]}, ai_words,
             "segments of one word each"),
        Case('timestampGranularities=["word"] with gpt-4o-transcribe',
             {"model": "gpt-4o-transcribe", "timestampGranularities": ["word"]}, ai_text),
        Case('include=["logprobs"] with gpt-4o-transcribe',
             {"model": "gpt-4o-transcribe", "include": ["logprobs"]}, ai_text,
             "sent; the client does not return them"),
        Case('include=["logprobs"] with whisper-1', {"include": ["logprobs"]}, ai_segments),
    ),
)  # fmt: skip


def lite_words(result: Any, text: str) -> bool:
    return " ".join(word["word"] for word in result["words"]) == text


LITELLM = Client(
    "litellm",
    "litellm",
    (str(PYTHON), "drivers/litellm_python.py"),
    (
        Case("file and model", {}, text_is, SAME),
        Case('model="openai/demo"', {"model": "openai/demo"}, text_is, SAME),
        Case("atranscription", {"style": "async"}, text_is, SAME),
        Case("language", {"language": "en"}, text_is, SAME),
        Case("prompt", {"prompt": "Names: Ada."}, text_is),
        Case("temperature=0", {"temperature": 0}, text_is, SAME),
        Case("temperature=0.5", {"temperature": 0.5}, text_is),
        *(Case(f'response_format="{name}"', {"response_format": name}, check, effect)
          for name, check, effect in (
              ("json", text_is, SAME), ("text", text_is, "plain text"), ("srt", srt, "SubRip"),
              ("vtt", vtt, "WebVTT"), ("verbose_json", text_is, SEGMENTS))),
        Case('timestamp_granularities=["word"] with verbose_json',
             {**VERBOSE, "timestamp_granularities": ["word"]}, lite_words, WORDS),
        Case('include=["logprobs"] with gpt-4o-transcribe',
             {"model": "openai/gpt-4o-transcribe", "include": ["logprobs"],
              "response_format": "json"}, text_is, "sent"),
        Case("stream=True with gpt-transcribe", {"model": "openai/gpt-transcribe", "stream": True},
             streamed, EVENTS),
        Case("stream=True with gpt-transcribe, asynchronous",
             {"model": "openai/gpt-transcribe", "stream": True, "style": "async"}, streamed,
             EVENTS),
        Case("languages (one) with gpt-transcribe",
             {"model": "openai/gpt-transcribe", "languages": ["en"]}, text_is,
             "the same as `language`"),
        Case("keywords with gpt-transcribe",
             {"model": "openai/gpt-transcribe", "keywords": ["Ada"]}, text_is),
    ),
)  # fmt: skip


def documents(result: Any, text: str) -> bool:
    return [each.strip() for each in result] == [text]


LANGCHAIN = Client(
    "langchain (OpenAIWhisperParser)",
    "langchain-community",
    (str(PYTHON), "drivers/langchain_python.py"),
    (
        Case("model", {}, documents, SAME),
        Case('model="gpt-4o"', {"model": "gpt-4o"}),
        Case("language", {"language": "en"}, documents, SAME),
        Case("prompt", {"prompt": "Names: Ada."}, documents),
        Case("temperature=0", {"temperature": 0}, documents, SAME),
        Case("temperature=0.5", {"temperature": 0.5}, documents),
        Case('response_format="json"', {"response_format": "json"}, documents, SAME),
        Case('response_format="text"', {"response_format": "text"}, documents, "plain text"),
        Case('response_format="verbose_json"', VERBOSE, documents, SAME),
        Case('response_format="srt"', {"response_format": "srt"},
             lambda result, text: srt(result[0], text), "SubRip"),
        Case('response_format="vtt"', {"response_format": "vtt"},
             lambda result, text: vtt(result[0], text), "WebVTT"),
    ),
)  # fmt: skip

GPT: dict[str, Any] = {"model": "gpt-transcribe"}


def _livekit(option: str, options: dict[str, Any], effect: str = SAME) -> Case:
    return Case(option, {"language": "bg", **options}, text_is, effect, WAV)


LIVEKIT = Client(
    "livekit-plugins-openai",
    "livekit-plugins-openai",
    (str(PYTHON), "drivers/livekit_python.py"),
    (
        _livekit("language", {}),
        _livekit("language (a list) with gpt-transcribe", {**GPT, "language": ["bg", "en"]}, ""),
        _livekit("detect_language", {"detect_language": True}),
        _livekit('model="whisper-1"', {"model": "whisper-1"}, "the language from `verbose_json`"),
        _livekit('model="gpt-transcribe"', GPT),
        _livekit("prompt", {"prompt": "Names: Ada."}, ""),
        _livekit("keywords with gpt-transcribe", {**GPT, "keywords": ["Ada"]}, ""),
        _livekit("temperature=0", {"temperature": 0}),
        _livekit("temperature=0.5", {"temperature": 0.5}, ""),
        Case("use_realtime", {"use_realtime": True}, recording=WAV),
    ),
    dict.fromkeys(("turn_detection", "noise_reduction_type"), "only for the realtime API"),
)


def frames(result: Any, text: str) -> bool:
    return [each["text"] for each in result] == [text]


def frames_with_logprobs(result: Any, text: str) -> bool:
    return frames(result, text) and with_logprobs(result[0]["result"], text)


def frames_with_segments(result: Any, text: str) -> bool:
    return frames(result, text) and all(
        segment["avg_logprob"] <= 0 for segment in result[0]["result"]["segments"]
    )


def _pipecat(
    option: str, options: dict[str, Any], check: Check = frames, effect: str = SAME
) -> Case:
    return Case(option, {"language": "bg", **options}, check, effect, WAV)


PIPECAT = Client(
    "pipecat-ai (OpenAISTTService)",
    "pipecat-ai",
    (str(PYTHON), "drivers/pipecat_python.py"),
    (
        _pipecat("language", {}),
        _pipecat('model="whisper-1"', {"model": "whisper-1"}),
        _pipecat("prompt", {"prompt": "Names: Ada."}, effect=""),
        _pipecat("keywords", {"keywords": ["Ada"]}, effect=""),
        _pipecat("temperature=0", {"temperature": 0.0}),
        _pipecat("temperature=0.5", {"temperature": 0.5}, effect=""),
        _pipecat("include_prob_metrics", {"include_prob_metrics": True}, frames_with_logprobs,
                 LOGPROBS),
        _pipecat("include_prob_metrics with whisper-1",
                 {"include_prob_metrics": True, "model": "whisper-1"}, frames_with_segments,
                 "`avg_logprob` of each segment"),
    ),
)  # fmt: skip

CLIENTS = (OPENAI_PYTHON, OPENAI_NODE, AI_NODE, LITELLM, LANGCHAIN, LIVEKIT, PIPECAT)
