import asyncio
import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from loopback import (
    Behaviour,
    Listener,
    S3Server,
    WebServer,
    answers,
    babbles,
    chunks,
    drops,
    gzips,
    in_turn,
    redirects,
    sends,
    stalls,
    trickles,
)
from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    ParakeetError,
    RequestError,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
    TransientError,
)
from parakeet_worker.request import UrlSource
from parakeet_worker.settings import Settings
from parakeet_worker.sources import url

pytestmark = pytest.mark.usefixtures("without_waits")

CONTENT = os.urandom(200_000)
LIMIT = 250_000
SECRET = "X-Amz-Signature=hush"
OPEN = Settings(
    allow_private_addresses=True,
    max_audio_bytes=LIMIT,
    stall_timeout_seconds=5,
    download_timeout_seconds=30,
)
GUARDED = OPEN.model_copy(update={"allow_private_addresses": False, "stall_timeout_seconds": 1})


async def fetched(address: str, tmp_path: Path, settings: Settings = OPEN) -> bytes:
    target = tmp_path / "audio"
    await url.download(UrlSource(address), target, settings)
    return target.read_bytes()


async def refusal(address: str, tmp_path: Path, settings: Settings = OPEN) -> ParakeetError:
    with pytest.raises(ParakeetError) as caught:
        await fetched(address, tmp_path, settings)
    return caught.value


# What arrives


@pytest.mark.parametrize("behaviour", [sends(CONTENT), chunks(CONTENT), gzips(CONTENT)])
async def test_the_content_arrives_byte_for_byte(
    behaviour: Behaviour, web: WebServer, tmp_path: Path
) -> None:
    assert await fetched(web.at("/a.wav", behaviour), tmp_path) == CONTENT


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirect_is_followed(
    status: int, absolute: bool, web: WebServer, tmp_path: Path
) -> None:
    there = web.at("/there.wav", sends(CONTENT))
    here = web.at("/here", redirects(there if absolute else "/there.wav", status))
    assert await fetched(here, tmp_path) == CONTENT
    assert web.received == ["/here", "/there.wav"]


@pytest.mark.parametrize(
    ("written", "requested"),
    [
        ("/a%20b%2Bc%2Fd.wav?Expires=9&Signature=a%2Fb%2Bc%3D~%7E%3A", None),
        ("/a.wav?X-Amz-Credential=key%2F20260101%2Fus-east-1%2Fs3", None),
        ("/a.wav?q=a+b&empty=&flag#t=10", "/a.wav?q=a+b&empty=&flag"),
        ("/für dich.wav?q=ä b", "/f%C3%BCr%20dich.wav?q=%C3%A4+b"),
        ("/a.wav\r\nX-Injected: 1", "/a.wavX-Injected:%201"),
    ],
    ids=["signed", "pre-signed", "fragment", "not encoded", "line break"],
)
async def test_the_url_is_requested_without_re_encoding(
    written: str, requested: str | None, web: WebServer, tmp_path: Path
) -> None:
    await refusal(web.address + written, tmp_path)
    assert web.received == [requested or written]


@pytest.mark.parametrize(
    "to",
    [
        "/there/a%21b%28c%29%2Fd.wav?X=%27%27%7E&Signature=a%2Bb%2Fc%3D~&x=:,%3A%2C",
        "/there/a b.wav?q=ü",
        "?only=a%2Fquery",
        "there.wav?relative",
    ],
)
async def test_a_redirect_is_followed_literally(to: str, web: WebServer, tmp_path: Path) -> None:
    for absolute in (False, True):
        web.received.clear()
        location = web.address + to if absolute and to.startswith("/") else to
        await refusal(web.at("/here", in_turn(redirects(location), answers(404))), tmp_path)
        path, _, query = to.partition("?")
        expected = {"": "/here", "there.wav": "/there.wav"}.get(path, path)
        expected = expected.replace(" ", "%20") + f"?{query}".replace("ü", "%C3%BC")
        assert web.received[1] == expected


async def test_ten_redirects_are_followed(web: WebServer, tmp_path: Path) -> None:
    for hop in range(10):
        web.at(f"/{hop}", redirects(f"/{hop + 1}"))
    web.at("/10", sends(CONTENT))
    assert await fetched(f"{web.address}/0", tmp_path) == CONTENT


async def test_a_password_stays_with_its_server(web: WebServer, tmp_path: Path) -> None:
    async with WebServer() as other:
        there = other.at("/there.wav", sends(CONTENT))
        web.at("/same.wav", redirects(there))
        here = web.at("/here", redirects("/same.wav")).replace("//", "//caller:pass%40word@")
        assert await fetched(here, tmp_path) == CONTENT
        sent = [headers.get("Authorization") for headers in web.headers]
        assert sent == ["Basic " + b64encode(b"caller:pass@word").decode()] * 2
        assert "Authorization" not in other.headers[0]
        web.at("/here", redirects(there.replace("//", "//other:key@")))
        assert await fetched(here, tmp_path) == CONTENT
        assert other.headers[1]["Authorization"] == "Basic " + b64encode(b"other:key").decode()


