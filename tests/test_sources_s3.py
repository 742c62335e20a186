import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from loopback import (
    Behaviour,
    Listener,
    S3Server,
    WebServer,
    answers,
    chunks,
    drops,
    gzips,
    in_turn,
    sends,
    stalls,
    trickles,
)
from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    InvalidSetting,
    ParakeetError,
    S3NotConfigured,
    ScratchFull,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from parakeet_worker.remote import s3
from parakeet_worker.request import Request, S3Source
from parakeet_worker.scratch import Scratch
from parakeet_worker.settings import Settings
from parakeet_worker.sources import s3 as source
from parakeet_worker.wire.native import parse
from parakeet_worker.worker import open_pipeline
from test_scratch import full_disk

pytestmark = pytest.mark.usefixtures("without_waits")

CONTENT = os.urandom(600_000)
KEYS = ["talk.wav", "a talk/über+alles?#%2F.wav", "deep/er/talk.wav", "//twice.wav"]
DENIED = "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"


def settings(endpoint: str, **chosen: Any) -> Settings:
    return Settings(
        **{
            "s3_access_key": S3Server.access_key,
            "s3_secret_key": S3Server.secret_key,
            "s3_bucket": S3Server.bucket,
            "s3_endpoint": endpoint,
            "max_audio_bytes": len(CONTENT),
            **chosen,
        }
    )


async def fetched(requested: S3Source, tmp_path: Path, chosen: Settings) -> bytes:
    target = tmp_path / "audio"
    await source.download(requested, target, chosen)
    return target.read_bytes()


async def refusal(requested: S3Source, tmp_path: Path, chosen: Settings) -> ParakeetError:
    with pytest.raises(ParakeetError) as caught:
        await fetched(requested, tmp_path, chosen)
    return caught.value


def only_source(payload: dict[str, Any]) -> S3Source:
    (request,) = parse(payload).requests
    assert isinstance(request, Request)
    assert isinstance(request.source, S3Source)
    return request.source


@pytest.mark.parametrize("key", KEYS)
async def test_an_object_arrives_byte_for_byte_however_it_is_named(
    key: str, s3: S3Server, tmp_path: Path
) -> None:
    s3.put(key, CONTENT)
    elsewhere = settings(s3.endpoint, s3_bucket="another")
    usual = settings(s3.endpoint)
    named = {"key": key, "bucket": s3.bucket}
    assert await fetched(only_source({"audio_s3": {"key": key}}), tmp_path, usual) == CONTENT
    assert await fetched(only_source({"audio_s3": named}), tmp_path, elsewhere) == CONTENT
    address = {"audio_url": f"s3://{s3.bucket}/{key}"}
    assert await fetched(only_source(address), tmp_path, elsewhere) == CONTENT


@pytest.mark.parametrize(
    "missing", [["S3_ACCESS_KEY"], ["S3_SECRET_KEY"], ["S3_ACCESS_KEY", "S3_SECRET_KEY"]]
)
async def test_missing_settings_are_named(missing: list[str], s3: S3Server, tmp_path: Path) -> None:
    unset = {name.lower(): None for name in missing}
    error = await refusal(S3Source("talk.wav"), tmp_path, settings(s3.endpoint, **unset))
    assert isinstance(error, S3NotConfigured)
    assert error.facts["missing"] == missing


async def test_without_any_bucket_the_request_must_name_one(s3: S3Server, tmp_path: Path) -> None:
    error = await refusal(S3Source("talk.wav"), tmp_path, settings(s3.endpoint, s3_bucket=None))
    assert isinstance(error, InvalidRequest)
    assert error.facts["field"] == "audio_s3.bucket"


async def test_a_missing_key_is_named(s3: S3Server, tmp_path: Path) -> None:
    error = await refusal(S3Source("no/such.wav"), tmp_path, settings(s3.endpoint))
    assert isinstance(error, SourceNotFound)
    assert error.facts["source"] == f"s3://{s3.bucket}/no/such.wav"


async def test_a_missing_bucket_is_named(s3: S3Server, tmp_path: Path) -> None:
    error = await refusal(S3Source("talk.wav", "no-such"), tmp_path, settings(s3.endpoint))
    assert isinstance(error, SourceNotFound)
    assert error.facts["source"] == "s3://no-such/talk.wav"


async def test_an_impossible_bucket_is_the_mistake_of_the_caller(
    s3: S3Server, tmp_path: Path
) -> None:
    error = await refusal(S3Source("talk.wav", "not a bucket!"), tmp_path, settings(s3.endpoint))
    assert isinstance(error, InvalidRequest)
    assert error.sentence.endswith("s3://not a bucket!/talk.wav is not a valid bucket and key")


