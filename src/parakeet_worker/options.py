"""The values that the options of a request may have, for every surface that offers them."""

from typing import Literal, TypeAlias

Format: TypeAlias = Literal["json", "verbose_json", "text", "srt", "vtt", "tsv"]
Vad: TypeAlias = Literal["auto", "off"]
Attention: TypeAlias = Literal["pieces", "full"]
Channels: TypeAlias = Literal["mix", "separate"]
