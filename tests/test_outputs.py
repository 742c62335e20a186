"""An answer that exceeds its transport is stored as requested, or is a clear error.

The servers are real ones on loopback: one for `PUT`, with various faults, and S3.
"""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web as web_

from loopback import (
    Behaviour,
    Listener,
    S3Server,
    WebServer,
    answers,
    drops,
    in_turn,
    redirects,
    stalls,
    takes,
)
from parakeet_worker import outputs
from parakeet_worker.errors import (
    InvalidRequest,
    OutputRefused,
    OutputUnreachable,
    ParakeetError,
    ResultTooLarge,
    S3NotConfigured,
)
from parakeet_worker.remote import s3
from parakeet_worker.request import Output, S3Output, UrlOutput
from parakeet_worker.settings import Settings

ANSWER: dict[str, object] = {"text": "größer " * 100}
BODY = json.dumps(ANSWER, ensure_ascii=False).encode()


def settings(**chosen: Any) -> Settings:
    return Settings.of(
        {
            "max_result_bytes": 100,
            "allow_private_addresses": True,
            "stall_timeout_seconds": 0.5,
            **chosen,
        }
    )


def settings_of(s3: S3Server, **chosen: Any) -> Settings:
    return settings(
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_endpoint=s3.endpoint,
        **{"s3_bucket": s3.bucket, **chosen},
    )


async def failure(output: Output | None, chosen: Settings) -> ParakeetError:
    with pytest.raises(ParakeetError) as raised:
        await outputs.store_if_large(ANSWER, output, chosen)
    return raised.value


# what fits


@pytest.mark.parametrize("output", [None, UrlOutput("http://127.0.0.1:9/a.json")])
async def test_an_answer_that_fits_is_sent_itself(output: Output | None) -> None:
    exactly = settings(max_result_bytes=len(BODY))
    assert await outputs.store_if_large(ANSWER, output, exactly) is ANSWER
    assert await outputs.store_if_large([ANSWER], output, settings(max_result_bytes=9999)) == [
        ANSWER
    ]


async def test_a_too_large_answer_without_an_output_is_an_error() -> None:
    # Counted in bytes as they are sent, not in letters.
    assert len(BODY) > len(json.dumps(ANSWER, ensure_ascii=False))
    error = await failure(None, settings(max_result_bytes=len(BODY) - 1))
    assert isinstance(error, ResultTooLarge)
    assert error.facts == {"limit": len(BODY) - 1, "bytes": len(BODY)}
    assert "output_url or output_s3" in str(error)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
async def test_what_json_has_no_word_for_is_never_an_answer(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        await outputs.store_if_large({"text": number}, None, settings())


# to an address


async def test_an_answer_is_stored_at_the_requested_url(web: WebServer) -> None:
    got: list[bytes] = []
    url = web.at("/a/talk.json", takes(got))
    result = await outputs.store_if_large(ANSWER, UrlOutput(f"{url}?sig=%2Fa+b&x=1"), settings())
    assert result == {"written_to": {"url": url, "bytes": len(BODY)}}
    assert got == [BODY]
    # The signature covers every letter.
    assert web.received == ["/a/talk.json?sig=%2Fa+b&x=1"]
    (headers,) = web.headers
    assert headers["method"] == "PUT"
    assert headers["Content-Type"] == "application/json"
    assert headers["Content-Length"] == str(len(BODY))


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_a_list_is_put_as_a_list(web: WebServer, status: int) -> None:
    got: list[bytes] = []
    output = UrlOutput(web.at("/list.json", takes(got, status)))
    await outputs.store_if_large([ANSWER, ANSWER], output, settings())
    assert json.loads(got[0]) == [ANSWER, ANSWER]


async def test_a_name_that_ends_in_gz_is_compressed(web: WebServer) -> None:
    got: list[bytes] = []
    url = web.at("/talk.json.gz", takes(got))
    result = await outputs.store_if_large(ANSWER, UrlOutput(f"{url}?sig=1"), settings())
    assert gzip.decompress(got[0]) == BODY
    assert len(got[0]) < len(BODY)
    assert web.headers[0]["Content-Type"] == "application/gzip"
    assert "Content-Encoding" not in web.headers[0]
    assert result == {"written_to": {"url": url, "bytes": len(BODY)}}


async def test_a_signature_that_ends_in_gz_is_no_name(web: WebServer) -> None:
    got: list[bytes] = []
    await outputs.store_if_large(
        ANSWER, UrlOutput(web.at("/talk.json", takes(got)) + "?key=a.gz"), settings()
    )
    assert got == [BODY]


async def test_an_answer_of_many_megabytes_arrives_whole(web: WebServer) -> None:
    got: list[bytes] = []
    large = {"text": "word " * 1_000_000}
    output = UrlOutput(web.at("/large.json", takes(got)))
    await outputs.store_if_large(large, output, settings(stall_timeout_seconds=20.0))
    assert json.loads(got[0]) == large


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(
    "first", [answers(503), answers(429), answers(408), answers(500), drops(), stalls()]
)
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_what_passes_is_outlived(web: WebServer, first: Behaviour, times: int) -> None:
    got: list[bytes] = []
    output = UrlOutput(web.at("/talk.json", in_turn(*[first] * times, takes(got))))
    await outputs.store_if_large(ANSWER, output, settings())
    assert got == [BODY]


@pytest.mark.usefixtures("without_waits")
async def test_an_answer_whose_receipt_is_lost_is_put_again_whole(web: WebServer) -> None:
    got: list[bytes] = []

    async def loses(request: web_.Request) -> web_.StreamResponse:
        await takes(got)(request)
        return await drops()(request)

    output = UrlOutput(web.at("/talk.json", in_turn(loses, takes(got))))
    await outputs.store_if_large(ANSWER, output, settings())
    assert got == [BODY, BODY]


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("always", [answers(503), drops()])
async def test_permanent_failures_are_not_retried(web: WebServer, always: Behaviour) -> None:
    url = web.at("/talk.json", always)
    error = await failure(UrlOutput(f"{url}?sig=secret"), settings())
    assert isinstance(error, OutputUnreachable)
    assert error.facts == {"place": url}
    assert "secret" not in str(error)
    # In production until the time limit; here this many attempts without a delay.
    assert len(web.received) >= 100


async def test_an_idle_server_times_out_within_the_limit(web: WebServer) -> None:
    output = UrlOutput(web.at("/talk.json", stalls()))
    error = await failure(output, settings(stall_timeout_seconds=20, delivery_timeout_seconds=0.5))
    assert isinstance(error, OutputUnreachable)
    assert "not done within 0.5 s" in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 411, 413])
