import pytest

from parakeet_worker.client.endpoint import (
    MAX_BALANCED_BYTES,
    MAX_RUN_BYTES,
    MAX_RUNSYNC_BYTES,
    Endpoint,
)
from parakeet_worker.errors import InvalidRequest


@pytest.mark.parametrize(
    ("message", "url", "kind", "runpod"),
    [
        ("abc123xyz", "https://api.runpod.ai/v2/abc123xyz", "queue", True),
        ("https://api.runpod.ai/v2/abc", "https://api.runpod.ai/v2/abc", "queue", True),
        ("https://api.runpod.ai/v2/abc/run", "https://api.runpod.ai/v2/abc", "queue", True),
        ("http://127.0.0.1:81/v2/abc/", "http://127.0.0.1:81/v2/abc", "queue", True),
        ("https://abc.api.runpod.ai", "https://abc.api.runpod.ai", "http", True),
        ("http://localhost:8000/", "http://localhost:8000", "http", False),
        ("http://localhost:8000/transcribe", "http://localhost:8000", "http", False),
        ("https://example.com/speech", "https://example.com/speech", "http", False),
        ("https://api.runpod.ai.example.com", "https://api.runpod.ai.example.com", "http", False),
    ],
)
def test_an_endpoint_is_an_id_or_an_address(message, url, kind, runpod):
    endpoint = Endpoint.read(message)
    assert (endpoint.url, endpoint.kind, endpoint.runpod) == (url, kind, runpod)


def test_an_id_may_be_below_another_base_url():
    assert Endpoint.read("abc", "http://127.0.0.1/v2/").url == "http://127.0.0.1/v2/abc"


@pytest.mark.parametrize(
    "message", ["", "localhost:8000", "ftp://example.com", "http://", "a b", "http://x:y", "../run"]
)
def test_what_is_neither_is_refused(message):
    with pytest.raises(InvalidRequest) as raised:
        Endpoint.read(message)
    assert raised.value.facts["field"] == "endpoint"


def test_a_file_goes_the_first_way_that_has_room_for_it_with_its_base64():
    queue = Endpoint.read("abc")
    paths = {size: queue.route(size) for size in (1, 7_400_000, 7_600_000, 14_900_000, 15_100_000)}
    assert [route and route.path for route in paths.values()] == [
        "run", "run", "runsync?wait=1000", "runsync?wait=1000", None,
    ]  # fmt: skip
    assert (MAX_RUN_BYTES, MAX_RUNSYNC_BYTES, MAX_BALANCED_BYTES) == (10**7, 2 * 10**7, 3 * 10**7)
    balanced = Endpoint.read("https://abc.api.runpod.ai")
    assert balanced.route(29_900_000) is not None
    assert balanced.route(30_000_000) is None
    assert Endpoint.read("http://localhost:8000").route(1 << 40) is not None
    narrow = Endpoint.read("http://localhost:8000").narrowed(1000)
    assert narrow.max_audio_bytes == 1000
    assert narrow.route(1001) is None