async def test_the_worker_names_itself(web: WebServer, tmp_path: Path) -> None:
    await fetched(web.at("/a.wav", sends(CONTENT)), tmp_path)
    named = OPEN.model_copy(update={"user_agent": "radio/2 (+https://radio.test)"})
    await fetched(f"{web.address}/a.wav", tmp_path, named)
    agents = [headers["User-Agent"] for headers in web.headers]
    assert agents == ["parakeet-worker", "radio/2 (+https://radio.test)"]


@pytest.mark.parametrize("field", ["Content-Security-Policy", "Location"])
async def test_large_headers_are_read(field: str, web: WebServer, tmp_path: Path) -> None:
    there = "/there.wav?token=" + "x" * 30_000
    web.at("/there.wav", sends(CONTENT))
    large = sends(CONTENT, headers={field: "x" * 30_000})
    here = web.at("/here", redirects(there) if field == "Location" else large)
    assert await fetched(here, tmp_path) == CONTENT


async def test_a_presigned_url_of_s3_just_works(s3: S3Server, tmp_path: Path) -> None:
    s3.put("a talk/über+alles?.wav", CONTENT)
    assert await fetched(s3.presigned("a talk/über+alles?.wav"), tmp_path) == CONTENT


# Where requests may not reach

FORBIDDEN_HOSTS = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[::127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "localhost",
    "LOCALHOST",
    "①②⑦.⓪.⓪.①",
]
# Spellings that only some resolvers take for an address; it is enough that none gets through.
ODD_HOSTS = ["2130706433", "0177.0.0.1", "127.1", "0", "127.0.0.1."]


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS)
async def test_an_address_that_is_not_public_is_refused_before_a_connection(
    host: str, listener: Listener, tmp_path: Path
) -> None:
    error = await refusal(f"http://{host}:{listener.port}/a.wav", tmp_path, GUARDED)
    assert isinstance(error, SourceForbidden)
    assert listener.connections == 0


@pytest.mark.parametrize("host", ODD_HOSTS)
async def test_an_odd_spelling_of_loopback_is_refused_before_a_connection(
    host: str, listener: Listener, tmp_path: Path
) -> None:
    error = await refusal(f"http://{host}:{listener.port}/a.wav", tmp_path, GUARDED)
    assert error.code in ("source_forbidden", "invalid_request", "source_unreachable")
    assert listener.connections == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost", "①②⑦.⓪.⓪.①"]
)
async def test_an_operator_may_allow_private_addresses(
    host: str, listener: Listener, tmp_path: Path
) -> None:
    assert await fetched(f"http://{host}:{listener.port}/a.wav", tmp_path) == b"hello"
    assert listener.connections == 1


@pytest.mark.parametrize(
    "to",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/a.wav",
        "data:audio/wav;base64,UklGRg==",
        "http://",
        "http://[",
        "http://127.0.0.1:99999/",
    ],
)
async def test_a_redirect_away_from_http_is_refused(
    to: str, web: WebServer, tmp_path: Path
) -> None:
    error = await refusal(web.at("/here", redirects(to)), tmp_path)
    assert isinstance(error, SourceForbidden)
    assert web.received == ["/here"]


async def test_a_loop_of_redirects_is_refused(web: WebServer, tmp_path: Path) -> None:
    web.at("/there", redirects("/here"))
    error = await refusal(web.at("/here", redirects("/there")), tmp_path)
    assert isinstance(error, SourceForbidden)
    assert len(web.received) == 11


@pytest.mark.parametrize(
    "address",
    ["http://", "http:///a.wav", "http://127.0.0.1:99999/", "http://a\\@b/", "http://[::1]:x/"],
)
async def test_what_is_no_url_is_the_mistake_of_the_caller(address: str, tmp_path: Path) -> None:
    assert isinstance(await refusal(address, tmp_path), InvalidRequest)


# What a server may do


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (400, SourceRefused),
        (401, SourceRefused),
        (403, SourceRefused),
        (204, SourceRefused),
        (304, SourceRefused),
    ],
)
async def test_a_final_status_is_taken_at_its_word(
    status: int, kind: type[RequestError], web: WebServer, tmp_path: Path
) -> None:
    error = await refusal(web.at("/a.wav", answers(status)), tmp_path)
    assert type(error) is kind
    assert error.facts.get("status", status) == status
    assert len(web.received) == 1


def partly(message: str, body: bytes = CONTENT) -> Behaviour:
    return sends(body, 206, {"Content-Range": message})