async def test_a_refusal_is_a_request_error(web: WebServer, status: int) -> None:
    url = web.at("/talk.json", answers(status, "<Error>secret</Error>"))
    error = await failure(UrlOutput(f"{url}?sig=secret"), settings())
    assert isinstance(error, OutputRefused)
    assert f"the server answered {status}" in str(error)
    assert "secret" not in str(error)
    assert len(web.received) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_an_answer_is_not_sent_elsewhere(web: WebServer, status: int) -> None:
    got: list[bytes] = []
    elsewhere = web.at("/elsewhere", takes(got))
    output = UrlOutput(web.at("/talk.json", redirects(elsewhere, status)))
    assert isinstance(await failure(output, settings()), OutputRefused)
    assert got == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_a_private_address_is_forbidden_before_it_is_connected_to(
    listener: Listener, host: str
) -> None:
    output = UrlOutput(f"http://{host}:{listener.port}/talk.json?sig=secret")
    error = await failure(output, settings(allow_private_addresses=False))
    assert isinstance(error, OutputRefused)
    assert "address is not public" in str(error)
    assert "secret" not in str(error)
    assert listener.connections == 0


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("status", [507, 509, 520, 522, 529, 530, 599])
async def test_every_5xx_is_retried_until_success(web: WebServer, status: int) -> None:
    got: list[bytes] = []
    output = UrlOutput(web.at("/talk.json", in_turn(*[answers(status)] * 6, takes(got))))
    await outputs.store_if_large(ANSWER, output, settings())
    assert got == [BODY]


async def test_retry_after_is_honoured(web: WebServer) -> None:
    got: list[bytes] = []
    busy = answers(429, headers={"Retry-After": "1"})
    output = UrlOutput(web.at("/talk.json", in_turn(busy, takes(got))))
    started = time.monotonic()
    await outputs.store_if_large(ANSWER, output, settings())
    assert time.monotonic() - started > 0.95
    assert (len(web.received), got) == (2, [BODY])


async def test_a_retry_after_beyond_the_limit_is_an_immediate_error(web: WebServer) -> None:
    output = UrlOutput(web.at("/talk.json", answers(503, headers={"Retry-After": "900"})))
    error = await failure(output, settings(delivery_timeout_seconds=60.0))
    assert isinstance(error, OutputUnreachable)
    assert len(web.received) == 1


async def test_an_untrusted_certificate_is_named_and_not_tried_again(
    secure: WebServer,
) -> None:
    error = await failure(UrlOutput(f"{secure.address}/talk.json?sig=secret"), settings())
    assert isinstance(error, OutputRefused)
    assert "certificate" in str(error)
    assert "not a URL" not in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("content_type", ["text/plain; charset=utf-8", "application/json", ""])
async def test_the_content_type_of_the_request_is_sent(web: WebServer, content_type: str) -> None:
    got: list[bytes] = []
    output = UrlOutput(web.at("/talk.json", takes(got)), content_type)
    await outputs.store_if_large(ANSWER, output, settings())
    assert got == [BODY]
    assert web.headers[0].get("Content-Type", "") == content_type


# to S3


@pytest.mark.parametrize("content_type", ["text/plain", "", None])
async def test_the_content_type_of_the_request_is_kept_by_a_bucket(
    s3: S3Server, content_type: str | None
) -> None:
    await outputs.store_if_large(
        ANSWER, S3Output("typed.json", None, content_type), settings_of(s3)
    )
    kept = s3.content_type("transcripts/typed.json")
    assert kept == (content_type or ("application/json" if content_type is None else kept))


