import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from parakeet_worker.errors import AudioEmpty, AudioTooLarge, InvalidRequest
from parakeet_worker.request import InlineSource
from parakeet_worker.sources import inline

CONTENT = bytes(range(256)) * 2
ENCODED = base64.b64encode(CONTENT).decode()


def written(text: str, tmp_path: Path, max_bytes: int = 1000) -> bytes:
    target = tmp_path / "audio"
    inline.write(InlineSource(text), target, max_bytes)
    return target.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        ENCODED,
        base64.encodebytes(CONTENT).decode(),
        ENCODED[:100] + "\r\n" + ENCODED[100:] + "\r\n",
        f"data:audio/wav;base64,{ENCODED}",
        f"data:;base64,{ENCODED}",
        f"data:audio/ogg;codecs=opus;base64,{ENCODED}",
        f"data:audio/wav;base64,\n{base64.encodebytes(CONTENT).decode()}",
        f"DATA:Audio/WAV;BASE64,{ENCODED}",
        f"  \n data:audio/wav;base64,{ENCODED}",
        f"data:audio/wav; base64, {ENCODED}",
        f"data:video/webm;codecs=vp8,opus;base64,{ENCODED}",
        f'data:video/webm;codecs="vp8,opus";base64,{ENCODED}',
        f'data:audio/ogg;name="a;base64,b";codecs="opus";base64,{ENCODED}',
        f"data:audio/wav;base64,{quote(ENCODED, safe='')}",
        base64.urlsafe_b64encode(CONTENT).decode(),
        base64.urlsafe_b64encode(CONTENT).decode().rstrip("="),
        f"data:audio/wav;base64,{base64.urlsafe_b64encode(CONTENT).decode()}",
    ],
    ids=[
        *("plain", "MIME lines", "CRLF", "data URI", "no type", "parameters", "lines in URI"),
        *("upper case", "blanks before", "blanks within", "commas", "quoted commas"),
        *("quoted header", "percent signs", "URL-safe", "no padding", "URL-safe in URI"),
    ],
)
def test_base64_is_written_down_byte_for_byte(text: str, tmp_path: Path) -> None:
    assert written(text, tmp_path) == CONTENT


@pytest.mark.parametrize(
    "text",
    [
        "YWJj-_===",
        "YWJj-",
        "YWJj*ZGVm",
        "YWJjé",
        "YWJj\x00ZGVm",
        "YWJj\u2028ZGVm",
        "%59%57%4A%6A",
        "YWJ",
        "YWJjZ",
        "YWJjZA=",
        "YWJjZA===",
        "YWJj=",
        "YW=JjZA",
        "=YWJj",
        "YWJj====",
        "====",
    ],
)
def test_what_is_not_base64_is_refused_by_the_name_of_the_field(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        written(text, tmp_path)
    assert caught.value.facts["field"] == "audio_base64"
    assert "not base64" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["data:audio/wav,RIFF", "data:audio/wav;base64", f"data:audio/wav;base64;{ENCODED}", "data:"],
)
def test_a_data_uri_that_is_not_base64_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="data:TYPE;base64,DATA"):
        written(text, tmp_path)


@pytest.mark.parametrize("text", ["", "\r\n", "data:audio/wav;base64,"])
def test_no_bytes_at_all_is_empty_audio(text: str, tmp_path: Path) -> None:
    with pytest.raises(AudioEmpty):
        written(text, tmp_path)


@pytest.mark.parametrize("size", [510, 511, 512])
def test_the_cap_is_exact_whatever_the_padding(size: int, tmp_path: Path) -> None:
    text = base64.b64encode(CONTENT[:size]).decode()
    assert written(text, tmp_path, max_bytes=size) == CONTENT[:size]
    with pytest.raises(AudioTooLarge) as caught:
        written(text, tmp_path, max_bytes=size - 1)
    assert caught.value.facts == {"limit": size - 1, "bytes": size}


def test_line_breaks_do_not_count_towards_the_cap(tmp_path: Path) -> None:
    assert written("\n".join(ENCODED), tmp_path, max_bytes=len(CONTENT)) == CONTENT


def test_what_is_far_over_the_cap_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(AudioTooLarge):
        written("*" * 4000, tmp_path)