async def test_wrong_credentials_are_refused_and_not_repeated_in_the_error(
    web: WebServer, tmp_path: Path
) -> None:
    web.at("/recordings/talk.wav", answers(403, DENIED))
    error = await refusal(S3Source("talk.wav"), tmp_path, settings(web.address))
    assert isinstance(error, SourceRefused)
    assert error.facts["status"] == 403
    assert "SignatureDoesNotMatch" in str(error)
    reported = str(error.document())
    assert S3Server.secret_key not in reported
    assert S3Server.access_key not in reported


async def test_a_passing_fault_heals_and_a_lasting_one_is_transient(
    web: WebServer, tmp_path: Path
) -> None:
    fault = answers(503, "<Error><Code>SlowDown</Code></Error>")
    web.at("/recordings/healing.wav", in_turn(fault, sends(CONTENT)))
    web.at("/recordings/broken.wav", fault)
    chosen = settings(web.address)
    assert await fetched(S3Source("healing.wav"), tmp_path, chosen) == CONTENT
    error = await refusal(S3Source("broken.wav"), tmp_path, chosen)
    assert isinstance(error, SourceUnreachable)


@pytest.mark.parametrize(
    "fault",
    [drops(CONTENT[:1000], declared=len(CONTENT)), stalls(CONTENT[:1000])],
    ids=["dropped", "stalled"],
)
async def test_a_body_that_breaks_off_is_transient(
    fault: Behaviour, web: WebServer, tmp_path: Path
) -> None:
    web.at("/recordings/talk.wav", fault)
    impatient = settings(web.address, stall_timeout_seconds=0.3)
    error = await refusal(S3Source("talk.wav"), tmp_path, impatient)
    assert isinstance(error, SourceUnreachable)


async def test_an_endpoint_without_a_server_is_unreachable(
    listener: Listener, tmp_path: Path
) -> None:
    await listener.__aexit__(None, None, None)
    unreachable = settings(f"http://127.0.0.1:{listener.port}")
    assert isinstance(await refusal(S3Source("talk.wav"), tmp_path, unreachable), SourceUnreachable)


async def test_an_object_over_the_cap_is_refused(s3: S3Server, tmp_path: Path) -> None:
    s3.put("large.wav", CONTENT)
    small = settings(s3.endpoint, max_audio_bytes=len(CONTENT) - 1)
    error = await refusal(S3Source("large.wav"), tmp_path, small)
    assert isinstance(error, AudioTooLarge)
    assert error.facts == {"limit": len(CONTENT) - 1, "bytes": len(CONTENT)}
    assert (tmp_path / "audio").stat().st_size == 0


async def test_a_body_of_unknown_length_is_counted_as_it_comes(
    web: WebServer, tmp_path: Path
) -> None:
    web.at("/recordings/small.wav", chunks(CONTENT))
    web.at("/recordings/large.wav", chunks(CONTENT, times=30))
    chosen = settings(web.address)
    assert await fetched(S3Source("small.wav"), tmp_path, chosen) == CONTENT
    error = await refusal(S3Source("large.wav"), tmp_path, chosen)
    assert isinstance(error, AudioTooLarge)
    assert error.facts == {"limit": len(CONTENT)}


@pytest.mark.parametrize("behaviour", [stalls(), trickles(CONTENT, 0.05)], ids=["stall", "trickle"])
async def test_a_download_ends_at_its_time_limit(
    behaviour: Behaviour, web: WebServer, tmp_path: Path
) -> None:
    web.at("/recordings/talk.wav", behaviour)
    brief = settings(web.address, download_timeout_seconds=0.4, stall_timeout_seconds=1)
    error = await refusal(S3Source("talk.wav"), tmp_path, brief)
    assert isinstance(error, SourceTimeout)
    assert error.facts["limit"] == 0.4