@pytest.mark.parametrize(
    ("behaviour", "taken"),
    [
        (sends(CONTENT, 203), True),
        (partly(f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"), True),
        (partly(f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT) + 1}"), False),
        (partly(f"bytes 1-{len(CONTENT)}/{len(CONTENT)}"), False),
        (partly(f"bytes 0-{len(CONTENT) - 1}/*"), False),
        (partly("nonsense"), False),
        (partly(f"bytes 0-1/{'9' * 5000}"), False),
        (sends(CONTENT, 206), False),
    ],
    ids=[
        "203",
        "206 of the whole",
        "a part",
        "another part",
        "of unknown",
        "odd",
        "of 5,000 digits",
        "no range",
    ],
)
async def test_an_unusual_status_is_taken_where_it_means_the_whole(
    behaviour: Behaviour, taken: bool, web: WebServer, tmp_path: Path
) -> None:
    address = web.at("/a.wav", behaviour)
    if taken:
        assert await fetched(address, tmp_path) == CONTENT
    else:
        assert isinstance(await refusal(address, tmp_path), SourceRefused)


async def test_an_untrusted_certificate_is_named_and_not_tried_again(
    secure: WebServer, tmp_path: Path
) -> None:
    error = await refusal(f"{secure.address}/a.wav?{SECRET}", tmp_path)
    assert isinstance(error, SourceRefused)
    assert "certificate" in str(error)
    assert "self" in str(error)
    assert "hush" not in str(error)
    assert secure.received == []


async def test_an_untrusted_certificate_after_a_redirect_is_named(
    web: WebServer, secure: WebServer, tmp_path: Path
) -> None:
    error = await refusal(web.at("/here", redirects(f"{secure.address}/a.wav")), tmp_path)
    assert isinstance(error, SourceRefused)
    assert "certificate" in str(error)


@pytest.mark.parametrize("status", [507, 509, 520, 521, 522, 525, 529, 530, 599])
async def test_every_5xx_is_retried(status: int, web: WebServer, tmp_path: Path) -> None:
    healing = web.at("/a.wav", in_turn(answers(status), answers(status), sends(CONTENT)))
    assert await fetched(healing, tmp_path) == CONTENT
    assert isinstance(await refusal(web.at("/b.wav", answers(status)), tmp_path), SourceUnreachable)


@pytest.mark.parametrize("wait", ["-1", "soon", "Mon, 01 Jan 2020 00:00:00 +" + "9" * 30])
async def test_a_retry_after_that_is_none_is_ignored(
    wait: str, web: WebServer, tmp_path: Path
) -> None:
    busy = answers(503, headers={"Retry-After": wait})
    assert await fetched(web.at("/a.wav", in_turn(busy, sends(CONTENT))), tmp_path) == CONTENT


GARBLED = {
    "longer than declared": b"Content-Length: 10\r\nConnection: close\r\n\r\n",
    "longer, kept alive": b"Content-Length: 10\r\n\r\n",
    "no chunks": b"Transfer-Encoding: chunked\r\n\r\n",
    "no header": b"",
    "no length": b"Content-Length: x",
    "colours": b"X: \x1b[31m\x00",
}


@pytest.mark.parametrize("case", GARBLED)
async def test_an_error_is_one_short_line_without_the_content(
    case: str, web: WebServer, tmp_path: Path
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + GARBLED[case] + b"secret" * 30_000
    error = await refusal(web.at("/a.wav", babbles(answer)), tmp_path)
    reason = str(error).partition("/a.wav: ")[2]
    assert 0 < len(reason) <= 200
    assert reason.isprintable()
    assert "secret" not in reason


@pytest.mark.parametrize(
    "fault",
    [
        answers(500),
        answers(502),
        answers(503),
        answers(504),
        answers(429),
        drops(),
        drops(CONTENT[:5000], declared=len(CONTENT)),
        babbles(b"220 mail.example.com ESMTP\r\n"),
    ],
    ids=["500", "502", "503", "504", "429", "dropped", "dropped amid the body", "not HTTP"],
)
async def test_a_passing_fault_heals_and_a_lasting_one_is_transient(
    fault: Behaviour, web: WebServer, tmp_path: Path
) -> None:
    healing = web.at("/healing.wav", in_turn(fault, fault, sends(CONTENT)))
    assert await fetched(healing, tmp_path) == CONTENT
    error = await refusal(web.at("/broken.wav", fault), tmp_path)
    assert isinstance(error, SourceUnreachable)
    assert web.received.count("/broken.wav") >= 3


async def test_what_a_failed_attempt_left_is_not_in_the_file(
    web: WebServer, tmp_path: Path
) -> None:
    dropped = drops(b"x" * 5000, declared=5001)
    short = sends(CONTENT[:100])
    assert await fetched(web.at("/a.wav", in_turn(dropped, short)), tmp_path) == CONTENT[:100]


async def test_a_refused_connection_is_unreachable(listener: Listener, tmp_path: Path) -> None:
    port = listener.port
    await listener.__aexit__(None, None, None)
    assert isinstance(await refusal(f"http://127.0.0.1:{port}/a.wav", tmp_path), SourceUnreachable)


async def test_an_unresolvable_name_is_unreachable(tmp_path: Path) -> None:
    error = await refusal(f"http://{'a' * 64}.example/a.wav", tmp_path)
    assert isinstance(error, SourceUnreachable)


@pytest.mark.parametrize("first", [b"", CONTENT[:5000]], ids=["immediately", "within the body"])
async def test_an_idle_server_times_out(first: bytes, web: WebServer, tmp_path: Path) -> None:
    impatient = OPEN.model_copy(update={"stall_timeout_seconds": 0.2})
    error = await refusal(web.at("/a.wav", stalls(first)), tmp_path, impatient)
    assert isinstance(error, SourceUnreachable)
    assert "no data received for 0.2 s" in str(error)


@pytest.mark.parametrize(
    "behaviour",
    [stalls(), stalls(CONTENT[:5000]), trickles(CONTENT, 0.05)],
    ids=["stalls", "stalls amid the body", "trickles"],
)
async def test_a_download_ends_at_its_time_limit(
    behaviour: Behaviour, web: WebServer, tmp_path: Path
) -> None:
    brief = OPEN.model_copy(update={"download_timeout_seconds": 2.0})
    error = await refusal(web.at("/a.wav", behaviour), tmp_path, brief)
    assert isinstance(error, SourceTimeout)
    assert error.facts["limit"] == 2.0
    assert await asyncio.wait_for(web.left.wait(), 60), "the connection is closed"


# Limits


@pytest.mark.parametrize(
    ("behaviour", "known"),
    [
        (sends(bytes(LIMIT + 1)), True),
        (chunks(CONTENT, times=50), False),
        (gzips(bytes(LIMIT + 1)), False),
        (gzips(bytes(1 << 26)), False),
    ],
    ids=["declared", "without end", "gzip", "gzip bomb"],
)
async def test_a_body_over_the_cap_is_refused(
    behaviour: Behaviour, known: bool, web: WebServer, tmp_path: Path
) -> None:
    error = await refusal(web.at("/a.wav", behaviour), tmp_path)
    assert isinstance(error, AudioTooLarge)
    assert error.facts["limit"] == LIMIT
    assert error.facts.get("bytes") == (LIMIT + 1 if known else None)
    assert len(web.received) == 1
    left = tmp_path / "audio"
    assert not left.exists() or left.stat().st_size <= LIMIT


async def test_a_body_exactly_at_the_cap_is_taken(web: WebServer, tmp_path: Path) -> None:
    assert len(await fetched(web.at("/a.wav", chunks(bytes(LIMIT))), tmp_path)) == LIMIT


async def test_a_cancelled_download_closes_its_connection(web: WebServer, tmp_path: Path) -> None:
    download = asyncio.create_task(fetched(web.at("/a.wav", stalls(CONTENT[:100])), tmp_path))
    await asyncio.wait_for(web.reached.wait(), 60)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    assert await asyncio.wait_for(web.left.wait(), 60)


# Secrets

LEAKS: dict[str, Callable[[], Behaviour]] = {
    "not found": lambda: answers(404),
    "refused": lambda: answers(403),
    "broken": lambda: answers(503),
    "dropped": lambda: drops(),
    "cut": lambda: drops(b"x", declared=10),
    "not HTTP": lambda: babbles(b"hello\r\n\r\n"),
    "too large": lambda: sends(bytes(LIMIT + 1)),
    "stalled": lambda: stalls(),
    "away": lambda: redirects(f"ftp://host/?{SECRET}"),
    "invalid": lambda: redirects(f"http://:bad:/?{SECRET}"),
    "loop": lambda: redirects(f"/a.wav?{SECRET}"),
    "forbidden": lambda: sends(b""),
}


@pytest.mark.parametrize("case", LEAKS)
async def test_no_error_contains_query_or_credentials_of_a_url(
    case: str, web: WebServer, tmp_path: Path
) -> None:
    address = web.at("/a.wav", LEAKS[case]()).replace("//", "//caller:password@")
    settings = GUARDED if case == "forbidden" else OPEN
    brief = settings.model_copy(update={"stall_timeout_seconds": 0.2})
    error = await refusal(f"{address}?{SECRET}", tmp_path, brief)
    assert isinstance(error, RequestError | TransientError)
    reported = str(error.document())
    assert "/a.wav" in reported or case == "too large"
    assert "hush" not in reported
    assert "password" not in reported