@pytest.mark.usefixtures("without_waits")
async def test_a_bucket_that_is_busy_takes_it_later(web: WebServer) -> None:
    got: list[bytes] = []
    busy = answers(429, "<Error><Code>TooManyRequests</Code></Error>")
    odd = answers(400, "<Error><Code>ThrottlingException</Code></Error>")
    web.at("/talks/transcripts/a.json", in_turn(busy, odd, drops(), takes(got)))
    chosen = settings(s3_access_key="a", s3_secret_key="b", s3_endpoint=web.address)
    await outputs.store_if_large(ANSWER, S3Output("a.json", "talks"), chosen)
    assert got[-1] == BODY


@pytest.mark.parametrize("key", ["talk.json", "a talk/über+alles?#%2F.json", "//twice.json"])
async def test_an_answer_is_written_to_a_bucket(s3: S3Server, key: str) -> None:
    anywhere = settings_of(s3, s3_output_prefix="*")
    result = await outputs.store_if_large(ANSWER, S3Output(key), anywhere)
    assert result == {"written_to": {"bucket": s3.bucket, "key": key, "bytes": len(BODY)}}
    assert s3.get(key) == BODY


@pytest.mark.parametrize(
    ("key", "became"),
    [
        ("talk.json", "transcripts/talk.json"),
        ("transcripts/talk.json", "transcripts/talk.json"),
        ("/talk.json", "transcripts//talk.json"),
        ("transcripts-of-others/talk.json", "transcripts/transcripts-of-others/talk.json"),
    ],
)
async def test_no_request_writes_outside_the_prefix(s3: S3Server, key: str, became: str) -> None:
    s3.put(key, b"before") if key != became else None
    result = await outputs.store_if_large(ANSWER, S3Output(key), settings_of(s3))
    assert result == {"written_to": {"bucket": s3.bucket, "key": became, "bytes": len(BODY)}}
    assert s3.get(became) == BODY
    assert key == became or s3.get(key) == b"before"


async def test_a_key_that_ends_in_gz_is_compressed(s3: S3Server) -> None:
    await outputs.store_if_large(
        ANSWER, S3Output("talk.json.gz", s3.bucket), settings_of(s3, s3_bucket=None)
    )
    assert gzip.decompress(s3.get("transcripts/talk.json.gz")) == BODY


async def test_a_presigned_address_of_s3_takes_an_answer(s3: S3Server) -> None:
    url = s3.presigned("signed/talk.json", "put_object")
    result = await outputs.store_if_large(
        ANSWER, UrlOutput(url), settings(stall_timeout_seconds=20.0)
    )
    assert result == {"written_to": {"url": url.partition("?")[0], "bytes": len(BODY)}}
    assert s3.get("signed/talk.json") == BODY


async def test_a_missing_bucket_is_a_request_error(s3: S3Server) -> None:
    error = await failure(S3Output("a.json", "elsewhere"), settings_of(s3))
    assert isinstance(error, OutputRefused)
    assert "s3://elsewhere/transcripts/a.json: NoSuchBucket" in str(error)


@pytest.mark.parametrize("bucket", ["no bucket", "a/b", "B"])
async def test_an_invalid_bucket_name_is_a_request_error(s3: S3Server, bucket: str) -> None:
    assert isinstance(await failure(S3Output("a.json", bucket), settings_of(s3)), OutputRefused)


async def test_a_missing_bucket_setting_is_an_error(s3: S3Server) -> None:
    error = await failure(S3Output("a.json"), settings_of(s3, s3_bucket=None))
    assert isinstance(error, InvalidRequest)
    assert error.facts["field"] == "output_s3.bucket"


async def test_without_credentials_s3_is_not_configured() -> None:
    assert isinstance(await failure(S3Output("a.json", "b"), settings()), S3NotConfigured)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (answers(403, "<Error><Code>AccessDenied</Code></Error>"), OutputRefused),
        (answers(503, "<Error><Code>SlowDown</Code></Error>"), OutputUnreachable),
        (drops(), OutputUnreachable),
        (stalls(), OutputUnreachable),
    ],
)
async def test_failing_and_refusing_services_have_different_errors(
    web: WebServer, behaviour: Behaviour, kind: type[ParakeetError]
) -> None:
    web.at("/talks/transcripts/a.json", behaviour)
    chosen = settings(
        s3_access_key="a",
        s3_secret_key="hush",
        s3_endpoint=web.address,
        delivery_timeout_seconds=2.0,
    )
    s3.client(chosen)  # whose libraries take a while to load, the first time
    error = await failure(S3Output("a.json", "talks"), chosen)
    assert isinstance(error, kind)
    assert error.facts == {"place": "s3://talks/transcripts/a.json"}
    assert "hush" not in str(error)


def test_every_way_to_write_is_chosen_by_the_kind_of_place() -> None:
    folder = Path(outputs.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", "s3", "url", "body"}