async def test_a_cancelled_download_ends_and_leaves_its_folder_alone(
    web: WebServer, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    web.at("/recordings/talk.wav", in_turn(stalls(), sends(CONTENT)))
    impatient = settings(web.address, stall_timeout_seconds=0.5)
    download = asyncio.create_task(fetched(S3Source("talk.wav"), scratch, impatient))
    await asyncio.wait_for(web.reached.wait(), 10)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    (scratch / "audio").unlink()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert list(scratch.iterdir()) == []


async def test_idle_downloads_do_not_block_others(tmp_path: Path, web: WebServer) -> None:
    released = asyncio.Event()

    async def stalls_forever(request: Any) -> Any:
        await released.wait()
        return await answers(404)(request)

    web.at("/recordings/talk.wav", stalls_forever)
    chosen = settings(web.address, stall_timeout_seconds=60)
    targets = [tmp_path / f"{number}" for number in range(40)]
    requested = S3Source("talk.wav")
    downloads = [asyncio.ensure_future(source.download(requested, one, chosen)) for one in targets]
    await web.reached.wait()
    # The loop's own threads read inline audio and look up addresses.
    assert await asyncio.wait_for(asyncio.to_thread(str, "here"), 30) == "here"
    assert not any(download.done() for download in downloads)
    released.set()
    result = await asyncio.gather(*downloads, return_exceptions=True)
    assert all(isinstance(failure, SourceNotFound) for failure in result)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "RequestTimeTooSkewed"),
        (403, "InvalidAccessKeyId"),
        (403, "InvalidObjectState"),
        (400, "ExpiredToken"),
        (403, "SecondLevelDomainForbidden"),
        (301, "PermanentRedirect"),
        (307, "TemporaryRedirect"),
    ],
)
async def test_a_refusal_is_named_as_the_service_names_it(
    status: int, code: str, web: WebServer, tmp_path: Path
) -> None:
    web.at("/recordings/talk.wav", answers(status, f"<Error><Code>{code}</Code></Error>"))
    error = await refusal(S3Source("talk.wav"), tmp_path, settings(web.address))
    assert isinstance(error, SourceRefused)
    assert str(error) == f"source_refused: s3://recordings/talk.wav answered {status}: {code}"
    assert len(web.received) == 1


@pytest.mark.parametrize(
    "fault",
    [
        answers(429, "<Error><Code>TooManyRequests</Code></Error>"),
        answers(400, "<Error><Code>ThrottlingException</Code></Error>"),
        answers(400, "<Error><Code>RequestTimeout</Code></Error>"),
        answers(520),
        drops(CONTENT[:1000], declared=len(CONTENT)),
        drops(),
    ],
    ids=["429", "throttled", "timeout", "520", "cut in the body", "dropped"],
)
async def test_what_passes_is_tried_again(fault: Behaviour, web: WebServer, tmp_path: Path) -> None:
    web.at("/recordings/talk.wav", in_turn(fault, fault, sends(CONTENT)))
    assert await fetched(S3Source("talk.wav"), tmp_path, settings(web.address)) == CONTENT
    web.at("/recordings/broken.wav", fault)
    error = await refusal(S3Source("broken.wav"), tmp_path, settings(web.address))
    assert isinstance(error, SourceUnreachable)


@pytest.mark.parametrize(
    "elsewhere",
    [
        answers(301, "", {"x-amz-bucket-region": "eu-west-3"}),
        answers(
            400,
            "<Error><Code>AuthorizationQueryParametersError</Code><Region>eu-west-3</Region></Error>",
        ),
    ],
)
async def test_a_bucket_in_another_region_is_requested_there_once(
    elsewhere: Behaviour, web: WebServer, tmp_path: Path
) -> None:
    chosen = settings(web.address, s3_region="us-east-1")
    web.at("/recordings/talk.wav", in_turn(elsewhere, sends(CONTENT)))
    assert await fetched(S3Source("talk.wav"), tmp_path, chosen) == CONTENT
    assert "%2Fus-east-1%2F" in web.received[0]
    assert "%2Feu-west-3%2F" in web.received[1]
    web.received.clear()
    web.at("/recordings/never.wav", elsewhere)
    error = await refusal(S3Source("never.wav"), tmp_path, chosen)
    assert isinstance(error, SourceRefused)
    assert "eu-west-3" in str(error)
    assert len(web.received) == 2


async def test_a_compressed_object_is_unpacked_and_counted_unpacked(
    web: WebServer, tmp_path: Path
) -> None:
    web.at("/recordings/talk.wav", gzips(bytes(500_000)))
    assert await fetched(S3Source("talk.wav"), tmp_path, settings(web.address)) == bytes(500_000)
    web.at("/recordings/bomb.wav", gzips(bytes(1 << 26)))
    error = await refusal(S3Source("bomb.wav"), tmp_path, settings(web.address))
    assert isinstance(error, AudioTooLarge)


async def test_temporary_keys_and_public_buckets(web: WebServer, tmp_path: Path) -> None:
    web.at("/recordings/talk.wav", sends(CONTENT))
    temporary = settings(web.address, s3_session_token="FwoG/token")
    assert await fetched(S3Source("talk.wav"), tmp_path, temporary) == CONTENT
    assert "X-Amz-Security-Token=FwoG%2Ftoken" in web.received[0]
    public = settings(web.address, s3_access_key=None, s3_secret_key=None, s3_anonymous=True)
    assert await fetched(S3Source("talk.wav"), tmp_path, public) == CONTENT
    assert web.received[1] == "/recordings/talk.wav"


