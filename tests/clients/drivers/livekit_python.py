"""Calls of LiveKit's OpenAI plugin: frames of one utterance."""

import os
import sys
import wave
from typing import Any

from calls import parameters, serve
from livekit import rtc
from livekit.agents import APIConnectOptions, utils
from livekit.plugins import openai


async def call(url: str, path: str, **options: Any) -> Any:
    with wave.open(path) as recording:
        content = recording.readframes(recording.getnframes())
        rate, channels = recording.getframerate(), recording.getnchannels()
    frame = rtc.AudioFrame(content, rate, channels, len(content) // 2 // channels)
    engine = openai.STT(base_url=url, api_key="any", **options)
    attempts = APIConnectOptions(max_retry=0, timeout=30)
    if engine.capabilities.streaming:
        async with (
            utils.http_context.open(),
            engine.stream(conn_options=attempts) as stream,
        ):
            stream.push_frame(frame)
            stream.end_input()
            return [event.alternatives[0].text async for event in stream if event.alternatives]
    event = await engine.recognize(frame, conn_options=attempts)
    await engine._client.close()  # it has no public method for this
    first = event.alternatives[0]
    return {"text": first.text, "language": str(first.language)}


serve(
    "livekit-plugins-openai",
    call,
    parameters(openai.STT.__init__, "api_key", "base_url", "client", "vad"),
)
# A thread of its native library sometimes panics while the interpreter ends.
sys.stdout.flush()
os._exit(0)