async def test_an_untrusted_certificate_is_named_and_not_tried_again(
    secure: WebServer, tmp_path: Path
) -> None:
    error = await refusal(S3Source("talk.wav"), tmp_path, settings(secure.address))
    assert isinstance(error, SourceRefused)
    assert "certificate" in str(error)
    assert secure.received == []


def test_settings_that_no_request_can_use_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(InvalidSetting, match="AWS_PROFILE"):
        s3.check(settings("http://127.0.0.1:9", s3_bucket="profile"))
    with (
        pytest.raises(InvalidSetting, match="AWS_PROFILE"),
        open_pipeline(settings("http://127.0.0.1:9", engine="tones")),
    ):
        pass
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/missing/ca.pem")
    s3.tls_context.cache_clear()
    with pytest.raises(InvalidSetting, match="AWS_CA_BUNDLE"):
        s3.check(settings("http://127.0.0.1:9", s3_bucket="authorities"))
    s3.check(Settings())  # without S3 settings nothing is looked at


@pytest.mark.parametrize(
    ("variables", "chosen", "named"),
    [
        ({}, {"s3_bucket": "not a bucket!"}, "S3_BUCKET"),
        ({}, {"s3_secret_key": None}, "S3_SECRET_KEY"),
        ({}, {"s3_access_key": None}, "S3_ACCESS_KEY"),
        ({}, {"s3_region": "-"}, "S3_REGION"),
        ({"AWS_DEFAULT_REGION": "x y"}, {"s3_endpoint": None}, "AWS_DEFAULT_REGION"),
        ({"AWS_ENDPOINT_URL": "minio"}, {"s3_endpoint": None}, "AWS_ENDPOINT_URL"),
        ({"AWS_DEFAULTS_MODE": "none"}, {}, "AWS_DEFAULTS_MODE"),
        ({"AWS_CONFIG_FILE": "config"}, {}, "AWS_CONFIG_FILE"),
    ],
)
def test_a_setting_that_boto3_rejects_is_named(
    variables: dict[str, str],
    chosen: dict[str, object],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "config").write_text("no configuration [[")
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting) as raised:
        s3.check(settings("http://127.0.0.1:9", **chosen))
    assert raised.value.facts["setting"] == named


def test_the_addressing_style_is_the_operators() -> None:
    virtual = settings("http://s3.test:9", s3_addressing_style="virtual")
    requested = s3.client(virtual).generate_presigned_url(
        "get_object", {"Bucket": "recordings", "Key": "a"}
    )
    assert requested.startswith("http://recordings.s3.test:9/a?")


async def test_slow_bodies_end_at_their_time_limit_and_leave_s3_to_others(
    web: WebServer, tmp_path: Path
) -> None:
    """As many as there were threads once; each sends a byte at a time, never still for long."""
    web.at("/recordings/slow.wav", trickles(CONTENT, 0.05))
    web.at("/recordings/talk.wav", sends(CONTENT))
    brief = settings(web.address, download_timeout_seconds=5, stall_timeout_seconds=20)
    s3.check(brief)  # so that the limit has no loading of libraries in it
    slow = [
        source.download(S3Source("slow.wav"), tmp_path / f"{number}", brief) for number in range(70)
    ]
    result = await asyncio.gather(*slow, return_exceptions=True)
    assert all(isinstance(failure, SourceTimeout) for failure in result)
    assert await asyncio.wait_for(web.left.wait(), 60), "the connections are closed"
    chosen = settings(web.address)
    assert await fetched(S3Source("talk.wav"), tmp_path, chosen) == CONTENT


async def test_a_process_ends_while_a_body_trickles(web: WebServer, tmp_path: Path) -> None:
    web.at("/recordings/slow.wav", trickles(CONTENT, 0.05))
    program = f"""
import asyncio
from pathlib import Path
from parakeet_worker.request import S3Source
from parakeet_worker.settings import Settings
from parakeet_worker.sources import s3
settings = Settings(s3_access_key="a", s3_secret_key="b", s3_endpoint="{web.address}",
                    s3_bucket="recordings", download_timeout_seconds=1)
try:
    asyncio.run(s3.download(S3Source("slow.wav"), Path("{tmp_path}/audio"), settings))
except Exception as error:
    print(error.code, flush=True)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert output.split() == [b"source_timeout"]


async def test_a_full_disk_is_not_the_buckets_fault(s3: S3Server, tmp_path: Path) -> None:
    s3.put("talk.wav", CONTENT)
    disk = Scratch(tmp_path, least_bytes=0, timeout_seconds=1.0)
    with full_disk(), pytest.raises(ScratchFull):
        async with disk.made() as folder:
            await fetched(S3Source("talk.wav"), folder, settings(s3.endpoint))
